#include "src/app/routing.h"

#include "src/base/error.h"
#include "src/base/file.h"
#include "src/base/json.h"
#include "src/base/random.h"

#include <algorithm>
#include <atomic>
#include <charconv>
#include <cmath>
#include <filesystem>
#include <numeric>
#include <optional>
#include <set>
#include <string_view>
#include <thread>

namespace thermocline::app {

namespace {

constexpr int64_t kTraceVersion = 1;
constexpr double kMaxExponent = 4.0;
constexpr int kDraws = 64;  // before the likeliest expert that is left is taken

std::vector<ops::Route*> routes_of(ops::Plan& plan) {
    std::vector<ops::Route*> routes;
    for (ops::Step& step : plan.steps)
        if (auto* route = std::get_if<ops::Route>(&step)) routes.push_back(route);
    return routes;
}

/// Gives a Route step the experts of every token, [vocab, top_k].
void set_table(ops::Plan& plan, ops::Route& route, std::vector<int32_t> experts) {
    route.table = static_cast<ops::TableId>(plan.tables.size());
    plan.tables.push_back({"routing of the benchmark", std::move(experts), {plan.vocab, route.top_k}});
}

/// The exponent of "uniform" (0), "zipf" and "zipf:S"; nothing for other texts.
std::optional<double> exponent_of(const std::string& text) {
    if (text == "uniform") return 0.0;
    if (text == "zipf") return 1.0;
    if (!text.starts_with("zipf:")) return std::nullopt;
    double exponent = -1.0;
    const auto [end, error] = std::from_chars(text.data() + 5, text.data() + text.size(), exponent);
    return error == std::errc() && end == text.data() + text.size() ? exponent : -1.0;
}

/// Experts of one layer, drawn without replacement: the likeliest, in an order of its own, has weight 1, the next
/// 2^-S, then 3^-S, ...
class Drawing {
public:
    Drawing(int32_t experts, double exponent, uint64_t seed) : seed_(seed), order_(static_cast<size_t>(experts)) {
        std::iota(order_.begin(), order_.end(), 0);
        for (size_t i = order_.size(); i > 1; --i) std::swap(order_[i - 1], order_[below(static_cast<double>(i))]);
        double sum = 0.0;
        for (int32_t rank = 1; rank <= experts; ++rank) sums_.push_back(sum += std::pow(rank, -exponent));
    }

    void draw(int32_t count, int32_t* out) {
        for (int32_t k = 0; k < count; ++k) {
            const auto taken = [&](int32_t expert) { return std::find(out, out + k, expert) != out + k; };
            int32_t expert = one();
            for (int i = 0; i < kDraws && taken(expert); ++i) expert = one();
            for (size_t rank = 0; taken(expert); ++rank) expert = order_[rank];
            out[k] = expert;
        }
    }

private:
    size_t below(double limit) { return static_cast<size_t>(random_uniform(seed_, drawn_++) * limit); }
    int32_t one() {
        const double at = random_uniform(seed_, drawn_++) * sums_.back();
        const auto rank = std::upper_bound(sums_.begin(), sums_.end() - 1, at) - sums_.begin();
        return order_[static_cast<size_t>(rank)];
    }

