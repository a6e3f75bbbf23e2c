// From an OpenAI-style chat request to a conversation: messages, tools, tool choice, thinking, effort, response schema,
// task. What does not touch the prompt (sampling, streaming, limits) belongs to src/server. Pure functions, any thread;
// a wrong request is an Error that names the field. Source: prompt-encoding.md section 5, serving-api.md 3.1 and 3.2.
#pragma once

#include "src/text/chat.h"

#include <string>
#include <vector>

namespace thermocline::text {

/// What the operator's flags say for requests that leave a choice open.
struct ChatDefaults {
    bool thinking = true;            // --default-thinking
    int effort = kEffortHigh;        // --default-reasoning-effort, through effort_from_word
    bool keep_unused_tools = false;  // tool_choice "none" leaves the tools in the prompt
    bool schema_in_prompt = true;    // response_format json_schema also fills the encoder's slot
};

/// The conversation of a /v1/chat/completions body, ready for render_deepseek_v4.
Chat chat_from_openai(const Json& request, PromptRevision revision, const ChatDefaults& defaults);

/// The "messages" alone, roles checked, content parts joined; system messages stand where the client put them.
std::vector<Message> messages_from_openai(const Json& messages);

/// The "tools" alone; null and [] are no tools.
std::vector<Tool> tools_from_openai(const Json& tools);

/// minimal, low, medium, high, xhigh or max on the scale of chat.h; `field` names the source in the Error.
int effort_from_word(const std::string& word, const std::string& field);

/// Section 5.6 for v4 and v4-0731: system messages in front of the first user message become one at the front, later
/// ones a <system-reminder> in a user message at their place. v4.1 renders them in place: nothing to do.
std::vector<Message> with_system_messages_folded(std::vector<Message> messages, PromptRevision revision);

}  // namespace thermocline::text
