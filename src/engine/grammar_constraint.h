// Constraints that are grammars: on the whole answer behind the reasoning, or on the tool calls that the model decides
// to make. One object per choice, on the engine thread once submitted; what is kept of a grammar (text::TokenMasks) is
// shared by all choices that use it, on that one thread.
#pragma once

#include "src/engine/constraint.h"
#include "src/text/token_masks.h"

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <vector>

namespace thermocline::engine {

/// The answer is one text of one of the grammars; EOS may come where it is complete. Inside the reasoning, that is up
/// to the token `reasoning_end`, anything may come but EOS and the `barred` tokens.
class GrammarConstraint : public TokenConstraint {
public:
    /// `grammars` is not empty.
    GrammarConstraint(const std::vector<std::shared_ptr<text::TokenMasks>>& grammars, std::vector<int32_t> eos_ids,
                      std::optional<int32_t> reasoning_end, const std::vector<int32_t>& barred);
    std::span<const uint64_t> mask() override;
    void accept(int32_t id) override;
    bool ended() const override { return ended_; }

private:
    std::vector<text::GrammarMatcher> matchers_;  // of the grammars that the answer may still be one of
    std::vector<int32_t> eos_ids_;
    std::optional<int32_t> reasoning_end_;  // none: the reasoning is over
    std::vector<uint64_t> mask_;            // while reasoning it never changes
    bool ended_ = false;
};

/// Where the model writes "<" and the mark of tool markup, a text of the grammar follows; elsewhere anything may come.
class MarkupConstraint : public TokenConstraint {
public:
    MarkupConstraint(std::shared_ptr<text::TokenMasks> masks, int32_t mark);
    std::span<const uint64_t> mask() override;
    void accept(int32_t id) override;
    bool ended() const override { return false; }

private:
    std::shared_ptr<text::TokenMasks> masks_;
    int32_t mark_;
    bool after_opening_ = false;                   // the last token ended with "<"
    std::optional<text::GrammarMatcher> matcher_;  // while inside
};

}  // namespace thermocline::engine
