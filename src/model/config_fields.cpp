#include "src/model/config_fields.h"

#include "src/base/error.h"

#include <cmath>
#include <type_traits>

namespace thermocline::model {

namespace {

std::string range(const auto low, const auto high) {
    std::ostringstream text;
    text << (std::is_integral_v<decltype(low)> ? "an integer from " : "a number from ") << low << " to " << high;
    return text.str();
}

std::optional<int64_t> exact_integer(const Json& value) {
    if (value.is_number_unsigned() && value.get<uint64_t>() > static_cast<uint64_t>(INT64_MAX)) return std::nullopt;
    if (value.is_number_integer()) return value.get<int64_t>();
    if (!value.is_number_float()) return std::nullopt;
    const double number = value.get<double>();  // "10000.0" is a fair spelling of an integer
    if (std::abs(number) > 9e15 || number != std::floor(number)) return std::nullopt;
    return static_cast<int64_t>(number);
}

}  // namespace

ConfigFields::ConfigFields(const Json& json, std::string where) : json_(&json), where_(std::move(where)) {
    if (!json.is_object()) fail(where_, ": is ", json.type_name(), ", expected an object");
}

const Json* ConfigFields::find(Names names, const char** spelled) const {
    for (const char* name : names) {
        const auto it = json_->find(name);
        if (it != json_->end() && !it->is_null()) {
            if (spelled) *spelled = name;
            return &*it;
        }
    }
    return nullptr;
}

void ConfigFields::wrong(const char* name, const std::string& expected) const {
    const auto it = json_->find(name);
    if (it == json_->end()) fail(where_, ": ", name, " is missing, expected ", expected);
    fail(where_, ": ", name, " is ", printable(dump_json(*it), 60), ", expected ", expected);
}

int64_t ConfigFields::integer(Names names, int64_t low, int64_t high) const {
    const char* name = *names.begin();
    const Json* value = find(names, &name);
    const auto number = value ? exact_integer(*value) : std::nullopt;
    if (!number || *number < low || *number > high) wrong(name, range(low, high));
    return *number;
}

int64_t ConfigFields::integer_or(Names names, int64_t low, int64_t high, int64_t fallback) const {
    return has(names) ? integer(names, low, high) : fallback;
}

double ConfigFields::number(Names names, double low, double high) const {
    const char* name = *names.begin();
    const Json* value = find(names, &name);
    if (!value || !value->is_number()) wrong(name, range(low, high));
    const double number = value->get<double>();
    if (!(number >= low && number <= high)) wrong(name, range(low, high));
    return number;
}

double ConfigFields::number_or(Names names, double low, double high, double fallback) const {
    return has(names) ? number(names, low, high) : fallback;
}

bool ConfigFields::boolean_or(Names names, bool fallback) const {
    const char* name = nullptr;
    const Json* value = find(names, &name);
    if (!value) return fallback;
    if (!value->is_boolean()) wrong(name, "true or false");
    return value->get<bool>();
}

std::string ConfigFields::string_or(Names names, const std::string& fallback) const {
    const char* name = nullptr;
    const Json* value = find(names, &name);
    if (!value) return fallback;
    if (!value->is_string()) wrong(name, "a string");
    return value->get<std::string>();
}

std::vector<int64_t> ConfigFields::integers(Names names, size_t least, int64_t low, int64_t high) const {
    const char* name = *names.begin();
    const Json* value = find(names, &name);
    const std::string expected =
        "at least " + std::to_string(least) + " integers from " + std::to_string(low) + " to " + std::to_string(high);
    if (!value || !value->is_array() || value->size() < least) wrong(name, expected);
    std::vector<int64_t> out;
    for (const Json& item : *value) {
        const auto number = exact_integer(item);
        if (!number || *number < low || *number > high) wrong(name, expected);
        out.push_back(*number);
    }
    return out;
}

std::vector<std::string> ConfigFields::strings(Names names, size_t least) const {
    const char* name = *names.begin();
    const Json* value = find(names, &name);
    const std::string expected = "at least " + std::to_string(least) + " strings";
    if (!value || !value->is_array() || value->size() < least) wrong(name, expected);
    std::vector<std::string> out;
    for (const Json& item : *value) {
        if (!item.is_string()) wrong(name, expected);
        out.push_back(item.get<std::string>());
    }
    return out;
}

std::optional<ConfigFields> ConfigFields::object(Names names) const {
    const char* name = nullptr;
    const Json* value = find(names, &name);
    if (!value) return std::nullopt;
    return ConfigFields(*value, where_ + ": " + name);
}

}  // namespace thermocline::model
