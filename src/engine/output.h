// From the tokens of one sequence to what a reader sees: reasoning, content, tool calls, cut at stop strings. One
// object per sequence, one thread (a listener uses it on the engine thread); the tokenizer must outlive it.
#pragma once

#include "src/engine/request.h"
#include "src/text/detokenizer.h"
#include "src/text/output_parser.h"
#include "src/text/stop_matcher.h"
#include "src/text/tokenizer.h"

#include <memory>
#include <optional>
#include <string>
#include <vector>

namespace thermocline::engine {

using TextEvents = std::vector<text::OutputEvent>;

class Output {
public:
    virtual ~Output() = default;
    /// What the next token (not one that `ends`) lets out; often nothing.
    virtual TextEvents push(int32_t id) = 0;
    /// What was held back, and the kFinish event. Call it once.
    virtual TextEvents finish(text::Ending ending) = 0;
    /// The stop string that matched: the sequence should end.
    virtual const std::optional<std::string>& stopped_by() const = 0;
    /// Tokens up to the end of the reasoning, the closing mark included.
    virtual int64_t reasoning_tokens() const { return 0; }
};

/// A chat answer, taken apart. `skip_special` drops special tokens that are no markup of the answer. Stop strings count
/// only after `min_tokens` tokens.
class ChatOutput : public Output {
public:
    ChatOutput(const text::Tokenizer& tokenizer, text::ParserOptions options, bool skip_special,
               int64_t min_tokens = 0);
    TextEvents push(int32_t id) override;
    TextEvents finish(text::Ending ending) override;
    const std::optional<std::string>& stopped_by() const override { return parser_.stopped_by(); }
    int64_t reasoning_tokens() const override { return reasoning_tokens_; }

private:
    bool is_hidden(int32_t id) const;

    const text::Tokenizer& tokenizer_;
    text::Detokenizer detokenizer_;
    text::OutputParser parser_;
    bool skip_special_;
    int64_t min_tokens_;
    int64_t tokens_ = 0;
    std::vector<int32_t> marks_;  // tokens that the parser must see
    std::optional<int32_t> think_end_;
    bool in_reasoning_;
    int64_t reasoning_tokens_ = 0;
};

/// A plain completion: every event is kContent. Stop strings count only after `min_tokens` tokens.
class PlainOutput : public Output {
public:
    PlainOutput(const text::Tokenizer& tokenizer, std::vector<std::string> stop, bool include_stop, bool skip_special,
                int64_t min_tokens);
    TextEvents push(int32_t id) override;
    TextEvents finish(text::Ending ending) override;
    const std::optional<std::string>& stopped_by() const override { return stops_.matched(); }

private:
    text::Detokenizer detokenizer_;
    text::StopMatcher stops_;
    int64_t min_tokens_;
    int64_t tokens_ = 0;
};

}  // namespace thermocline::engine
