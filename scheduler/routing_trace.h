// What a model's routers chose, pass after pass: recorded by `score`, `profile` and `serve`, replayed by `bench` and
// bench/residency_replay, counted by routing_profile.h.
//
// The file is JSON lines. The first: {"thermocline_routing": 1, "model": NAME, "layers": [{"experts": 256, "top_k": 6},
// ...]}, one for each layer with a router. Then one line for every sequence in a forward pass: {"phase": "prefill" or
// "decode", "class": "code", "ids": [layers][rows][top_k]}: the experts that every layer chose for every token, in
// token order. "class", the kind of text, may be missing, and so may "foretold": likewise what each layer knew of its
// choice before attention, -1 where it knew nothing.
#pragma once

#include "scheduler/routing.h"
#include "src/base/json.h"

#include <cstdint>
#include <fstream>
#include <initializer_list>
#include <string>
#include <string_view>
#include <vector>

namespace thermocline::scheduler {

/// Throws Error if the object has a key that is none of `known`: in a file that was edited by hand a misspelt one would
/// be ignored. `where`: of the object, for the message.
void check_keys(const Json& object, std::initializer_list<std::string_view> known, const std::string& where);

/// As the heads of traces and profiles have it.
Json layers_json(const std::vector<RoutedLayer>& layers);
/// Throws Error starting with `where` if it is no such list, or a layer has other than 1 to 1024 experts, or chooses
/// more than it has.
std::vector<RoutedLayer> layers_of(const Json& json, const std::string& where);

/// One sequence's part of a forward pass.
struct RoutedPass {
    bool decode;
    std::string kind;                       // the class of its text; may be empty
    std::vector<std::vector<int32_t>> ids;  // [layers][rows * top_k]
    int64_t rows = 0;
    std::vector<std::vector<int32_t>> foretold = {};  // alike (RoutingRecord); empty: not known
};

struct RoutingTrace {
    std::string model;
    std::vector<RoutedLayer> layers;
    std::vector<RoutedPass> passes;
    int64_t rows() const;
};

/// Throws Error naming file and line if it cannot be read or is damaged.
RoutingTrace read_routing_trace(const std::string& path);
/// The same of the content of a file; `name`: of it, for messages.
RoutingTrace parse_routing_trace(std::string_view content, const std::string& name);

/// Rows `first` to first + rows of what a pass recorded.
RoutedPass part_of(const RoutingRecord& record, const std::vector<RoutedLayer>& layers, int64_t first, int64_t rows,
                   bool decode, const std::string& kind);

/// Writes a trace as it is recorded.
class RoutingTraceWriter {
public:
    RoutingTraceWriter(const std::string& path, const std::string& model, const std::vector<RoutedLayer>& layers);
    /// Rows `first` to first + rows of what a pass recorded.
    void add(const RoutingRecord& record, int64_t first, int64_t rows, bool decode, const std::string& kind = "");
    bool failed() const { return !out_; }
    /// Throws Error if anything could not be written.
    void close();

private:
    std::string path_;
    std::ofstream out_;
    std::vector<RoutedLayer> layers_;
    std::string line_;
};

}  // namespace thermocline::scheduler
