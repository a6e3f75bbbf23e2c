// A Plan is the score of one model (or of its MTP layer): steps in order, the slots they work in, the weights they
// read and the caches each sequence needs. Written once at load by a model file, immutable afterwards.
#pragma once

#include "src/base/tensor.h"
#include "src/ops/steps.h"
#include "src/quant/matrix.h"

#include <cstdint>
#include <string>
#include <vector>

namespace thermocline::ops {

enum class Rows : uint8_t { kTokens, kOutputs };

struct SlotSpec {
    std::string name;
    int64_t cols;
    Rows rows;
};

struct NamedMatrix {
    std::string name;  // official name, for messages and profiles
    quant::Matrix matrix;
};

struct NamedVector {
    std::string name;
    std::vector<float> values;
    Shape shape = {};
};

struct NamedTable {
    std::string name;
    std::vector<int32_t> values;
    Shape shape = {};
};

/// The routed experts of one layer: w1 and w3 are [I, D], w2 is [D, I], one matrix per expert.
struct ExpertSet {
    std::string name;
    int64_t hidden;
    int64_t intermediate;
    std::vector<quant::Matrix> w1, w2, w3;
};

/// Rotary frequencies of one layer type in radians per position, float32 as the reference computes them (2.4).
struct RopeTable {
    std::vector<float> frequencies;  // [dims / 2]
    int32_t dims() const { return static_cast<int32_t>(frequencies.size()) * 2; }
};

/// What one sequence keeps for one layer.
struct CacheSpec {
    enum class Kind : uint8_t {
        kRing,     ///< the row of position p is p mod ring_rows
        kEntries,  ///< the row of entry w is w; pos / ratio entries exist after pos tokens
    };
    std::string name;
    Kind kind;
    quant::KvFormat format;
    int64_t width;          // channels of a row
    int64_t rope = 0;       // last channels kept bf16 by KvFormat::kFp8
    int64_t ring_rows = 0;  // kRing
    int32_t ratio = 1;      // kEntries: tokens per entry; kRing: at frontier f, rows ratio * (f / ratio) - history
    int32_t history = 0;    //        .. f - 1 are still needed
    int64_t row_bytes() const { return quant::kv_row_bytes(format, width, rope); }
};

/// A router's choice before attention (hybrid-engine.md 4.7): steps `router` and router + 1, its gate and the Route,
/// may be played once step `after` has been, too. On what lies in the gate's input then they foretell what they will
/// choose in their turn; nothing reads what they leave, and all of it is written anew before it is read.
struct Foretelling {
    int32_t after, router;
};

struct Plan {
    std::string name;  // "trunk" or "mtp.0"
    std::vector<Step> steps;
    std::vector<SlotSpec> slots;
    std::vector<NamedMatrix> matrices;
    std::vector<NamedVector> vectors;
    std::vector<NamedTable> tables;
    std::vector<ExpertSet> experts;
    std::vector<RopeTable> ropes;
    std::vector<CacheSpec> caches;
    std::vector<Foretelling> foretold;  // ascending; of routers that go by scores

    int64_t vocab = 0;
    Slot streams = kNone;  // [T, n * D] residual streams after the last layer (trunk), input and output of MTP plans
    Slot logits = kNone;   // [outputs, vocab]
};

/// Name of a step's type ("Linear", "Attention", ...).
const char* step_name(const Step& step);

/// One line per step with shapes and weights; for people and for tests.
std::string to_string(const Plan& plan);

/// Checks that every step's slots and weights exist and fit each other. Throws Error naming the step.
void verify(const Plan& plan);

}  // namespace thermocline::ops
