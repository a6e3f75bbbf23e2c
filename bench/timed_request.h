// One streamed request to a server with OpenAI's API, timed event by event. Used by one thread; the client is the
// caller's and keeps its connection.
#pragma once

#include "src/base/json.h"

#include <chrono>
#include <cstdint>
#include <httplib.h>
#include <string>
#include <vector>

namespace thermocline::bench {

using Clock = std::chrono::steady_clock;

struct TimedRequest {
    std::string error;                             // why it failed; empty: it did not
    std::string text;                              // reasoning and content, in the order they came
    double first_seconds = 0;                      // from its start to the first event with text
    double last_seconds = 0;                       // likewise, to the last one
    std::vector<double> gaps_seconds;              // between events with text
    int64_t prompt_tokens = 0, output_tokens = 0;  // as the server counts
    /// Seconds per output token after the first; 0 when there was but one.
    double per_token_seconds() const;
};

/// Posts `body` with `stream` and `stream_options.include_usage` set. `start` is when it should have been sent. A
/// failure of any kind is `error`, never an exception.
TimedRequest run_timed(httplib::Client& client, const std::string& path, const httplib::Headers& headers, Json body,
                       Clock::time_point start);

}  // namespace thermocline::bench
