// The prompt encoder of the DeepSeek-V4 family: a conversation becomes the exact string that the model was trained
// on, in one of three revisions, and the revision is found from what lies beside the weights. Pure functions, any
// thread; only detect_prompt_revision reads files. Source: prompt-encoding.md sections 1 to 6.
#pragma once

#include "src/text/chat.h"
#include "src/text/written_turns.h"

#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace thermocline::text {

/// The names of one revision's tool-call markup, without the angle brackets: "｜DSML｜tool_calls".
struct ToolMarkup {
    std::string block;
    std::string invoke;
    std::string parameter;
};

const ToolMarkup& tool_markup(PromptRevision revision);

struct Prompt {
    std::string text;  // whole, with the begin-of-sentence token: tokenize with added tokens on, add nothing
    bool starts_in_reasoning = false;  // the model's first byte belongs to the reasoning

    struct Written {
        size_t begin;  // of its text in `text`
        std::shared_ptr<const WrittenTurn> turn;
    };
    std::vector<Written> written;  // turns that stand in `text` as the model wrote them, in order
    /// Of the turn that the model is to write (WrittenTurns); none: it is begun already.
    std::optional<uint64_t> context;
};

/// Renders the conversation, turns that `history` knows as the model wrote them. Error if a developer message is empty.
Prompt render_deepseek_v4(const std::vector<Message>& messages, const ChatOptions& options,
                          const WrittenHistory& history = {});

/// "v4", "v4-0731", "v4.1": the spelling of --chat-encoding, of the log and of /props.
std::string_view revision_name(PromptRevision revision);
std::optional<PromptRevision> revision_from_flag(std::string_view flag);

/// From the text of the checkpoint's encoding/*.py; it is scanned, never run.
std::optional<PromptRevision> revision_from_encoder_source(std::string_view source);
/// From a GGUF file's tokenizer.chat_template.
std::optional<PromptRevision> revision_from_chat_template(std::string_view chat_template);
std::optional<PromptRevision> revision_from_model_name(std::string_view name);

struct RevisionChoice {
    PromptRevision revision = PromptRevision::kV4;
    std::string reason;     // for the log line
    bool is_guess = false;  // nothing told: worth a warning
};

/// Section 1's order: `flag` ("auto" or a revision; anything else is an Error), encoding/*.py in `directory`,
/// `chat_template`, `model_name`. Empty arguments are skipped.
RevisionChoice detect_prompt_revision(std::string_view flag, const std::filesystem::path& directory,
                                      std::string_view chat_template, std::string_view model_name);

}  // namespace thermocline::text
