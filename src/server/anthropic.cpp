#include "src/server/anthropic.h"

#include "src/server/errors.h"
#include "src/server/fields.h"

#include <algorithm>
#include <utility>

namespace thermocline::server {
namespace {

using Kind = text::OutputEvent::Kind;

/// When a request does not say, as llama-server.
constexpr int64_t kDefaultMaxTokens = 4096;

/// Clients demand a signature and send it back; nothing reads it.
constexpr const char* kSignature = "thermocline";

[[noreturn]] void refuse(const std::string& path, const std::string& text) {
    throw RequestError(400, path + text, path.substr(0, path.find_first_of(".[")));
}

std::string type_of(const Json& block, const std::string& path) {
    if (!block.is_object()) refuse(path, " is not an object");
    const auto type = Fields(block, path + ".").string("type");
    if (!type) refuse(path, ".type is missing, expected a string");
    return *type;
}

std::string text_of(const Json& block, const char* key, const std::string& path) {
    const auto text = Fields(block, path + ".").string(key);
    if (!text) refuse(path, "." + std::string(key) + " is missing, expected a string");
    return *text;
}

[[noreturn]] void refuse_block(const std::string& type, const std::string& path) {
    if (type == "image" || type == "document") refuse(path, ": " + type + " input is not supported by this model");
    refuse(path, ".type is \"" + printable(type, 60) + "\", not supported here");
}

/// A string, or text blocks joined by `separator`.
std::string joined_text(const Json& content, const std::string& separator, const std::string& path) {
    if (content.is_string()) return content.get<std::string>();
    if (!content.is_array()) refuse(path, " is neither a string nor an array of blocks");
    std::string out;
    for (size_t i = 0; i < content.size(); ++i) {
        const std::string block_path = path + "[" + std::to_string(i) + "]";
        const std::string type = type_of(content[i], block_path);
        if (type != "text") refuse_block(type, block_path);
        const std::string text = text_of(content[i], "text", block_path);
        // A version text that differs between conversations: in front of everything, no prefix would ever be shared.
        if (text.starts_with("x-anthropic-billing-header")) continue;
        if (!out.empty()) out += separator;
        out += text;
    }
    return out;
}

Json tool_message(const Json& block, const std::string& path) {
    const Fields fields(block, path + ".");
    const Json* content = fields.find("content");
    const std::string text = content == nullptr ? "" : joined_text(*content, "\n", path + ".content");
    return {{"role", "tool"}, {"tool_call_id", text_of(block, "tool_use_id", path)}, {"content", text}};
}

/// Tool results stand before the text of the same message, whatever their order was.
void add_user(const Json& content, const std::string& path, Json& messages) {
    if (!content.is_array()) {
        messages.push_back({{"role", "user"}, {"content", joined_text(content, "", path)}});
        return;
    }
    Json parts = Json::array();
    for (size_t i = 0; i < content.size(); ++i) {
        const std::string block_path = path + "[" + std::to_string(i) + "]";
        const std::string type = type_of(content[i], block_path);
        if (type == "tool_result") {
            messages.push_back(tool_message(content[i], block_path));
        } else if (type == "text") {
            parts.push_back({{"type", "text"}, {"text", text_of(content[i], "text", block_path)}});
        } else {
            refuse_block(type, block_path);
        }
    }
    if (!parts.empty() || content.empty()) messages.push_back({{"role", "user"}, {"content", std::move(parts)}});
}

void add_assistant(const Json& content, const std::string& path, Json& messages) {
    if (!content.is_array()) {
        messages.push_back({{"role", "assistant"}, {"content", joined_text(content, "", path)}});
        return;
    }
    std::string text, reasoning;
    Json calls = Json::array();
    for (size_t i = 0; i < content.size(); ++i) {
        const Json& block = content[i];
        const std::string block_path = path + "[" + std::to_string(i) + "]";
        const std::string type = type_of(block, block_path);
        if (type == "text") {
            text += text_of(block, "text", block_path);
        } else if (type == "thinking") {
            reasoning += text_of(block, "thinking", block_path);
        } else if (type == "tool_use") {
            const Json* input = Fields(block, block_path + ".").find("input");
            calls.push_back({{"id", text_of(block, "id", block_path)},
                             {"type", "function"},
                             {"function",
                              {{"name", text_of(block, "name", block_path)},
                               {"arguments", input == nullptr ? Json("{}") : Json(dump_json(*input))}}}});
        } else if (type != "redacted_thinking") {
            refuse_block(type, block_path);
        }
    }
    Json message = {{"role", "assistant"}, {"content", text}};
    if (!reasoning.empty()) message["reasoning_content"] = reasoning;
    if (!calls.empty()) message["tool_calls"] = std::move(calls);
    messages.push_back(std::move(message));
}

Json chat_messages(const Fields& fields) {
    Json out = Json::array();
    if (const Json* system = fields.find("system")) {
        std::string text = joined_text(*system, "\n\n", "system");
        if (!text.empty()) out.push_back({{"role", "system"}, {"content", std::move(text)}});
    }
    const Json* messages = fields.find("messages");
    if (messages == nullptr || !messages->is_array() || messages->empty())
        fields.refuse("messages", "an array of at least one message");
    for (size_t i = 0; i < messages->size(); ++i) {
        const std::string path = "messages[" + std::to_string(i) + "]";
        if (!(*messages)[i].is_object()) refuse(path, " is not an object");
        const Fields message((*messages)[i], path + ".");
        const std::string role = message.string("role").value_or("");
        const Json* content = message.find("content");
        if (content == nullptr) refuse(path, ".content is missing, expected a string or an array of blocks");
        if (role == "user") {
            add_user(*content, path + ".content", out);
        } else if (role == "assistant") {
            add_assistant(*content, path + ".content", out);
        } else if (role == "system") {  // Claude Code sends such messages
            out.push_back({{"role", "system"}, {"content", joined_text(*content, "\n\n", path + ".content")}});
        } else {
            refuse(path, ".role is \"" + printable(role, 60) + "\", expected user, assistant or system");
        }
    }
    return out;
}

/// Anthropic's own tools (web_search_..., bash_...) name no schema and run on Anthropic's servers: they are left out.
Json chat_tools(const Fields& fields) {
    Json out = Json::array();
    const Json* tools = fields.find("tools");
    if (tools == nullptr) return out;
    if (!tools->is_array()) fields.refuse("tools", "an array");
    for (size_t i = 0; i < tools->size(); ++i) {
        const std::string path = "tools[" + std::to_string(i) + "]";
        if (!(*tools)[i].is_object()) refuse(path, " is not an object");
        const Fields tool((*tools)[i], path + ".");
        if (const auto type = tool.string("type"); type && *type != "custom") continue;
        Json function = {{"name", text_of((*tools)[i], "name", path)}};
        if (const auto description = tool.string("description")) function["description"] = *description;
        if (const Json* schema = tool.find("input_schema")) function["parameters"] = *schema;
        out.push_back({{"type", "function"}, {"function", std::move(function)}});
    }
    return out;
}

void set_tool_choice(const Fields& fields, Json& chat) {
    const Json* choice = fields.find("tool_choice");
    if (choice == nullptr) return;
    const std::string type = type_of(*choice, "tool_choice");
    const Fields inner(*choice, "tool_choice.");
    if (type == "auto" || type == "none") {
        chat["tool_choice"] = type;
    } else if (type == "any") {
        chat["tool_choice"] = "required";
    } else if (type == "tool") {
        chat["tool_choice"] = {{"type", "function"}, {"function", {{"name", text_of(*choice, "name", "tool_choice")}}}};
    } else {
        refuse("tool_choice", ".type is \"" + printable(type, 60) + "\", expected auto, any, tool or none");
    }
    if (inner.boolean("disable_parallel_tool_use", false)) chat["parallel_tool_calls"] = false;
}

void set_thinking(const Fields& fields, bool think_by_default, Json& chat) {
    bool thinks = think_by_default;
    if (const Json* thinking = fields.find("thinking")) {
        const std::string type = type_of(*thinking, "thinking");
        if (type != "enabled" && type != "adaptive" && type != "disabled")
            refuse("thinking", ".type is \"" + printable(type, 60) + "\", expected enabled, adaptive or disabled");
        thinks = type != "disabled";
        if (const auto budget = Fields(*thinking, "thinking.").integer("budget_tokens", 1); budget && thinks)
            chat["thinking_token_budget"] = *budget;
    }
    chat["thinking"] = {{"type", thinks ? "enabled" : "disabled"}};
    const Json* config = fields.find("output_config");
    if (config == nullptr) return;
    if (!config->is_object()) fields.refuse("output_config", "an object");
    const Fields inner(*config, "output_config.");
    if (const auto effort = inner.string("effort"); effort && thinks) chat["reasoning_effort"] = *effort;
    if (const Json* format = inner.find("format")) {
        if (type_of(*format, "output_config.format") != "json_schema")
            refuse("output_config", ".format.type is not \"json_schema\"");
        const Json* schema = Fields(*format).find("schema");
        if (schema == nullptr) refuse("output_config", ".format.schema is missing, expected an object");
        chat["response_format"] = {{"type", "json_schema"}, {"json_schema", {{"name", "answer"}, {"schema", *schema}}}};
    }
}

Json stop_reason_of(const Ending& ending) {
    if (ending.stop_string) return "stop_sequence";
    switch (ending.reason) {
        case text::FinishReason::kLength:
            return "max_tokens";
        case text::FinishReason::kToolCalls:
            return "tool_use";
        default:
            return "end_turn";
    }
}

}  // namespace

Json chat_body_from_messages(const Json& body, bool think_by_default) {
    const Fields fields(body);
    Json chat = Json::object();
    for (const char* key : {"model", "stream", "temperature", "top_p", "top_k"})
        if (const Json* value = fields.find(key)) chat[key] = *value;
    chat["max_tokens"] = fields.integer("max_tokens", 1).value_or(kDefaultMaxTokens);
    if (const Json* stops = fields.find("stop_sequences")) {
        if (!stops->is_array() || stops->size() > kMaxStops)
            fields.refuse("stop_sequences", "an array of at most " + std::to_string(kMaxStops) + " strings");
        chat["stop"] = *stops;
    }
    chat["messages"] = chat_messages(fields);
    chat["tools"] = chat_tools(fields);
    if (!chat["tools"].empty()) set_tool_choice(fields, chat);
    set_thinking(fields, think_by_default, chat);
    return chat;
}

Json MessageStream::usage() const {
    return {{"input_tokens", tally_.prompt_tokens() - cached_tokens_},
            {"cache_read_input_tokens", cached_tokens_},
            {"cache_creation_input_tokens", 0},
            {"output_tokens", tally_.output_tokens()}};
}

/// A block as it stands in an answer: the input of a call as JSON.
Json MessageStream::block_json(const Json& block) const {
    if (block["type"] != "tool_use") return block;
    Json whole = block;
    const std::string text = block["input"].get<std::string>();
    try {
        whole["input"] = text.empty() ? Json::object() : parse_json(text, "arguments");
    } catch (const Error&) {  // cut by max_tokens
        whole["input"] = Json::object();
    }
    return whole;
}

Json MessageStream::message() const {
    Json content = Json::array();
    for (const Json& block : blocks_) content.push_back(block_json(block));
    return {{"id", head_.id},
            {"type", "message"},
            {"role", "assistant"},
            {"model", head_.model->name},
            {"content", std::move(content)},
            {"stop_reason", stop_reason_},
            {"stop_sequence", stop_sequence_},
            {"usage", usage()}};
}

std::string MessageStream::begin() {
    if (std::exchange(has_begun_, true)) return "";
    Json start = message();
    start["usage"]["output_tokens"] = 0;
    return named_sse_event({{"type", "message_start"}, {"message", std::move(start)}});
}

std::string MessageStream::open(const std::string& type, Json block) {
    if (is_open_ && type != "tool_use" && blocks_.back()["type"] == type) return "";
    std::string out = close();
    is_open_ = true;
    blocks_.push_back(block);
    if (type == "tool_use") block["input"] = Json::object();
    return out +
           named_sse_event(
               {{"type", "content_block_start"}, {"index", blocks_.size() - 1}, {"content_block", std::move(block)}});
}

std::string MessageStream::append(const std::string& delta_type, const std::string& key, const std::string& text) {
    return named_sse_event({{"type", "content_block_delta"},
                            {"index", blocks_.size() - 1},
                            {"delta", {{"type", delta_type}, {key, text}}}});
}

std::string MessageStream::close() {
    if (!std::exchange(is_open_, false)) return "";
    std::string out;
    if (blocks_.back()["type"] == "thinking") {
        blocks_.back()["signature"] = kSignature;
        out = append("signature_delta", "signature", kSignature);
    }
    return out + named_sse_event({{"type", "content_block_stop"}, {"index", blocks_.size() - 1}});
}

std::string MessageStream::add(const text::OutputEvent& event) {
    const auto extend = [this, &event](const char* member) {
        blocks_.back()[member].get_ref<std::string&>() += event.text;
    };
    std::string out;
    switch (event.kind) {
        case Kind::kReasoning:
            out = open("thinking", {{"type", "thinking"}, {"thinking", ""}, {"signature", ""}});
            extend("thinking");
            return out + append("thinking_delta", "thinking", event.text);
        case Kind::kContent:
            out = open("text", {{"type", "text"}, {"text", ""}});
            extend("text");
            return out + append("text_delta", "text", event.text);
        case Kind::kCallBegin:
            return open(
                "tool_use",
                {{"type", "tool_use"}, {"id", text::make_call_id("toolu_")}, {"name", event.text}, {"input", ""}});
        case Kind::kCallArguments:
            extend("input");
            return append("input_json_delta", "partial_json", event.text);
        case Kind::kCallEnd:
            return close();
        default:
            return "";
    }
}

std::string MessageStream::on(Delta delta) {
    tally_.add(delta);
    if (delta.prefilled >= 0) cached_tokens_ = delta.prefill_start;
    std::string out;
    if (!delta.tokens.empty() || delta.ending) out = begin();
    for (const text::OutputEvent& event : delta.events)
        if (!event.text.empty() || event.kind == Kind::kCallEnd) out += add(event);
    if (!delta.ending) return out;
    if (blocks_.empty()) out += open("text", {{"type", "text"}, {"text", ""}});
    out += close();
    stop_reason_ = stop_reason_of(*delta.ending);
    if (delta.ending->stop_string) stop_sequence_ = *delta.ending->stop_string;
    out += named_sse_event({{"type", "message_delta"},
                            {"delta", {{"stop_reason", stop_reason_}, {"stop_sequence", stop_sequence_}}},
                            {"usage", usage()}});
    return out + named_sse_event({{"type", "message_stop"}});
}

std::string MessageStream::ping() const { return named_sse_event({{"type", "ping"}}); }

std::string MessageStream::failure(const RequestError& error, const std::string& request_id) {
    return named_sse_event(anthropic_error_json(error, request_id));
}

MessageJob::MessageJob(ChatCall call, const Backend& served)
    : ChatJob(std::move(call), served, "msg_"), whole_(head_, call_, tally_) {}

std::unique_ptr<EventStream> MessageJob::new_stream() { return std::make_unique<MessageStream>(head_, call_, tally_); }

}  // namespace thermocline::server
