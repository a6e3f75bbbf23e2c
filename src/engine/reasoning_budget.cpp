#include "src/engine/reasoning_budget.h"

#include <algorithm>
#include <utility>

namespace thermocline::engine {

ReasoningBudget::ReasoningBudget(int64_t tokens, int32_t end, std::vector<int32_t> others, int64_t vocab,
                                 std::shared_ptr<TokenConstraint> inner)
    : left_(tokens),
      ends_(std::move(others)),
      only_end_(static_cast<size_t>((vocab + 63) / 64), 0),
      inner_(std::move(inner)) {
    ends_.push_back(end);
    only_end_[static_cast<size_t>(end) / 64] = uint64_t{1} << end % 64;
}

std::span<const uint64_t> ReasoningBudget::mask() {
    if (left_ && *left_ == 0) return only_end_;
    return inner_ ? inner_->mask() : std::span<const uint64_t>();
}

void ReasoningBudget::accept(int32_t id) {
    if (left_) {
        --*left_;
        if (std::find(ends_.begin(), ends_.end(), id) != ends_.end()) left_.reset();
    }
    if (inner_) inner_->accept(id);
}

}  // namespace thermocline::engine
