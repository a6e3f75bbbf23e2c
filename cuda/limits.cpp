// What the kernels can play, and the scratch memory that they need: every step's own rule, asked for in one place.
#include "cuda/run.h"
#include "cuda/scratch.h"

#include <algorithm>
#include <type_traits>

namespace thermocline::cuda {

namespace {

template <typename... Steps>
struct Cases : Steps... {
    using Steps::operator()...;
};
template <typename... Steps>
Cases(Steps...) -> Cases<Steps...>;  // clang 14 does not deduce aggregates

}  // namespace

std::string why_not(const ops::Plan& plan, const ops::Step& step) {
    return std::visit(
        Cases{[&](const auto& s) { return why_not(plan, s); }, [](const ops::Embed&) { return std::string(); },
              [](const ops::RmsNorm&) { return std::string(); }, [](const ops::Rope&) { return std::string(); },
              [](const ops::SwiGlu&) { return std::string(); }, [](const ops::Add&) { return std::string(); },
              [](const ops::TakeRows&) { return std::string(); }},
        step);
}

int64_t step_scratch_bytes(const ops::Plan& plan, const ops::Step& step, int64_t max_rows, int64_t max_outputs) {
    const int64_t bytes = std::visit(Cases{[](const auto&) { return int64_t{0}; },
                                           [&](const ops::Linear& s) {
                                               const bool tokens =
                                                   plan.slots[static_cast<size_t>(s.out)].rows == ops::Rows::kTokens;
                                               return linear_scratch(plan, s, tokens ? max_rows : max_outputs);
                                           },
                                           [&](const ops::SelectEntries& s) { return select_scratch(s, max_rows); },
                                           [&](const ops::Attention& s) { return attention_scratch(s, max_rows); }},
                                     step);
    return aligned(bytes);
}

int64_t scratch_bytes(const ops::Plan& plan, int64_t max_rows, int64_t max_outputs) {
    int64_t most = 0;
    for (const ops::Step& step : plan.steps)
        most = std::max(most, step_scratch_bytes(plan, step, max_rows, max_outputs));
    return most;
}

}  // namespace thermocline::cuda
