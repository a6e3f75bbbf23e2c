#include "src/text/call_arguments.h"

#include "src/text/python_json.h"

#include <algorithm>
#include <utility>

namespace thermocline::text {

namespace {

std::string trimmed(std::string_view text) {
    constexpr std::string_view kSpace = " \t\r\n";
    const size_t first = text.find_first_not_of(kSpace);
    if (first == std::string_view::npos) return "";
    return std::string(text.substr(first, text.find_last_not_of(kSpace) - first + 1));
}

}  // namespace

CallArguments::CallArguments(const Tool* tool) {
    if (tool == nullptr || !tool->function.is_object()) return;
    const auto schema = tool->function.find("parameters");
    if (schema == tool->function.end() || !schema->is_object()) return;
    const auto properties = schema->find("properties");
    if (properties != schema->end() && properties->is_object()) properties_ = &*properties;
}

std::string CallArguments::open_parameter(const std::string& key) {
    if (++parameters_ == 1)
        may_wrap_ = (key == "arguments" || key == "input") && !(properties_ != nullptr && properties_->contains(key));
    return (parameters_ == 1 ? "{" : ", ") + python_json_string(key) + ": ";
}

std::string CallArguments::open_string(const std::string& key) { return send(open_parameter(key) + "\""); }

std::string CallArguments::string_piece(std::string_view characters) {
    if (may_wrap_) wrapped_ += characters;
    std::string escaped;
    append_json_escaped(escaped, characters);
    return send(std::move(escaped));
}

std::string CallArguments::close_string() { return send("\""); }

std::string CallArguments::json_value(const std::string& key, const std::string& value) {
    const std::string opening = open_parameter(key);
    if (may_wrap_) wrapped_ += value;
    return send(opening + (python_json_text(value) ? value : python_json_string(value)));
}

bool CallArguments::whole_object(std::string_view body) {
    if (!python_json_members(body)) return false;
    whole_object_ = trimmed(body);
    return true;
}

std::string CallArguments::end() {
    if (!whole_object_.empty()) return whole_object_;
    if (parameters_ == 0) return "{}";
    if (may_wrap_ && wraps_arguments()) return trimmed(wrapped_);
    return collected_ + "}";
}

/// Rule 6: the only parameter's value is an object, or a string that holds one, of nothing but declared keys. Where the
/// request brings no schema every key counts as declared.
bool CallArguments::wraps_arguments() const {
    if (parameters_ != 1) return false;
    const auto members = python_json_members(wrapped_);
    return members && std::all_of(members->begin(), members->end(), [this](const JsonMember& member) {
               return properties_ == nullptr || properties_->contains(member.key);
           });
}

std::string CallArguments::send(std::string text) {
    if (!may_wrap_) return text;
    collected_ += text;
    return "";
}

}  // namespace thermocline::text