    uint64_t seed_, drawn_ = 0;
    std::vector<int32_t> order_;  // of rank
    std::vector<double> sums_;    // of weights up to a rank
};

void draw_tables(ops::Plan& plan, double exponent, uint64_t seed) {
    const std::vector<ops::Route*> routes = routes_of(plan);
    std::vector<std::vector<int32_t>> tables(routes.size());
    std::atomic<size_t> next = 0;
    const auto work = [&] {
        for (size_t i = next++; i < routes.size(); i = next++) {
            const int32_t top_k = routes[i]->top_k;
            tables[i].resize(static_cast<size_t>(plan.vocab * top_k));
            Drawing drawing(routes[i]->experts, exponent, seed * 0x9E3779B97F4A7C15 + i + 1);
            for (int64_t t = 0; t < plan.vocab; ++t) drawing.draw(top_k, tables[i].data() + t * top_k);
        }
    };
    {
        std::vector<std::jthread> others;
        for (unsigned i = 1; i < std::thread::hardware_concurrency(); ++i) others.emplace_back(work);
        work();
    }
    for (size_t i = 0; i < routes.size(); ++i) set_table(plan, *routes[i], std::move(tables[i]));
}

struct LayerShape {
    int64_t experts, top_k;
    bool operator==(const LayerShape&) const = default;
};

/// "2 layers, 256 experts, top 6"
std::string shape_text(const std::vector<LayerShape>& layers) {
    std::string text = std::to_string(layers.size()) + " layers";
    for (size_t i = 0; i < layers.size(); ++i)
        if (i == 0 || layers[i] != layers[i - 1])
            text += (i ? ", from layer " + std::to_string(i) + " " : ", ") + std::to_string(layers[i].experts) +
                    " experts, top " + std::to_string(layers[i].top_k);
    return text;
}

/// Reads a trace for a plan that it fits.
class TraceReader {
public:
    TraceReader(const std::string& path, ops::Plan& plan, const std::string& model)
        : path_(printable(path)), plan_(plan), model_(model), routes_(routes_of(plan)) {
        for (const ops::Route* route : routes_) tables_.emplace_back(static_cast<size_t>(plan.vocab * route->top_k));
    }

    RoutedTokens read(const std::string& text) {
        size_t line = 0;
        for (size_t at = 0; at < text.size(); ++line) {
            const size_t end = std::min(text.find('\n', at), text.size());
            where_ = path_ + ", line " + std::to_string(line + 1);
            const Json json = parse_json(std::string_view(text).substr(at, end - at), where_);
            line == 0 ? read_head(json) : read_pass(json);
            at = end + 1;
        }
        if (rows_ == 0) fail(path_, ": holds no routing, expected a trace of `score --record-routing`");
        // Tokens whose rows were not recorded are never used.
        for (size_t i = 0; i < routes_.size(); ++i) {
            const auto top_k = static_cast<size_t>(routes_[i]->top_k), used = static_cast<size_t>(rows_) * top_k;
            for (size_t at = used; at < tables_[i].size(); ++at) tables_[i][at] = tables_[i][at - used];
            set_table(plan_, *routes_[i], std::move(tables_[i]));
        }
        if (tokens_.prompt.empty()) tokens_.prompt = tokens_.generated;
        if (tokens_.generated.empty()) tokens_.generated = tokens_.prompt;
        return std::move(tokens_);
    }

private:
    static int64_t integer(const Json& object, const char* key) {
        const auto found = object.is_object() ? object.find(key) : object.end();
        return object.is_object() && found != object.end() && found->is_number_integer() ? found->get<int64_t>() : -1;
    }

    void read_head(const Json& json) {
        if (integer(json, "thermocline_routing") != kTraceVersion)
            fail(where_, ": expected \"thermocline_routing\": ", kTraceVersion,
                 ", as `score --record-routing` writes it");
        std::vector<LayerShape> recorded, wanted;
        for (const Json& layer : json.value("layers", Json::array()))
            recorded.push_back({integer(layer, "experts"), integer(layer, "top_k")});
        for (const ops::Route* route : routes_) wanted.push_back({route->experts, route->top_k});
        layers_ = recorded.size();
        // A model cut by --layers takes the first of the trace.
        if (recorded.size() < wanted.size() || !std::equal(wanted.begin(), wanted.end(), recorded.begin())) {
            const Json name = json.value("model", Json());
            fail(path_, ": was recorded from ", name.is_string() ? printable(name.get<std::string>()) : "a model", " (",
                 shape_text(recorded), "), but ", printable(model_), " has ", shape_text(wanted));
        }
    }

