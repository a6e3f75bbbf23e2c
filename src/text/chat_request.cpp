#include "src/text/chat_request.h"

#include "src/base/error.h"

#include <algorithm>
#include <optional>

namespace thermocline::text {

namespace {

/// A member that is there and not null.
const Json* member(const Json& object, const char* key) {
    if (!object.is_object()) return nullptr;
    const auto found = object.find(key);
    return found == object.end() || found->is_null() ? nullptr : &*found;
}

std::string shown(const Json& value) { return printable(dump_json(value), 60); }

std::string string_member(const Json& object, const char* key, const std::string& path) {
    const Json* value = member(object, key);
    if (value == nullptr) return "";
    if (!value->is_string()) fail(path, ".", key, " is ", shown(*value), ", expected a string");
    return value->get<std::string>();
}

std::optional<bool> bool_member(const Json& object, const char* key, const std::string& path) {
    const Json* value = member(object, key);
    if (value == nullptr) return std::nullopt;
    if (!value->is_boolean()) fail(path, key, " is ", shown(*value), ", expected true or false");
    return value->get<bool>();
}

Role role_from_openai(const std::string& role, const std::string& path) {
    if (role == "system" || role == "developer") return Role::kSystem;
    if (role == "user") return Role::kUser;
    if (role == "assistant") return Role::kAssistant;
    if (role == "tool") return Role::kTool;
    if (role == "latest_reminder") return Role::kLatestReminder;
    fail(path, ".role is \"", printable(role, 60),
         "\", expected system, developer, user, assistant, tool or latest_reminder");
}

/// Joins text parts by a blank line. Of an assistant, thinking parts are left to reasoning_of; of a tool, other
/// parts leave a note, as in DeepSeek's encoder.
std::string join_parts(const Json& parts, Role role, const std::string& path) {
    std::string out;
    bool is_first = true;
    for (size_t i = 0; i < parts.size(); ++i) {
        const std::string part_path = path + ".content[" + std::to_string(i) + "]";
        const Json& part = parts[i];
        std::string text;
        if (part.is_string()) {
            text = part.get<std::string>();
        } else {
            const std::string type = string_member(part, "type", part_path);
            if (type == "text" || type == "input_text" || type == "output_text") {
                text = string_member(part, "text", part_path);
            } else if (type == "refusal") {
                text = string_member(part, "refusal", part_path);
            } else if (role == Role::kAssistant && (type == "thinking" || type == "redacted_thinking")) {
                continue;
            } else if (role == Role::kTool) {
                text = "[Unsupported " + type + "]";
            } else {
                fail(part_path, ".type is \"", printable(type, 60), "\", not supported by this model, expected text");
            }
        }
        if (!is_first) out += "\n\n";
        is_first = false;
        out += text;
    }
    return out;
}

std::string content_of(const Json& message, Role role, const std::string& path) {
    const Json* content = member(message, "content");
    if (content == nullptr) {
        if (role != Role::kAssistant && role != Role::kTool) fail(path, ".content is missing, expected a string");
        return "";
    }
    if (content->is_string()) return content->get<std::string>();
    if (!content->is_array()) fail(path, ".content is ", shown(*content), ", expected a string or an array of parts");
    return join_parts(*content, role, path);
}

std::string reasoning_of(const Json& message, const std::string& path) {
    for (const char* key : {"reasoning_content", "reasoning"})
        if (member(message, key) != nullptr) return string_member(message, key, path);
    std::string reasoning;
    if (const Json* content = member(message, "content"); content != nullptr && content->is_array())
        for (const Json& part : *content)
            if (part.is_object() && string_member(part, "type", path + ".content") == "thinking")
                reasoning += string_member(part, "thinking", path + ".content");
    return reasoning;
}

std::vector<ToolCall> tool_calls_of(const Json& message, const std::string& path) {
    std::vector<ToolCall> calls;
    const Json* list = member(message, "tool_calls");
    if (list == nullptr) return calls;
    if (!list->is_array()) fail(path, ".tool_calls is ", shown(*list), ", expected an array");
    for (size_t i = 0; i < list->size(); ++i) {
        const std::string call_path = path + ".tool_calls[" + std::to_string(i) + "]";
        const Json* function = member((*list)[i], "function");
        if (function == nullptr || !function->is_object()) fail(call_path, ".function is missing, expected an object");
        ToolCall call{string_member((*list)[i], "id", call_path), string_member(*function, "name", call_path), ""};
        if (call.name.empty()) fail(call_path, ".function.name is missing, expected a string");
        if (const Json* arguments = member(*function, "arguments"))
            call.arguments = arguments->is_string() ? arguments->get<std::string>() : dump_json(*arguments);
        calls.push_back(std::move(call));
    }
    return calls;
}

Message message_from_openai(const Json& json, const std::string& path) {
    if (!json.is_object()) fail(path, " is ", shown(json), ", expected an object");
    Message message;
    message.role = role_from_openai(string_member(json, "role", path), path);
    message.content = content_of(json, message.role, path);
    if (message.role == Role::kAssistant) {
        message.reasoning = reasoning_of(json, path);
        message.tool_calls = tool_calls_of(json, path);
        message.is_prefix = bool_member(json, "prefix", path + ".").value_or(false);
    }
    if (message.role == Role::kTool) message.tool_call_id = string_member(json, "tool_call_id", path);
    return message;
}

bool says_nothing(const Message& message) {
    return message.role == Role::kAssistant && message.content.empty() && message.reasoning.empty() &&
           message.tool_calls.empty() && !message.is_prefix;
}

void check_tool_name(const std::string& name, const std::string& path) {
    const auto is_allowed = [](char c) {
        return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
               std::string_view("_.-/:").find(c) != std::string_view::npos;
    };
    if (name.empty() || name.size() > 256 || !std::all_of(name.begin(), name.end(), is_allowed))
        fail(path, " is \"", printable(name, 60), "\", expected 1 to 256 letters, digits or _.-/:");
}

ToolChoice tool_choice_from_openai(const Json& request, const std::vector<Tool>& tools) {
    const Json* choice = member(request, "tool_choice");
    ToolChoice out{tools.empty() ? ToolChoice::Kind::kNone : ToolChoice::Kind::kAuto, ""};
    if (choice == nullptr) return out;
    if (choice->is_string()) {
        const std::string word = choice->get<std::string>();
        if (word == "none")
            out.kind = ToolChoice::Kind::kNone;
        else if (word == "required")
            out.kind = ToolChoice::Kind::kRequired;
        else if (word != "auto")
            fail("tool_choice is \"", printable(word, 60), "\", expected none, auto, required or a function");
    } else {
        const Json* function = member(*choice, "function");
        out.kind = ToolChoice::Kind::kNamed;
        out.name = string_member(function != nullptr ? *function : *choice, "name", "tool_choice.function");
        const bool is_known =
            std::any_of(tools.begin(), tools.end(), [&out](const Tool& tool) { return tool.name == out.name; });
        if (!is_known) fail("tool_choice names \"", printable(out.name, 60), "\", which is not one of the tools");
    }
    if (tools.empty() && out.kind == ToolChoice::Kind::kRequired) fail("tool_choice is \"required\", without tools");
    return out;
}

const Json* effort_field(const Json& request, const Json& template_args) {
    if (const Json* effort = member(request, "reasoning_effort")) return effort;
    if (const Json* effort = member(template_args, "reasoning_effort")) return effort;
    const Json* reasoning = member(request, "reasoning");
    return reasoning == nullptr ? nullptr : member(*reasoning, "effort");
}

/// 0 for "none".
int effort_from_json(const Json& effort, PromptRevision revision) {
    if (effort.is_string()) {
        const std::string word = effort.get<std::string>();
        return word == "none" ? kEffortUnset : effort_from_word(word, "reasoning_effort");
    }
    const bool is_level = effort.is_number_integer() && effort >= 1 && effort <= kEffortMax;
    if (is_level && revision == PromptRevision::kV4_1) return effort.get<int>();
    fail("reasoning_effort is ", shown(effort), ", expected none, minimal, low, medium, high, xhigh",
         revision == PromptRevision::kV4_1 ? ", max or 1 to 100" : " or max");
}

/// Sections 5.2 and 5.3: the vendor's object wins over the template arguments, these over the effort.
void resolve_thinking(const Json& request, const ChatDefaults& defaults, ChatOptions& options) {
    static const Json kNoArguments = Json::object();
    const Json* found = member(request, "chat_template_kwargs");
    if (found != nullptr && !found->is_object())
        fail("chat_template_kwargs is ", shown(*found), ", expected an object");
    const Json& arguments = found != nullptr ? *found : kNoArguments;
    options.thinking = defaults.thinking;
    options.effort = defaults.effort;
    if (const Json* effort = effort_field(request, arguments)) {
        const int level = effort_from_json(*effort, options.revision);
        options.thinking = level != kEffortUnset;
        if (level != kEffortUnset) options.effort = level;
    }
    for (const char* key : {"enable_thinking", "thinking"})
        if (const auto on = bool_member(arguments, key, "chat_template_kwargs.")) options.thinking = *on;
    if (const Json* thinking = member(request, "thinking")) {
        const std::string type = string_member(*thinking, "type", "thinking");
        if (type != "enabled" && type != "disabled")
            fail("thinking.type is \"", printable(type, 60), "\", expected enabled or disabled");
        options.thinking = type == "enabled";
    }
    options.drop_reasoning = bool_member(arguments, "drop_thinking", "chat_template_kwargs.").value_or(true);
}

std::optional<Json> schema_from_openai(const Json& request) {
    const Json* format = member(request, "response_format");
    if (format == nullptr) return std::nullopt;
    const std::string type = string_member(*format, "type", "response_format");
    if (type == "text" || type == "json_object") return std::nullopt;
    if (type != "json_schema")
        fail("response_format.type is \"", printable(type, 60), "\", expected text, json_object or json_schema");
    const Json* wrapper = member(*format, "json_schema");
    const Json* schema = member(wrapper != nullptr ? *wrapper : *format, "schema");
    if (schema == nullptr || !(schema->is_object() || schema->is_boolean()))
        fail("response_format.json_schema.schema is missing, expected an object");
    return *schema;
}

Task task_from_openai(const Json& request) {
    static const std::pair<const char*, Task> kTasks[] = {
        {"action", Task::kAction}, {"query", Task::kQuery}, {"authority", Task::kAuthority},
        {"domain", Task::kDomain}, {"title", Task::kTitle}, {"read_url", Task::kReadUrl}};
    if (member(request, "task") == nullptr) return Task::kNone;
    const std::string name = string_member(request, "task", "request");
    for (const auto& [word, task] : kTasks)
        if (name == word) return task;
    fail("task is \"", printable(name, 60), "\", expected action, query, authority, domain, title or read_url");
}

/// Section 5.5: which of the three ways the last message is treated.
void resolve_continuation(const Json& request, Chat& chat) {
    const auto opens = bool_member(request, "add_generation_prompt", "");
    const bool continues = bool_member(request, "continue_final_message", "").value_or(false);
    if (continues && opens.value_or(false))
        fail("continue_final_message and add_generation_prompt are both true, expected one of them");
    Message& last = chat.messages.back();
    if (continues && last.role != Role::kAssistant)
        fail("continue_final_message is true, but the last message is not an assistant message");
    for (Message& message : chat.messages) message.is_prefix = message.is_prefix && &message == &last;
    last.is_prefix = last.is_prefix || continues;
    chat.options.open_turn = opens.value_or(true);
}

/// A typed image slot must not become the token of one (section 5.7).
void blunt_image_slots(std::vector<Message>& messages) {
    static const std::string kSlot = "<｜deepseek_image｜>";
    static const std::string kBlunt = "<|deepseek_image|>";
    for (Message& message : messages) {
        if (message.role != Role::kUser) continue;
        for (size_t at = 0; (at = message.content.find(kSlot, at)) != std::string::npos; at += kBlunt.size())
            message.content.replace(at, kSlot.size(), kBlunt);
    }
}

}  // namespace

int effort_from_word(const std::string& word, const std::string& field) {
    if (word == "minimal" || word == "low" || word == "medium") return kEffortLow;
    if (word == "high") return kEffortHigh;
    if (word == "xhigh") return kEffortXhigh;
    if (word == "max") return kEffortMax;
    fail(field, " is \"", printable(word, 60), "\", expected none, minimal, low, medium, high, xhigh or max");
}

std::vector<Message> messages_from_openai(const Json& messages) {
    if (!messages.is_array() || messages.empty()) fail("messages is missing or empty, expected an array of messages");
    std::vector<Message> out;
    for (size_t i = 0; i < messages.size(); ++i) {
        Message message = message_from_openai(messages[i], "messages[" + std::to_string(i) + "]");
        if (!says_nothing(message)) out.push_back(std::move(message));
    }
    if (out.empty()) fail("messages holds nothing but empty assistant messages");
    return out;
}

std::vector<Tool> tools_from_openai(const Json& tools) {
    std::vector<Tool> out;
    if (tools.is_null()) return out;
    if (!tools.is_array()) fail("tools is ", shown(tools), ", expected an array");
    for (size_t i = 0; i < tools.size(); ++i) {
        const std::string path = "tools[" + std::to_string(i) + "]";
        if (const std::string type = string_member(tools[i], "type", path); !type.empty() && type != "function")
            fail(path, ".type is \"", printable(type, 60), "\", expected function");
        const Json* function = member(tools[i], "function");
        if (function == nullptr || !function->is_object()) fail(path, ".function is missing, expected an object");
        Tool tool{string_member(*function, "name", path + ".function"), *function};
        check_tool_name(tool.name, path + ".function.name");
        if (const Json* schema = member(*function, "parameters"); schema != nullptr && !schema->is_object())
            fail(path, ".function.parameters is ", shown(*schema), ", expected an object");
        out.push_back(std::move(tool));
    }
    return out;
}

std::vector<Message> with_system_messages_folded(std::vector<Message> messages, PromptRevision revision) {
    if (revision == PromptRevision::kV4_1) return messages;
    std::vector<Message> out;
    std::string front;
    bool has_front = false;
    bool user_spoke = false;
    for (Message& message : messages) {
        user_spoke = user_spoke || message.role == Role::kUser || message.role == Role::kTool;
        if (message.role != Role::kSystem) {
            out.push_back(std::move(message));
        } else if (user_spoke) {
            Message reminder;
            reminder.content = "<system-reminder>\n" + message.content + "\n</system-reminder>";
            out.push_back(std::move(reminder));
        } else {
            if (!front.empty() && !message.content.empty()) front += "\n\n";
            front += message.content;
            has_front = true;
        }
    }
    if (has_front) {
        Message system;
        system.role = Role::kSystem;
        system.content = std::move(front);
        out.insert(out.begin(), std::move(system));
    }
    return out;
}

Chat chat_from_openai(const Json& request, PromptRevision revision, const ChatDefaults& defaults) {
    if (!request.is_object()) fail("request body is not a JSON object");
    static const Json kNull;
    const auto or_null = [&request](const char* key) -> const Json& {
        const Json* value = member(request, key);
        return value != nullptr ? *value : kNull;
    };
    Chat chat;
    chat.options.revision = revision;
    chat.messages = messages_from_openai(or_null("messages"));
    resolve_continuation(request, chat);
    chat.messages = with_system_messages_folded(std::move(chat.messages), revision);
    if (revision == PromptRevision::kV4_1) blunt_image_slots(chat.messages);
    resolve_thinking(request, defaults, chat.options);
    const std::vector<Tool> tools = tools_from_openai(or_null("tools"));
    chat.options.tool_choice = tool_choice_from_openai(request, tools);
    const bool offers_tools = chat.options.tool_choice.kind != ToolChoice::Kind::kNone;
    if (offers_tools || defaults.keep_unused_tools) chat.options.tools = tools;
    chat.options.parallel_tool_calls = bool_member(request, "parallel_tool_calls", "").value_or(true);
    const std::optional<Json> schema = schema_from_openai(request);
    if (schema && defaults.schema_in_prompt) chat.options.response_schema = schema;
    chat.options.task = task_from_openai(request);
    return chat;
}

}  // namespace thermocline::text
