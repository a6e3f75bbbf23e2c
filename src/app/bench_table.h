// The rows of `bench` as a person or a program reads them. Printed to stdout as they come; a JSON array when complete.
#pragma once

#include "src/base/json.h"

#include <string>

namespace thermocline::app {

class BenchTable {
public:
    /// md, json, jsonl or csv.
    explicit BenchTable(std::string format) : format_(std::move(format)) {}

    /// An object; the first one names the columns.
    void add(const Json& row);
    /// After the last row.
    void finish();

private:
    std::string format_;
    Json rows_ = Json::array();
};

}  // namespace thermocline::app
