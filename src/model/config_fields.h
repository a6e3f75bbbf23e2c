// Reads config.json field by field: each accessor takes the published spellings of a field (DeepSeek's own and HF's),
// a range, and throws an Error that names field, value and range. No value leaves here unchecked.
#pragma once

#include "src/base/json.h"

#include <cstdint>
#include <initializer_list>
#include <optional>
#include <string>
#include <vector>

namespace thermocline::model {

class ConfigFields {
public:
    using Names = std::initializer_list<const char*>;

    /// `where` starts every message ("config.json", "config.json: rope_scaling"). The JSON must outlive this.
    ConfigFields(const Json& json, std::string where);

    bool has(Names names) const { return find(names) != nullptr; }
    int64_t integer(Names names, int64_t low, int64_t high) const;
    int64_t integer_or(Names names, int64_t low, int64_t high, int64_t fallback) const;
    double number(Names names, double low, double high) const;
    double number_or(Names names, double low, double high, double fallback) const;
    bool boolean_or(Names names, bool fallback) const;
    std::string string_or(Names names, const std::string& fallback) const;
    /// At least `least` integers in [low, high].
    std::vector<int64_t> integers(Names names, size_t least, int64_t low, int64_t high) const;
    std::vector<std::string> strings(Names names, size_t least) const;
    /// An object field, or nothing if it is absent or null.
    std::optional<ConfigFields> object(Names names) const;
    [[noreturn]] void wrong(const char* name, const std::string& expected) const;

private:
    const Json* find(Names names, const char** spelled = nullptr) const;

    const Json* json_;
    std::string where_;
};

}  // namespace thermocline::model
