// The order in which a card plays the steps of a pass: each as early as what it reads is there, so that steps which do
// not need each other share launches (cuda/waves.h). Vectors that several matrices multiply are prepared once.
//
// Used by one thread.
#pragma once

#include "cuda/fused.h"
#include "cuda/run.h"
#include "cuda/waves.h"
#include "scheduler/gpu_groups.h"
#include "src/ops/plan.h"
#include "src/ops/uses.h"

#include <cstdint>
#include <functional>
#include <vector>

namespace thermocline::scheduler {

/// Scratch with which no pass of up to `rows` rows has to wait for some.
int64_t order_scratch_bytes(const ops::Plan& plan, int64_t rows);

class GpuOrder {
public:
    /// What is played reaches frame.stream at flush(); frame.scratch is of `scratch_bytes` bytes, enough for any one
    /// step. All that `frame` refers to must outlive the order.
    GpuOrder(const cuda::Frame& frame, int64_t scratch_bytes);

    /// The same, but for its stream and scratch.
    const cuda::Frame& frame() const { return frame_; }

    void play(const ops::Step& step);
    /// Steps of the frame's plan.
    void play(const Group& group);
    /// Kernels that are no step but stand for one: `launch` puts them into the frame's stream.
    void play_as(const ops::Uses& uses, const std::function<void(const cuda::Frame&)>& launch);
    /// All that was played comes before what is played from here on, and before what is put into the frame's stream.
    void flush();

private:
    struct LastUse {
        int read = -1, written = -1;  // levels
    };
    struct Prepared {
        ops::Slot slot;
        cuda::InputForm form;
        std::byte* at;
        int level;  // from which it is there
    };

    int first_level(const ops::Uses& uses) const;
    void note(const ops::Uses& uses, int first, int last);
    void play_linear(const ops::Linear& step);
    const Prepared& prepared(const ops::Linear& step);
    cuda::Frame with_scratch(std::byte* scratch) const;
    int64_t scratch_of(const ops::Step& step) const;
    std::byte* take_scratch(int64_t bytes);

    std::byte* scratch_;
    int64_t scratch_bytes_, scratch_used_ = 0;
    cuda::Waves waves_;
    cuda::Frame frame_;
    std::vector<LastUse> slots_, caches_;
    std::vector<Prepared> prepared_;
};

}  // namespace thermocline::scheduler
