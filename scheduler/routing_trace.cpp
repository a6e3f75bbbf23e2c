#include "scheduler/routing_trace.h"

#include "src/base/error.h"
#include "src/base/file.h"

#include <algorithm>
#include <charconv>
#include <string_view>

namespace thermocline::scheduler {

namespace {

constexpr int64_t kVersion = 1;
constexpr int64_t kMostExperts = 1024, kMostLayers = 512;  // published models have up to 512 and 94
constexpr size_t kMostBytes = size_t{4} << 30;             // a trace of V4-Flash takes about 1 KB a token

int64_t integer(const Json& object, const char* key) {
    const auto found = object.find(key);
    return found != object.end() && found->is_number_integer() ? found->get<int64_t>() : -1;
}

/// Empty where it is missing.
std::string text(const Json& object, const char* key, const std::string& where) {
    const auto found = object.find(key);
    if (found == object.end()) return "";
    if (!found->is_string()) fail(where, ": ", key, " is ", found->type_name(), ", expected a text");
    return found->get<std::string>();
}

/// `least`: -1 where an expert need not be known.
void read_row(const Json& row, const RoutedLayer& layer, int32_t least, const std::string& where,
              std::vector<int32_t>& out) {
    if (!row.is_array() || std::ssize(row) != layer.top_k) fail(where, ": a row has not ", layer.top_k, " experts");
    const size_t begin = out.size();
    for (const Json& id : row) {
        if (!id.is_number_integer() || id < least || id >= layer.experts)
            fail(where, ": expert ", printable(dump_json(id), 40), ", expected ", least, " to ", layer.experts - 1);
        const auto expert = id.get<int32_t>();
        if (expert >= 0 && std::find(out.begin() + static_cast<long>(begin), out.end(), expert) != out.end())
            fail(where, ": a row names expert ", expert, " twice");
        out.push_back(expert);
    }
}

/// [layers][rows][top_k]; the rows are those of the first layer if `rows` is -1.
std::vector<std::vector<int32_t>> read_ids(const Json& ids, const std::vector<RoutedLayer>& layers, int64_t& rows,
                                           int32_t least, const std::string& where) {
    if (!ids.is_array() || ids.empty() || ids.size() != layers.size() || !ids[0].is_array())
        fail(where, ": ids is no list of ", layers.size(), " layers");
    if (rows < 0) rows = std::ssize(ids[0]);
    std::vector<std::vector<int32_t>> all;
    for (size_t i = 0; i < layers.size(); ++i) {
        const std::string at = where + ", layer " + std::to_string(i);
        if (!ids[i].is_array() || std::ssize(ids[i]) != rows) fail(at, ": has not ", rows, " rows");
        std::vector<int32_t>& out = all.emplace_back();
        for (const Json& row : ids[i]) read_row(row, layers[i], least, at, out);
    }
    return all;
}

/// Rows `first` to first + rows as [layers][rows][top_k]. By hand: a Json of every number took 1 % of a pass of the
/// demo model.
void append_ids(std::string& out, const std::vector<std::vector<int32_t>>& ids, const std::vector<RoutedLayer>& layers,
                int64_t first, int64_t rows) {
    char digits[16];
    const auto open = [&](bool is_first) { out += is_first ? "[" : ",["; };
    out += '[';
    for (size_t i = 0; i < layers.size(); ++i) {
        open(i == 0);
        const int32_t* id = ids[i].data() + first * layers[i].top_k;
        for (int64_t row = 0; row < rows; ++row) {
            open(row == 0);
            for (int64_t k = 0; k < layers[i].top_k; ++k, ++id) {
                if (k > 0) out += ',';
                out.append(digits, std::to_chars(digits, digits + sizeof digits, *id).ptr);
            }
            out += ']';
        }
        out += ']';
    }
    out += ']';
}

RoutedPass read_pass(const Json& json, const std::vector<RoutedLayer>& layers, const std::string& where) {
    if (!json.is_object()) fail(where, ": is ", json.type_name(), ", expected an object");
    check_keys(json, {"phase", "class", "ids", "foretold"}, where);
    const std::string phase = text(json, "phase", where);
    if (phase != "prefill" && phase != "decode") fail(where, ": phase is no \"prefill\" or \"decode\"");
    RoutedPass pass{.decode = phase == "decode", .kind = text(json, "class", where), .ids = {}};
    pass.rows = -1;
    pass.ids = read_ids(json.value("ids", Json()), layers, pass.rows, 0, where);
    if (json.contains("foretold"))
        pass.foretold = read_ids(json["foretold"], layers, pass.rows, -1, where + ", foretold");
    return pass;
}

}  // namespace

void check_keys(const Json& object, std::initializer_list<std::string_view> known, const std::string& where) {
    for (const auto& item : object.items())
        if (std::find(known.begin(), known.end(), item.key()) == known.end())
            fail(where, ": ", printable(item.key(), 40), " is no key of such a file");
}

Json layers_json(const std::vector<RoutedLayer>& layers) {
    Json list = Json::array();
    for (const RoutedLayer& layer : layers) list.push_back({{"experts", layer.experts}, {"top_k", layer.top_k}});
    return list;
}

std::vector<RoutedLayer> layers_of(const Json& json, const std::string& where) {
    if (!json.is_array() || json.empty() || std::ssize(json) > kMostLayers)
        fail(where, ": layers is no list of 1 to ", kMostLayers, " layers with routers");
    std::vector<RoutedLayer> layers;
    for (const Json& item : json) {
        if (!item.is_object()) fail(where, ": layer ", layers.size(), " is ", item.type_name(), ", expected an object");
        check_keys(item, {"experts", "top_k"}, where + ", layer " + std::to_string(layers.size()));
        const RoutedLayer layer{integer(item, "experts"), integer(item, "top_k")};
        if (layer.experts < 1 || layer.experts > kMostExperts || layer.top_k < 1 || layer.top_k > layer.experts)
            fail(where, ": layer ", layers.size(), " has ", layer.experts, " experts and chooses ", layer.top_k,
                 ", expected 1 to ", kMostExperts, " experts and at most as many choices");
        layers.push_back(layer);
    }
    return layers;
}

int64_t RoutingTrace::rows() const {
    int64_t rows = 0;
    for (const RoutedPass& pass : passes) rows += pass.rows;
    return rows;
}

RoutingTrace read_routing_trace(const std::string& path) {
    return parse_routing_trace(read_text(path, kMostBytes), path);
}

RoutingTrace parse_routing_trace(std::string_view content, const std::string& path) {
    const std::string name = printable(path);
    RoutingTrace trace;
    size_t line = 1;
    for (size_t at = 0; at < content.size(); ++line) {
        const size_t end = std::min(content.find('\n', at), content.size());
        const std::string where = name + ", line " + std::to_string(line);
        const Json json = parse_json(content.substr(at, end - at), where);
        at = end + 1;
        if (line > 1) {
            trace.passes.push_back(read_pass(json, trace.layers, where));
            continue;
        }
        if (!json.is_object() || integer(json, "thermocline_routing") != kVersion)
            fail(where, ": expected \"thermocline_routing\": ", kVersion, ", as `score --record-routing` writes it");
        check_keys(json, {"thermocline_routing", "model", "layers"}, where);
        trace.model = text(json, "model", where);
        trace.layers = layers_of(json.value("layers", Json()), where);
    }
    if (trace.rows() == 0) fail(name, ": holds no routing, expected a trace of `score --record-routing`");
    return trace;
}

RoutedPass part_of(const RoutingRecord& record, const std::vector<RoutedLayer>& layers, int64_t first, int64_t rows,
                   bool decode, const std::string& kind) {
    RoutedPass pass{.decode = decode, .kind = kind, .ids = {}, .rows = rows};
    for (size_t i = 0; i < layers.size(); ++i) {
        const int64_t begin = first * layers[i].top_k, end = begin + rows * layers[i].top_k;
        pass.ids.emplace_back(record.ids[i].begin() + begin, record.ids[i].begin() + end);
        if (!record.foretold.empty())
            pass.foretold.emplace_back(record.foretold[i].begin() + begin, record.foretold[i].begin() + end);
    }
    return pass;
}

RoutingTraceWriter::RoutingTraceWriter(const std::string& path, const std::string& model,
                                       const std::vector<RoutedLayer>& layers)
    : path_(path), out_(path, std::ios::binary), layers_(layers) {
    out_ << dump_json({{"thermocline_routing", kVersion}, {"model", model}, {"layers", layers_json(layers)}}) << '\n';
}

void RoutingTraceWriter::add(const RoutingRecord& record, int64_t first, int64_t rows, bool decode,
                             const std::string& kind) {
    line_ = decode ? R"({"phase":"decode","ids":)" : R"({"phase":"prefill","ids":)";
    append_ids(line_, record.ids, layers_, first, rows);
    if (!record.foretold.empty()) {
        line_ += R"(,"foretold":)";
        append_ids(line_, record.foretold, layers_, first, rows);
    }
    if (!kind.empty()) line_ += R"(,"class":)" + dump_json(kind);
    line_ += "}\n";
    out_ << line_;
}

void RoutingTraceWriter::close() {
    out_.close();
    if (!out_) fail(printable(path_), ": cannot write");
}

}  // namespace thermocline::scheduler
