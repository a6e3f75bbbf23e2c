// The router (deepseek-v4.md 2.8): one block a row.
#pragma once

#include "cuda/kernels/block.h"

#include <cmath>
#include <limits>

namespace thermocline::cuda {

/// sqrt(softplus(z)), stable over the whole float32 range.
GPU_CODE inline float route_score(float z) { return sqrtf(fmaxf(z, 0.0f) + log1pf(expf(-fabsf(z)))); }

/// As ops::Route. Grid: rows; 2 * experts floats shared.
struct Route {
    static constexpr const char* kName = "Route";
    static constexpr int kMaxTopK = kWarp;
    const float* logits;    // [T, experts]
    const float* bias;      // [experts] or null
    const int32_t* table;   // [vocab, top_k] or null
    const int32_t* tokens;  // [T]
    int32_t* ids;           // [T, top_k]
    float* weights;         // [T, top_k]
    int32_t experts, top_k;
    float scale;
    bool normalise;

    template <typename Thread>
    GPU_CODE void operator()(Thread& t) const {
        auto scores = t.template shared<float>(0, experts);
        auto ranks = t.template shared<float>(experts * static_cast<int64_t>(sizeof(float)), experts);
        for (int e = t.id(); e < experts; e += t.threads()) {
            const float score = route_score(logits[t.block() * experts + e]);
            const float rank = score + (bias ? bias[e] : 0.0f);
            scores.set(e, score);
            ranks.set(e, rank == rank ? rank : -std::numeric_limits<float>::infinity());
        }
        t.sync();
        if (t.warp() > 0) return;
        const int own = table ? from_table(t) : choose(t, ranks);  // of lane k: the k-th choice
        const float score = t.lane() < top_k ? scores[own] : 0.0f;
        float sum = 0.0f;
        for (int k = 0; k < top_k; ++k) sum += t.shuffle(score, k);
        const float factor = normalise ? scale / fmaxf(sum, 1e-20f) : scale;
        if (t.lane() >= top_k) return;
        ids[t.block() * top_k + t.lane()] = own;
        weights[t.block() * top_k + t.lane()] = score * factor;
    }

    template <typename Thread>
    GPU_CODE int from_table(Thread& t) const {
        return t.lane() < top_k ? table[int64_t{tokens[t.block()]} * top_k + t.lane()] : 0;
    }

    /// One warp: the experts of the largest ranks, ties to the lowest. Lane l looks after experts l, l + 32, ...; what
    /// it has already given is all before its last one in this order.
    template <typename Thread, typename Ranks>
    GPU_CODE int choose(Thread& t, const Ranks& ranks) const {
        int own = 0, last = -1;
        float last_rank = 0.0f;
        for (int k = 0; k < top_k; ++k) {
            int best = experts;  // none
            float best_rank = 0.0f;
            for (int e = t.lane(); e < experts; e += kWarp) {
                const float rank = ranks[e];
                const bool given = last >= 0 && (rank > last_rank || (rank == last_rank && e <= last));
                if (given || (best != experts && !(rank > best_rank))) continue;
                best = e;
                best_rank = rank;
            }
            const int mine = best;
            const float mine_rank = best_rank;
            for (int mask = kWarp / 2; mask > 0; mask /= 2) {
                const int other = t.shuffle_xor(best, mask);
                const float other_rank = t.shuffle_xor(best_rank, mask);
                const bool before = other_rank > best_rank || (other_rank == best_rank && other < best);
                if (other == experts || (best != experts && !before)) continue;
                best = other;
                best_rank = other_rank;
            }
            if (best == mine && best != experts) {
                last = mine;
                last_rank = mine_rank;
            }
            if (t.lane() == k) own = best;
        }
        return own;
    }
};

}  // namespace thermocline::cuda
