// Where the time of a generated token goes when a card takes part, beside the roofline of R3 (scheduler/cost_model.h):
// what card and host memory, as fast as they were measured, would take for its bytes alone.
#pragma once

#include "scheduler/cost_model.h"

#include <string>

namespace thermocline::app {

/// Means over the tokens of a test, seconds.
struct CardToken {
    double seconds = 0;
    double cpu_seconds = 0;      // that the CPU computed experts in
    double exposed_seconds = 0;  // of these, what the card's own work did not hide
    double hit_rate = 0;         // of the chosen experts, those on the card, also where it was left out
    double card_share = 0;       // of the experts that were read, those that the card read
};

struct Bandwidths {
    double card = 0, host = 0;  // GB/s
};

/// The whole token by R3.
scheduler::DecodeTime roofline(const scheduler::TokenWork& work, const Bandwidths& measured, bool balanced,
                               double hit_rate);

/// The terms of `floor` beside those of the token, and the gap of each.
std::string roofline_table(const CardToken& token, const scheduler::DecodeTime& floor, const Bandwidths& measured);

}  // namespace thermocline::app
