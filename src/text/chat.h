// A conversation and the choices that shape its prompt, as plain structs. Made from an API request by
// src/text/chat_request.h or by hand, consumed by a prompt encoder (src/text/prompt_*.h). No behaviour, any thread.
#pragma once

#include "src/base/json.h"

#include <optional>
#include <string>
#include <vector>

namespace thermocline::text {

/// The three incompatible encoders of the DeepSeek-V4 family (prompt-encoding.md section 1).
enum class PromptRevision { kV4, kV4_0731, kV4_1 };

/// `kDeveloper` is the encoder's own role; the OpenAI role of that name arrives here as kSystem.
enum class Role { kSystem, kDeveloper, kUser, kAssistant, kTool, kLatestReminder };

/// DeepSeek's quick product tasks: each ends the prompt with a token of its own.
enum class Task { kNone, kAction, kQuery, kAuthority, kDomain, kTitle, kReadUrl };

struct ToolCall {
    std::string id;  // may be empty
    std::string name;
    std::string arguments;  // JSON text as received; anything else is passed on as it is
};

struct Tool {
    std::string name;
    Json function;  // the client's "function" object, fields and order untouched
};

struct Message {
    Role role = Role::kUser;
    std::string content;
    std::string reasoning;                // assistant only; exact bytes, never trimmed
    std::vector<ToolCall> tool_calls;     // assistant only
    std::string tool_call_id;             // tool only; may be empty
    std::vector<Tool> tools;              // system and developer only
    std::optional<Json> response_schema;  // system and developer only
    Task task = Task::kNone;
    bool is_prefix = false;  // assistant only: left open, the model continues it
};

/// Effort on the scale 1..100 of V4.1, which orders the words of all revisions; 0 = the encoder's own default.
constexpr int kEffortUnset = 0;
constexpr int kEffortLow = 25;
constexpr int kEffortHigh = 50;
constexpr int kEffortXhigh = 75;
constexpr int kEffortMax = 100;

struct ToolChoice {
    enum class Kind { kNone, kAuto, kRequired, kNamed };
    Kind kind = Kind::kAuto;
    std::string name;  // kNamed only
};

struct ChatOptions {
    PromptRevision revision = PromptRevision::kV4;
    bool thinking = true;
    bool drop_reasoning = true;  // of turns before the last user turn; tools switch it off
    int effort = kEffortUnset;
    std::vector<Tool> tools;  // put on the first message, in front of what it carries
    std::optional<Json> response_schema;
    ToolChoice tool_choice;
    bool parallel_tool_calls = true;
    Task task = Task::kNone;  // put on the last user message
    /// A conversation that ends with a closed turn gets a fresh assistant header, so that there is something to
    /// generate; false leaves it closed, as DeepSeek's own encoder does.
    bool open_turn = true;
};

struct Chat {
    std::vector<Message> messages;
    ChatOptions options;
};

}  // namespace thermocline::text
