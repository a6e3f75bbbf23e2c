// Ends the reasoning of a chat after a number of tokens: its closing mark is the only token that may come then. One
// object per choice, on the engine thread once submitted.
#pragma once

#include "src/engine/constraint.h"

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <vector>

namespace thermocline::engine {

class ReasoningBudget : public TokenConstraint {
public:
    /// Of reasoning that is open where the output begins. `end` closes it, `others` do so too. `inner`: what else
    /// restricts the output; may be null.
    ReasoningBudget(int64_t tokens, int32_t end, std::vector<int32_t> others, int64_t vocab,
                    std::shared_ptr<TokenConstraint> inner);
    std::span<const uint64_t> mask() override;
    void accept(int32_t id) override;
    bool ended() const override { return inner_ && inner_->ended(); }

private:
    std::optional<int64_t> left_;  // tokens before the mark must come; none: the reasoning is over
    std::vector<int32_t> ends_;
    std::vector<uint64_t> only_end_;  // the mask
    std::shared_ptr<TokenConstraint> inner_;
};

}  // namespace thermocline::engine
