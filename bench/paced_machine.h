// A machine of a machine file on which a model of a config runs its routed experts, where nothing is computed and all
// that is computed takes its time: the emulated card's kernels and the CPU's products wait as long as the formulas of
// hybrid-engine.md 1.5 say, copies as long as the link takes. Routing, lists, hand-offs and everything in scheduler/
// are the real thing. Of each layer: router and all dense steps as one wait, then routed experts. What passes between
// card and CPU besides flags takes no time of its own.
#pragma once

#include "cpu/kernels.h"
#include "cuda/device.h"
#include "src/ops/plan.h"

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

namespace thermocline {

struct PacedFlags {
    std::string machine, model;  // files
    int64_t layers = 4;          // of the model's
    double slower = 8;           // all times: what the benchmark itself costs counts the less
    double skew = 0.5;           // of the routing: the r-th most popular expert of a layer has weight 1 / r^skew
};

/// One at a time: what the CPU's kernels wait for is global.
class PacedMachine {
public:
    explicit PacedMachine(const PacedFlags& flags);

    const ops::Plan& plan() const { return plan_; }
    const cpu::KernelTable& kernels() const { return kernels_; }
    /// Of the experts.
    std::span<std::byte> memory() { return weights_; }
    std::unique_ptr<cuda::Device> open() const;
    /// That an expert takes over the link.
    double link_seconds() const { return seconds_.link; }
    /// Times that are waited for, without `slower`.
    std::string text() const;

private:
    struct Seconds {
        double dense = 0, dense_row = 0;  // of a layer: the larger of the first and the second for each row
        double card_expert = 0, card_pair = 0, handoff = 0, link = 0;
    };
    void make_plan(const PacedFlags& flags, int64_t experts, int32_t top_k);
    double route(const cuda::Grid& grid, const void* members) const;

    PacedFlags flags_;
    Seconds seconds_;
    double cpu_expert_ = 0, cpu_pair_ = 0;
    ops::Plan plan_;
    std::vector<std::byte> weights_, embeddings_;
    cpu::KernelTable kernels_;
};

}  // namespace thermocline
