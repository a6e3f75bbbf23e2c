// Keeps the tokens and the result of a request until a test looks.
#pragma once

#include "src/base/queue.h"
#include "src/engine/output.h"

#include <cstdint>
#include <vector>

namespace thermocline::engine {

class Collector : public Listener {
public:
    bool on_token(const Token& token) override {
        ids.push_back(token.id);
        return true;
    }
    void on_finish(const Result& finished) override {
        result = finished;
        done.push(true);
    }
    std::vector<int32_t> ids;
    Result result;
    BoundedQueue<bool> done{1};
};

}  // namespace thermocline::engine
