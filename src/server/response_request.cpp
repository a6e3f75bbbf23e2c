#include "src/server/errors.h"
#include "src/server/fields.h"
#include "src/server/responses.h"

#include <utility>

namespace thermocline::server {
namespace {

[[noreturn]] void refuse(const std::string& path, const std::string& text) {
    throw RequestError(400, path + text, path.substr(0, path.find_first_of(".[")));
}

std::string string_of(const Json& item, const char* key, const std::string& path) {
    const auto text = Fields(item, path + ".").string(key);
    if (!text) refuse(path, "." + std::string(key) + " is missing, expected a string");
    return *text;
}

std::string qualified(const std::string& space, const std::string& name) { return space + "__" + name; }

/// A string, or parts with text joined by `separator`.
std::string joined_text(const Json& content, const std::string& separator, const std::string& path) {
    if (content.is_string()) return content.get<std::string>();
    if (!content.is_array()) refuse(path, " is neither a string nor an array of parts");
    std::string out;
    for (size_t i = 0; i < content.size(); ++i) {
        const std::string part_path = path + "[" + std::to_string(i) + "]";
        if (!content[i].is_object()) refuse(part_path, " is not an object");
        const std::string type = string_of(content[i], "type", part_path);
        const bool is_text = type == "input_text" || type == "output_text" || type == "text" ||
                             type == "reasoning_text" || type == "summary_text";
        if (!is_text && type != "refusal")
            refuse(part_path, ": " + printable(type, 60) + " is not supported by this model");
        if (i > 0) out += separator;
        out += string_of(content[i], is_text ? "text" : "refusal", part_path);
    }
    return out;
}

/// Collects chat messages; consecutive items of the assistant form one message.
class Turns {
public:
    void add_item(const Json& item, const std::string& path);
    void add(const std::string& role, std::string content) {
        is_assistant_ = false;
        messages_.push_back({{"role", role}, {"content", std::move(content)}});
    }
    Json take() { return std::move(messages_); }

private:
    Json& assistant() {
        if (!std::exchange(is_assistant_, true)) messages_.push_back({{"role", "assistant"}, {"content", ""}});
        return messages_.back();
    }
    static void append(Json& message, const char* key, const std::string& text) {
        message[key] = message.value(key, "") + text;
    }
    void add_message(const Fields& item, const std::string& path);
    void add_call(const Json& item, const std::string& path);
    void add_output(const Json& item, const std::string& path);

