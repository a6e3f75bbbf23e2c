// The oracle: every step of ops/steps.h in double precision and in the plainest code, written from
// shared/design/deepseek-v4.md without looking at cpu/. A sequence remembers everything it ever saw in growing
// vectors indexed by absolute position or entry number: no rings, no pages, no chunk logic. It plays one step (to
// check cpu::run and the GPU kernels) or a whole plan (to check the engine). Slow; for tests only. Single-threaded.
//
// Roundings that belong to the model (RoundKv, cache formats, e4m3 inputs, bf16 streams) are applied, with the value
// first taken to float32; nothing else is rounded. KvFormat::kF32 and the rope channels of kFp8F32 keep the double.
#pragma once

#include "src/ops/batch.h"
#include "src/ops/plan.h"

#include <cstdint>
#include <vector>

namespace thermocline::oracle {

/// One row per absolute position (rings) or entry (entries).
using History = std::vector<std::vector<double>>;

/// Everything one sequence remembers: caches[id] belongs to Plan::caches[id]. Compressor states hold values, then
/// scores with ape, as in the engine.
struct OracleState {
    std::vector<History> caches;
    int64_t position = 0;  // tokens processed

    explicit OracleState(const ops::Plan& plan) : caches(plan.caches.size()) {}
    /// Forgets everything from `position` on (6.6).
    void roll_back(const ops::Plan& plan, int64_t position);
};

/// The sequence of every segment of the batch, in the order of the segments. Segment::caches is not looked at.
using OracleSequences = std::vector<OracleState*>;

/// slots[id]: [rows, cols] row-major; integers are stored as doubles.
using OracleSlots = std::vector<std::vector<double>>;

/// Slots of the right sizes for `batch`, all zero.
OracleSlots make_slots(const ops::Plan& plan, const ops::Batch& batch);

/// Plays one step. The sequences' `position` is not changed.
void oracle_step(const ops::Plan& plan, const ops::Step& step, const ops::Batch& batch, OracleSequences& sequences,
                 OracleSlots& slots);

/// Plays all steps in order, then moves every sequence's position past its rows.
void oracle_run(const ops::Plan& plan, const ops::Batch& batch, OracleSequences& sequences, OracleSlots& slots);

/// A batch and the arrays it points to: `parts[i]` continues sequences[i]; logits of the last `outputs` rows of each.
struct OracleBatch {
    std::vector<int32_t> tokens, output_rows;
    std::vector<int64_t> positions;
    std::vector<ops::Segment> segments;

    OracleBatch(const OracleSequences& sequences, const std::vector<std::vector<int32_t>>& parts, int32_t outputs);
    ops::Batch view() const { return {tokens, positions, segments, output_rows}; }
};

/// In place: the value of a row after it went through a cache of this format (kv_row encode, then decode).
void round_kv(quant::KvFormat format, int64_t rope, double* row, int64_t width);

/// In place: Walsh-Hadamard transform in natural order times width^-0.5; width a power of two (2.7).
void hadamard(double* x, int64_t width);

}  // namespace thermocline::oracle
