// What a card says of itself at the start: which kernels play which operators and how fast they read, and which of what
// it falls back on is too slow to go unasked.
#pragma once

#include "cuda/cuda.h"
#include "cuda/device.h"
#include "cuda/run.h"
#include "scheduler/gpu_groups.h"

#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace thermocline::scheduler {

/// Operators that the same kernels play.
struct OperatorReport {
    std::string operators;  // "Linear F8_E4M3"
    std::string where;      // "card", "CPU avx512"
    std::string kernels;    // "PrepareVectors, FewVectors"; of the CPU: empty
    int64_t count = 0;      // of them in the plan; of experts
    double gb_per_s = 0;    // of weights, with one row; 0: not measured
};

/// "Experts MXFP4"
std::string experts_name(const ops::Plan& plan, const ops::Experts& step);

/// The groups of a plan, by the kernels that a pass of the frame's rows starts for each. Plays nothing.
std::vector<OperatorReport> card_operators(const cuda::Frame& f, std::span<const Group> groups, int64_t scratch_bytes);

/// Fills in how fast the products of `reports` read their matrices, each kind played over all layers in a row; their
/// slots are overwritten. Takes some passes' time. Throws Error if the card fails.
void measure_products(const cuda::Frame& f, cuda::Device& device, std::vector<OperatorReport>& reports);

/// A line each. `card_gb_per_s`, `host_gb_per_s`: what the card and the CPU read their memory with; 0: not known.
std::string report_text(std::span<const OperatorReport> reports, double card_gb_per_s, double host_gb_per_s);

/// What was found at the start; GB/s 0: not measured.
struct Fallbacks {
    cuda::FlagWait flag_wait = cuda::FlagWait::kStreamOperation;
    double to_device = 0, to_host = 0;
    bool experts_cross = false;  // the link: some are not on the card
    bool scalar_cpu = false;     // this CPU has no vector instructions that we use
};
/// Of these the first that makes every token several times slower, with its remedy; empty: none.
std::string slow_fallback(const Fallbacks& found);

}  // namespace thermocline::scheduler