    Json messages_ = Json::array();
    bool is_assistant_ = false;
};

void Turns::add_message(const Fields& item, const std::string& path) {
    const std::string role = item.string("role").value_or("");
    const Json* content = item.find("content");
    if (content == nullptr) refuse(path, ".content is missing, expected a string or an array of parts");
    if (role == "assistant") {
        append(assistant(), "content", joined_text(*content, "", path + ".content"));
    } else if (role == "user" || role == "system" || role == "developer") {
        add(role, joined_text(*content, "\n\n", path + ".content"));
    } else {
        refuse(path, ".role is \"" + printable(role, 60) + "\", expected user, assistant, system or developer");
    }
}

void Turns::add_call(const Json& item, const std::string& path) {
    const Fields fields(item, path + ".");
    std::string name = string_of(item, "name", path);
    if (const auto space = fields.string("namespace")) name = qualified(*space, name);
    assistant()["tool_calls"].push_back(
        {{"id", string_of(item, "call_id", path)},
         {"type", "function"},
         {"function", {{"name", name}, {"arguments", fields.string("arguments").value_or("")}}}});
}

void Turns::add_output(const Json& item, const std::string& path) {
    const Json* output = Fields(item).find("output");
    is_assistant_ = false;
    messages_.push_back({{"role", "tool"},
                         {"tool_call_id", string_of(item, "call_id", path)},
                         {"content", output == nullptr ? "" : joined_text(*output, "\n", path + ".output")}});
}

void Turns::add_item(const Json& item, const std::string& path) {
    if (!item.is_object()) refuse(path, " is not an object");
    const Fields fields(item, path + ".");
    const std::string type = fields.string("type").value_or("message");
    if (type == "message") {
        add_message(fields, path);
    } else if (type == "function_call") {
        add_call(item, path);
    } else if (type == "function_call_output") {
        add_output(item, path);
    } else if (type == "reasoning") {
        if (const Json* content = fields.find("content"))
            append(assistant(), "reasoning_content", joined_text(*content, "", path + ".content"));
    } else {
        refuse(path, ".type is \"" + printable(type, 60) +
                         "\", expected message, reasoning, function_call or function_call_output");
    }
}

Json chat_messages(const Fields& fields) {
    Turns turns;
    if (const auto instructions = fields.string("instructions"); instructions && !instructions->empty())
        turns.add("system", *instructions);
    const Json* input = fields.find("input");
    if (input != nullptr && input->is_string()) {
        turns.add("user", input->get<std::string>());
    } else if (input != nullptr && input->is_array() && !input->empty()) {
        for (size_t i = 0; i < input->size(); ++i) turns.add_item((*input)[i], "input[" + std::to_string(i) + "]");
    } else {
        fields.refuse("input", "a string or an array of at least one item");
    }
    return turns.take();
}

/// The function objects of "tools": here name and schema stand beside the type.
void add_function(const Json& tool, const std::string& space, const std::string& path, ResponseRequest& request) {
    const Fields fields(tool, path + ".");
    std::string name = string_of(tool, "name", path);
    if (!space.empty()) {
        const std::string whole = qualified(space, name);
        request.namespaced[whole] = {name, space};
        name = whole;
    }
    Json function = {{"name", name}};
    for (const char* key : {"description", "parameters", "strict"})
        if (const Json* value = fields.find(key)) function[key] = *value;
    request.chat["tools"].push_back({{"type", "function"}, {"function", std::move(function)}});
}

/// Tools of other types run on OpenAI's servers: they are left out where functions remain.
void read_tools(const Fields& fields, ResponseRequest& request) {
    const Json* tools = fields.find("tools");
    if (tools == nullptr) return;
    if (!tools->is_array()) fields.refuse("tools", "an array");
    request.chat["tools"] = Json::array();
    for (size_t i = 0; i < tools->size(); ++i) {
        const std::string path = "tools[" + std::to_string(i) + "]";
        const Json& tool = (*tools)[i];
        if (!tool.is_object()) refuse(path, " is not an object");
        const std::string type = string_of(tool, "type", path);
        if (type == "function") {
            add_function(tool, "", path, request);
        } else if (type == "namespace") {
            const Json* inner = Fields(tool).find("tools");
            if (inner == nullptr || !inner->is_array()) refuse(path, ".tools is missing, expected an array");
            for (size_t k = 0; k < inner->size(); ++k) {
                const std::string inner_path = path + ".tools[" + std::to_string(k) + "]";
                if (!(*inner)[k].is_object()) refuse(inner_path, " is not an object");
                add_function((*inner)[k], string_of(tool, "name", path), inner_path, request);
            }
        }
    }
    if (request.chat["tools"].empty() && !tools->empty())
        refuse("tools", " holds no function, and this server runs no tools of its own");
}

void read_tool_choice(const Fields& fields, Json& chat) {
    const Json* choice = fields.find("tool_choice");
    if (choice == nullptr || !chat.contains("tools")) return;
    if (choice->is_string()) {
        chat["tool_choice"] = *choice;
        return;
    }
    if (!choice->is_object()) fields.refuse("tool_choice", "none, auto, required or a function");
    std::string name = string_of(*choice, "name", "tool_choice");
    if (const auto space = Fields(*choice).string("namespace")) name = qualified(*space, name);
    chat["tool_choice"] = {{"type", "function"}, {"function", {{"name", name}}}};
}

/// "text": {"format": {...}} is the response_format of a chat, with the schema one level higher.
void read_format(const Fields& fields, Json& chat) {
    const Json* text = fields.find("text");
    if (text == nullptr) return;
    if (!text->is_object()) fields.refuse("text", "an object");
    const Json* format = Fields(*text).find("format");
    if (format == nullptr) return;
    if (!format->is_object()) refuse("text.format", " is not an object");
    const std::string type = string_of(*format, "type", "text.format");
    if (type != "json_schema") {
        chat["response_format"] = {{"type", type}};
        return;
    }
    Json schema = *format;
    schema.erase("type");
    chat["response_format"] = {{"type", "json_schema"}, {"json_schema", std::move(schema)}};
}

void refuse_stored(const Fields& fields) {
    if (fields.has("previous_response_id"))
        fields.refuse("previous_response_id", "null: this server stores no responses, send the whole input");
    if (fields.boolean("background", false)) fields.refuse("background", "false: this server stores no responses");
}

/// What the response repeats, given or not.
Json echo_of(const Fields& fields, const Json& chat) {
    const auto given = [&fields](const char* key, Json absent) {
        const Json* value = fields.find(key);
        return value == nullptr ? absent : *value;
    };
    const Json* text = fields.find("text");
    const bool has_format = text != nullptr && text->is_object() && Fields(*text).has("format");
    return {{"parallel_tool_calls", given("parallel_tool_calls", true)},
            {"tool_choice", given("tool_choice", "auto")},
            {"tools", given("tools", Json::array())},
            {"temperature", given("temperature", nullptr)},
            {"top_p", given("top_p", nullptr)},
            {"max_output_tokens", given("max_output_tokens", nullptr)},
            {"instructions", given("instructions", nullptr)},
            {"metadata", given("metadata", Json::object())},
            {"text", {{"format", has_format ? *Fields(*text).find("format") : Json{{"type", "text"}}}}},
            {"reasoning",
             {{"effort", chat.contains("reasoning_effort") ? chat["reasoning_effort"] : Json(nullptr)},
              {"summary", nullptr}}},
            {"previous_response_id", nullptr},
            {"prompt_cache_key", given("prompt_cache_key", nullptr)},
            {"store", false},
            {"truncation", "disabled"}};
}

}  // namespace

ResponseRequest read_response_request(const Json& body) {
    const Fields fields(body);
    refuse_stored(fields);
    ResponseRequest request;
    Json& chat = request.chat = Json::object();
    for (const char* key : {"model", "stream", "temperature", "top_p", "parallel_tool_calls"})
        if (const Json* value = fields.find(key)) chat[key] = *value;
    if (const auto most = fields.integer("max_output_tokens", 1)) chat["max_tokens"] = *most;
    if (const Json* reasoning = fields.find("reasoning")) {
        if (!reasoning->is_object()) fields.refuse("reasoning", "an object");
        if (const Json* effort = Fields(*reasoning).find("effort")) chat["reasoning_effort"] = *effort;
    }
    chat["messages"] = chat_messages(fields);
    read_tools(fields, request);
    read_tool_choice(fields, chat);
    read_format(fields, chat);
    request.echo = echo_of(fields, chat);
    return request;
}

}  // namespace thermocline::server