    void read_pass(const Json& json) {
        const Json phase = json.is_object() ? json.value("phase", Json()) : Json();
        if (phase != "prefill" && phase != "decode") fail(where_, ": phase is no \"prefill\" or \"decode\"");
        const Json ids = json.value("ids", Json());
        if (!ids.is_array() || ids.empty() || ids.size() != layers_ || !ids[0].is_array())
            fail(where_, ": ids is no list of ", layers_, " layers");
        const size_t count = ids[0].size();
        for (size_t i = 0; i < routes_.size(); ++i) {
            if (!ids[i].is_array() || ids[i].size() != count) fail(where_, ": layer ", i, " has not ", count, " rows");
            for (size_t row = 0; row < count && rows_ + static_cast<int64_t>(row) < plan_.vocab; ++row)
                read_row(ids[i][row], i, rows_ + static_cast<int64_t>(row));
        }
        for (size_t row = 0; row < count && rows_ < plan_.vocab; ++row, ++rows_)
            (phase == "decode" ? tokens_.generated : tokens_.prompt).push_back(static_cast<int32_t>(rows_));
    }

    void read_row(const Json& row, size_t layer, int64_t token) {
        const int32_t top_k = routes_[layer]->top_k, experts = routes_[layer]->experts;
        if (!row.is_array() || row.size() != static_cast<size_t>(top_k))
            fail(where_, ": a row of layer ", layer, " has not ", top_k, " experts");
        int32_t* out = tables_[layer].data() + token * top_k;
        for (int32_t k = 0; k < top_k; ++k) {
            const Json& id = row[static_cast<size_t>(k)];
            if (!id.is_number_integer() || id < 0 || id >= experts)
                fail(where_, ": expert ", printable(dump_json(id), 40), " of layer ", layer, ", expected 0 to ",
                     experts - 1);
            out[k] = id.get<int32_t>();
            if (std::find(out, out + k, out[k]) != out + k)
                fail(where_, ": a row of layer ", layer, " names expert ", out[k], " twice");
        }
    }

    std::string path_, where_;
    ops::Plan& plan_;
    std::string model_;
    std::vector<ops::Route*> routes_;
    std::vector<std::vector<int32_t>> tables_;  // of each route: [vocab, top_k], of which `rows_` are read
    size_t layers_ = 0;                         // of the trace
    int64_t rows_ = 0;
    RoutedTokens tokens_;
};

}  // namespace

std::string Routing::fault(const std::string& text) {
    if (text == "model") return "";
    if (const auto exponent = exponent_of(text))
        return *exponent >= 0.0 && *exponent <= kMaxExponent ? "" : text + ": expected an exponent from 0 to 4";
    std::error_code ignored;
    return std::filesystem::is_regular_file(text, ignored)
               ? ""
               : text + ": no such file, nor model, uniform, zipf or zipf:S";
}

RoutedTokens Routing::apply(ops::Plan& plan, const std::string& model, uint64_t seed) const {
    if (text_ == "model") return {};
    if (const auto exponent = exponent_of(text_)) {
        draw_tables(plan, *exponent, seed);
        return {};
    }
    return TraceReader(text_, plan, model).read(read_text(text_));
}

RoutingWriter::RoutingWriter(const std::string& path, const std::string& model, const ops::Plan& plan)
    : path_(path), out_(path, std::ios::binary) {
    Json layers = Json::array();
    for (const ops::Step& step : plan.steps)
        if (const auto* route = std::get_if<ops::Route>(&step)) {
            layers.push_back({{"experts", route->experts}, {"top_k", route->top_k}});
            top_k_.push_back(route->top_k);
        }
    out_ << dump_json({{"thermocline_routing", kTraceVersion}, {"model", model}, {"layers", std::move(layers)}})
         << '\n';
}

void RoutingWriter::add(const scheduler::RoutingRecord& pass, bool decode, size_t sequence) {
    Json layers = Json::array();
    for (size_t i = 0; i < pass.ids.size(); ++i) {
        Json rows = Json::array();
        for (auto it = pass.ids[i].begin(); it != pass.ids[i].end(); it += top_k_[i])
            rows.push_back(std::vector<int32_t>(it, it + top_k_[i]));
        layers.push_back(std::move(rows));
    }
    out_ << dump_json({{"phase", decode ? "decode" : "prefill"}, {"sequence", sequence}, {"ids", std::move(layers)}})
         << '\n';
}

void RoutingWriter::close() {
    out_.close();
    if (!out_) fail(path_, ": cannot write");
}

}  // namespace thermocline::app
