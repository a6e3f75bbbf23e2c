#include "src/engine/grammar_constraint.h"

#include <algorithm>
#include <utility>

namespace thermocline::engine {
namespace {

std::span<const uint64_t> mask_of(text::GrammarMatcher& matcher) {
    try {
        return matcher.mask();
    } catch (const Error& error) {
        throw RequestFault(error.what());
    }
}

}  // namespace

GrammarConstraint::GrammarConstraint(const std::vector<std::shared_ptr<text::TokenMasks>>& grammars,
                                     std::vector<int32_t> eos_ids, std::optional<int32_t> reasoning_end,
                                     const std::vector<int32_t>& barred)
    : eos_ids_(std::move(eos_ids)),
      reasoning_end_(reasoning_end),
      mask_(grammars.front()->trie().words(), ~uint64_t{0}) {
    for (const auto& masks : grammars) matchers_.emplace_back(masks);
    const auto clear = [this](const std::vector<int32_t>& ids) {
        for (const int32_t id : ids) mask_[static_cast<size_t>(id) / 64] &= ~(uint64_t{1} << id % 64);
    };
    clear(eos_ids_);
    clear(barred);
}

std::span<const uint64_t> GrammarConstraint::mask() {
    if (reasoning_end_) return mask_;
    std::fill(mask_.begin(), mask_.end(), 0);
    for (text::GrammarMatcher& matcher : matchers_) {
        const std::span<const uint64_t> allowed = mask_of(matcher);
        for (size_t i = 0; i < mask_.size(); ++i) mask_[i] |= allowed[i];
        if (!matcher.is_complete()) continue;
        for (const int32_t id : eos_ids_) mask_[static_cast<size_t>(id) / 64] |= uint64_t{1} << id % 64;
    }
    return mask_;
}

void GrammarConstraint::accept(int32_t id) {
    if (reasoning_end_) {
        if (id == *reasoning_end_) reasoning_end_.reset();
        return;
    }
    ended_ = std::find(eos_ids_.begin(), eos_ids_.end(), id) != eos_ids_.end();
    if (ended_) return;
    std::erase_if(matchers_, [id](text::GrammarMatcher& matcher) { return !matcher.accept(id); });
    // None is left only where a grammar is ambiguous beyond what a matcher follows: the text ends there.
    ended_ = std::none_of(matchers_.begin(), matchers_.end(),
                          [](text::GrammarMatcher& matcher) { return matcher.goes_on(); });
}

MarkupConstraint::MarkupConstraint(std::shared_ptr<text::TokenMasks> masks, int32_t mark)
    : masks_(std::move(masks)), mark_(mark) {}

std::span<const uint64_t> MarkupConstraint::mask() {
    return matcher_ ? mask_of(*matcher_) : std::span<const uint64_t>();
}

void MarkupConstraint::accept(int32_t id) {
    if (matcher_) {
        if (!matcher_->accept(id) || !matcher_->goes_on()) matcher_.reset();
        return;
    }
    if (id == mark_ && after_opening_) matcher_.emplace(masks_);
    after_opening_ = masks_->trie().tokenizer().token_bytes(id).ends_with('<');
}

}  // namespace thermocline::engine
