// The largest logits of every output row, for the sampler on the host (src/engine/sampler.h): instead of a row of the
// vocabulary some numbers cross the link. A block finds those of a part of a row, another kernel chooses among them.
// Ties go to the lowest id; all orders are fixed.
#pragma once

#include "cuda/kernels/block.h"
#include "cuda/kernels/top.h"
#include "src/ops/top_logits.h"

#include <cmath>
#include <cstdint>
#include <limits>

namespace thermocline::cuda {

using ops::kTopLogits;

inline constexpr int kLogitPart = 2048;  // logits that a block looks at

/// Of some logits: the largest, the sum of exp((logit - largest) * factor), and how many are NaN or +infinity.
struct LogitSum {
    float largest, weights;
    int32_t faults;
};

/// What the host gets of a row.
struct TopRow {
    float weights;
    int32_t faults;
    ops::TopLogit best[kTopLogits];  // as many as there are logits
};

/// Grid: parts of a row, rows; 256 threads; kSharedBytes.
struct ScanLogits {
    static constexpr const char* kName = "ScanLogits";
    static constexpr int kThreads = 256, kMostThreads = kThreads, kOfThread = kLogitPart / kThreads;
    static constexpr int64_t kKeys = threshold_bytes(kThreads), kTake = kKeys + kLogitPart * 4,
                             kSums = kTake + take_bytes(kThreads), kSharedBytes = kSums + kBlockSumBytes;
    const float* logits;    // [rows, vocab]
    const float* factors;   // [rows] 1 / temperature
    Candidate* candidates;  // [rows, parts, kTopLogits] out; key 0: none
    LogitSum* sums;         // [rows, parts] out
    int32_t vocab;

    template <typename Thread>
    GPU_CODE void operator()(Thread& t) const {
        constexpr float kInfinity = std::numeric_limits<float>::infinity();
        const int64_t place = t.block_y() * t.blocks() + t.block();
        const int first = static_cast<int>(t.block()) * kLogitPart;
        const int count = vocab - first < kLogitPart ? vocab - first : kLogitPart;
        const float* own = logits + t.block_y() * vocab + first;
        auto keys = t.template shared<uint32_t>(kKeys, kLogitPart);
        float number[kOfThread], most = -kInfinity, faults = 0.0f;
#pragma unroll
        for (int i = 0; i < kOfThread; ++i) {
            const int at = i * kThreads + t.id();
            number[i] = at < count ? own[at] : -kInfinity;
            if (!(number[i] < kInfinity)) {
                faults += 1.0f;
                number[i] = -kInfinity;
            }
            most = fmaxf(most, number[i]);
            keys.set(at, order_key(number[i]));
        }
        most = block_max(t, most);
        float weight = 0.0f;
#pragma unroll
        for (int i = 0; i < kOfThread; ++i)
            if (number[i] > -kInfinity) weight += expf((number[i] - most) * factors[t.block_y()]);
        weight = block_sum(t, weight, kSums);
        faults = block_sum(t, faults, kSums);
        if (t.id() == 0) sums[place] = {most, weight, static_cast<int32_t>(faults)};

        Candidate* out = candidates + place * kTopLogits;
        const int wanted = count < kTopLogits ? count : kTopLogits;
        const Threshold threshold = find_threshold(
            t, [&](int i) { return keys[i]; }, count, wanted, 0);
        take_chosen(
            t,
            [&](int i) {
                return Candidate{keys[i], first + i};
            },
            count, threshold, kTake, [&](int i, const Candidate& one) { out[i] = one; });
        for (int i = wanted + t.id(); i < kTopLogits; i += kThreads) out[i] = {0, 0};
    }

private:
    template <typename Thread>
    GPU_CODE float block_max(Thread& t, float x) const {
        auto most = t.template shared<float>(kSums, t.warps());
        x = warp_max(t, x);
        if (t.lane() == 0) most.set(t.warp(), x);
        t.sync();
        for (int w = 0; w < t.warps(); ++w) x = fmaxf(x, most[w]);
        return x;
    }
};

/// Grid: rows; threshold_bytes() + take_bytes() shared.
struct ChooseLogits {
    static constexpr const char* kName = "ChooseLogits";
    static constexpr int kThreads = 1024, kMostThreads = kThreads;
    const float* logits;
    const float* factors;
    const Candidate* candidates;
    const LogitSum* sums;
    TopRow* out;  // [rows]
    int32_t vocab, parts;

    template <typename Thread>
    GPU_CODE void operator()(Thread& t) const {
        const int64_t row = t.block();
        const Candidate* own = candidates + row * parts * kTopLogits;
        TopRow& to = out[row];
        if (t.id() == 0) {
            const LogitSum* of_row = sums + row * parts;
            float most = of_row[0].largest, weights = 0.0f;
            for (int i = 1; i < parts; ++i) most = fmaxf(most, of_row[i].largest);
            to.faults = 0;
            for (int i = 0; i < parts; ++i) {
                to.faults += of_row[i].faults;
                if (of_row[i].weights > 0.0f)
                    weights += of_row[i].weights * expf((of_row[i].largest - most) * factors[row]);
            }
            to.weights = weights;
        }
        const int wanted = vocab < kTopLogits ? vocab : kTopLogits;
        const Threshold threshold = find_threshold(
            t, [&](int i) { return own[i].key; }, parts * kTopLogits, wanted, 0);
        take_chosen(
            t, [&](int i) { return own[i]; }, parts * kTopLogits, threshold, threshold_bytes(t.threads()),
            [&](int i, const Candidate& one) {
                to.best[i] = {one.index, logits[row * vocab + one.index]};
            });
    }
};

}  // namespace thermocline::cuda
