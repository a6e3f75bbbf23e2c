#include "src/app/routing.h"

#include "scheduler/routing_trace.h"
#include "src/base/error.h"
#include "src/base/random.h"

#include <algorithm>
#include <atomic>
#include <charconv>
#include <cmath>
#include <filesystem>
#include <numeric>
#include <optional>
#include <thread>

namespace thermocline::app {

namespace {

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

/// The rows of a trace become the first tokens; the tokens behind them are never used.
RoutedTokens use_trace(const scheduler::RoutingTrace& trace, const std::string& path, ops::Plan& plan,
                       const std::string& model) {
    const std::vector<scheduler::RoutedLayer> wanted = scheduler::routed_layers(plan);
    // A model cut by --layers takes the first of the trace.
    if (trace.layers.size() < wanted.size() || !std::equal(wanted.begin(), wanted.end(), trace.layers.begin()))
        fail(printable(path), ": was recorded from ", trace.model.empty() ? "a model" : printable(trace.model), " (",
             scheduler::shape_text(trace.layers), "), but ", printable(model), " has ", scheduler::shape_text(wanted));
    RoutedTokens tokens;
    std::vector<std::vector<int32_t>> tables(wanted.size());
    int32_t token = 0;
    for (const scheduler::RoutedPass& pass : trace.passes) {
        for (size_t i = 0; i < tables.size(); ++i)
            tables[i].insert(tables[i].end(), pass.ids[i].begin(), pass.ids[i].end());
        for (int64_t row = 0; row < pass.rows && token < plan.vocab; ++row)
            (pass.decode ? tokens.generated : tokens.prompt).push_back(token++);
    }
    const std::vector<ops::Route*> routes = routes_of(plan);
    for (size_t i = 0; i < routes.size(); ++i) {
        const auto size = static_cast<size_t>(plan.vocab * routes[i]->top_k);
        for (size_t at = 0; tables[i].size() < size; ++at) tables[i].push_back(tables[i][at]);
        tables[i].resize(size);
        set_table(plan, *routes[i], std::move(tables[i]));
    }
    if (tokens.prompt.empty()) tokens.prompt = tokens.generated;
    if (tokens.generated.empty()) tokens.generated = tokens.prompt;
    return tokens;
}

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
    return use_trace(scheduler::read_routing_trace(text_), text_, plan, model);
}

}  // namespace thermocline::app
