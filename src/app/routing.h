// Which experts a benchmark's tokens go to, other than those that the weights choose: drawn from a distribution, or
// replayed from a trace that `score --record-routing` wrote. Either way every Route step gets a table from token id to
// experts, as layers that route by hash have anyway, and the tokens of the benchmark say which rows are used.
//
// A trace is JSON lines. The first: {"thermocline_routing": 1, "model": NAME, "layers": [{"experts": 256, "top_k": 6},
// ...]}, one for each layer with a router. Then one line a forward pass: {"phase": "prefill" or "decode", "sequence":
// 0, "ids": [layers][rows][top_k]}: the experts that every layer chose for every token of the pass, in token order.
#pragma once

#include "scheduler/executor.h"
#include "src/ops/plan.h"

#include <cstdint>
#include <fstream>
#include <string>
#include <vector>

namespace thermocline::app {

/// Tokens for the rows of a benchmark, each list over and over; empty: random ones.
struct RoutedTokens {
    std::vector<int32_t> prompt, generated;
};

/// What --routing says: "model", "uniform", "zipf", "zipf:S" or the name of a file.
class Routing {
public:
    /// Empty if `text` can be one, else why not.
    static std::string fault(const std::string& text);
    explicit Routing(const std::string& text) : text_(text) {}

    const std::string& text() const { return text_; }
    /// Rewrites the Route steps of `plan`. `model`: its name, for messages. Throws Error naming the file if the trace
    /// is damaged or of another shape.
    RoutedTokens apply(ops::Plan& plan, const std::string& model, uint64_t seed) const;

private:
    std::string text_;
};

/// Writes a trace.
class RoutingWriter {
public:
    RoutingWriter(const std::string& path, const std::string& model, const ops::Plan& plan);
    void add(const scheduler::RoutingRecord& pass, bool decode, size_t sequence);
    /// Throws Error if anything could not be written.
    void close();

private:
    std::string path_;
    std::ofstream out_;
    std::vector<int32_t> top_k_;
};

}  // namespace thermocline::app
