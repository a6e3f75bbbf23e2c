#include "src/app/bench_table.h"

#include <cmath>
#include <cstdio>
#include <functional>

namespace thermocline::app {

namespace {

/// Three digits or more of a number, strings as they are, "-" for what is not known.
std::string short_text(const Json& value) {
    if (value.is_string()) return value.get<std::string>();
    if (value.is_null()) return "-";
    if (!value.is_number_float()) return dump_json(value);
    const double number = value.get<double>();
    char text[32];
    std::snprintf(text, sizeof text, "%.*f", std::abs(number) >= 100.0 ? 1 : std::abs(number) >= 1.0 ? 2 : 3, number);
    return text;
}

std::string csv_text(const Json& value) {
    if (value.is_null()) return "";
    if (!value.is_string()) return dump_json(value);
    std::string text = "\"";
    for (const char c : value.get<std::string>()) text += c == '"' ? "\"\"" : std::string(1, c);
    return text + "\"";
}

void print(const std::string& text) {
    std::fputs(text.c_str(), stdout);
    std::fflush(stdout);
}

/// One line of what `cell` makes of every column.
template <typename Cell>
std::string line(const Json& row, const char* before, const char* between, const char* after, Cell cell) {
    std::string text;
    for (const auto& [key, value] : row.items()) {
        if (!text.empty()) text += between;
        text += cell(key, value);
    }
    return before + text + after + "\n";
}

}  // namespace

void BenchTable::add(const Json& row) {
    const auto key = [](const std::string& name, const Json&) { return name; };
    const bool first = rows_.empty();
    rows_.push_back(row);
    if (format_ == "md") {
        if (first) {
            print(line(row, "| ", " | ", " |", key));
            print(line(row, "|", "|", "|",
                       [](const auto&, const Json& value) { return value.is_string() ? "---" : "---:"; }));
        }
        print(line(row, "| ", " | ", " |", [](const auto&, const Json& value) { return short_text(value); }));
    } else if (format_ == "csv") {
        if (first) print(line(row, "", ",", "", key));
        print(line(row, "", ",", "", [](const auto&, const Json& value) { return csv_text(value); }));
    } else if (format_ == "jsonl") {
        print(dump_json(row) + "\n");
    }
}

void BenchTable::finish() {
    if (format_ == "json") print(dump_json(rows_, 2) + "\n");
}

}  // namespace thermocline::app
