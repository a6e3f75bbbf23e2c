// Which experts a benchmark's tokens go to, other than those that the weights choose: drawn from a distribution, or
// replayed from a trace (scheduler/routing_trace.h). Either way every Route step gets a table from token id to experts,
// as layers that route by hash have anyway, and the tokens of the benchmark say which rows are used.
#pragma once

#include "src/ops/plan.h"

#include <cstdint>
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

}  // namespace thermocline::app
