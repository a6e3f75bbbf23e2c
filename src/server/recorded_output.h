// An output that remembers the turn it was (text/written_turns.h): what was drawn, and what a client saw of it. Runs on
// the engine thread, as every Output does.
#pragma once

#include "src/engine/output.h"
#include "src/text/written_turns.h"

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

namespace thermocline::server {

/// Where a turn goes when it has ended.
struct TurnRecord {
    std::shared_ptr<text::WrittenTurns> turns;
    uint64_t context = 0;  // Prompt::context
    text::PromptRevision revision = text::PromptRevision::kV4;
    bool starts_in_reasoning = false;
};

class RecordedOutput : public engine::Output {
public:
    /// The tokenizer must outlive it.
    RecordedOutput(std::unique_ptr<engine::Output> output, const text::Tokenizer& tokenizer, TurnRecord record);
    engine::TextEvents push(int32_t id) override;
    engine::TextEvents finish(text::Ending ending) override;
    const std::optional<std::string>& stopped_by() const override { return output_->stopped_by(); }
    int64_t reasoning_tokens() const override { return output_->reasoning_tokens(); }

private:
    const std::unique_ptr<engine::Output> output_;
    const text::Tokenizer& tokenizer_;
    const TurnRecord record_;
    text::WrittenTurn turn_;
    engine::TextEvents events_;  // all so far
};

}  // namespace thermocline::server
