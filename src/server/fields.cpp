#include "src/server/fields.h"

#include "src/base/error.h"
#include "src/server/errors.h"

#include <algorithm>
#include <cmath>
#include <utility>
#include <vector>

namespace thermocline::server {
namespace {

constexpr int kMaxDepth = 64;
constexpr size_t kMaxMembers = 2048;

/// Refuses objects with absurdly many members: an ordered object is a list, filling it takes quadratic time.
void check_members(std::string_view text, const std::string& what) {
    std::vector<size_t> allowed;  // commas that each open bracket may still have
    bool in_string = false;
    for (size_t i = 0; i < text.size(); ++i) {
        const char c = text[i];
        if (in_string) {
            if (c == '\\')
                ++i;
            else if (c == '"')
                in_string = false;
        } else if (c == '"') {
            in_string = true;
        } else if (c == '{' || c == '[') {
            allowed.push_back(c == '{' ? kMaxMembers : SIZE_MAX);
            if (allowed.size() > kMaxDepth) {
                throw RequestError(400, what + " is nested deeper than " + std::to_string(kMaxDepth) + " levels");
            }
        } else if (c == '}' || c == ']') {
            if (!allowed.empty()) allowed.pop_back();
        } else if (c == ',' && !allowed.empty() && --allowed.back() == 0) {
            throw RequestError(400, what + " has an object with more than " + std::to_string(kMaxMembers) + " members");
        }
    }
}

}  // namespace

Fields::Fields(const Json& object, std::string prefix) : object_(object), prefix_(std::move(prefix)) {}

const Json* Fields::find(const std::string& key) const {
    const auto found = object_.find(key);
    return found == object_.end() || found->is_null() ? nullptr : &*found;
}

void Fields::refuse(const std::string& key, const std::string& expected) const {
    const Json* value = find(key);
    const std::string shown = value == nullptr ? "missing" : printable(dump_json(*value), 60);
    throw RequestError(400, prefix_ + key + " is " + shown + ", expected " + expected, prefix_ + key);
}

std::optional<double> Fields::number(const std::string& key, double least, double most) const {
    const Json* value = find(key);
    if (value == nullptr) return std::nullopt;
    Json bounds = {least, most};
    const std::string expected = "a number from " + dump_json(bounds[0]) + " to " + dump_json(bounds[1]);
    if (!value->is_number()) refuse(key, expected);
    const double number = value->get<double>();
    if (!(number >= least && number <= most)) refuse(key, expected);
    return number;
}

std::optional<int64_t> Fields::integer(const std::string& key, int64_t least, int64_t most) const {
    const Json* value = find(key);
    if (value == nullptr) return std::nullopt;
    const std::optional<int64_t> number = as_integer(*value);
    if (!number || *number < least || *number > most) {
        refuse(key, most == std::numeric_limits<int64_t>::max()
                        ? "an integer >= " + std::to_string(least)
                        : "an integer from " + std::to_string(least) + " to " + std::to_string(most));
    }
    return number;
}

bool Fields::boolean(const std::string& key, bool absent) const {
    const Json* value = find(key);
    if (value == nullptr) return absent;
    if (!value->is_boolean()) refuse(key, "true or false");
    return value->get<bool>();
}

std::optional<std::string> Fields::string(const std::string& key) const {
    const Json* value = find(key);
    if (value == nullptr) return std::nullopt;
    if (!value->is_string()) refuse(key, "a string");
    return value->get<std::string>();
}

std::vector<int64_t> Fields::integers(const std::string& key, size_t limit) const {
    std::vector<int64_t> out;
    const Json* value = find(key);
    if (value == nullptr) return out;
    const std::string expected = "an array of at most " + std::to_string(limit) + " integers";
    if (!value->is_array() || value->size() > limit) refuse(key, expected);
    for (const Json& item : *value) {
        const std::optional<int64_t> number = as_integer(item);
        if (!number) refuse(key, expected);
        out.push_back(*number);
    }
    return out;
}

Json parse_client_json(std::string_view text, const std::string& what) {
    check_members(text, what);
    try {
        return parse_json(text, what);
    } catch (const Error& error) {
        throw RequestError(400, error.what());
    }
}

std::optional<int64_t> as_integer(const Json& value) {
    if (value.is_number_unsigned()) {
        const auto number = value.get<uint64_t>();
        if (number > static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) return std::nullopt;
        return static_cast<int64_t>(number);
    }
    if (value.is_number_integer()) return value.get<int64_t>();
    if (!value.is_number_float()) return std::nullopt;
    const double number = value.get<double>();
    if (std::trunc(number) != number || std::fabs(number) > 0x1.0p53) return std::nullopt;
    return static_cast<int64_t>(number);
}

}  // namespace thermocline::server
