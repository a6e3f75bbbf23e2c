// The largest of a list, exactly and in a fixed order: radix select on keys that order as the numbers do, then the
// chosen ones in the order of the list. Equal keys: the first ones win.
#pragma once

#include "cuda/launch.h"

#include <bit>
#include <cstdint>

namespace thermocline::cuda {

/// Larger numbers have larger keys; NaN counts as -infinity, -0 as 0. Never 0: that is free for "nothing".
GPU_CODE inline uint32_t order_key(float x) {
    constexpr uint32_t kLowest = 0x007fffff;  // of -infinity
    if (x != x) return kLowest;
    const uint32_t bits = std::bit_cast<uint32_t>(x + 0.0f);
    return bits >> 31 ? ~bits : bits | 0x80000000u;
}

struct Candidate {
    uint32_t key;
    int32_t index;
};

/// Chosen are all above `key`, and the first `ties` of those that equal it.
struct Threshold {
    uint32_t key;
    int ties;
};

inline constexpr int kDigits = 16;  // values of the four bits that a pass looks at

constexpr int64_t threshold_bytes(int threads) { return (kDigits * int64_t{threads} + kDigits) * 4; }

template <typename Thread>
GPU_CODE uint32_t warp_count(Thread& t, uint32_t x) {
    for (int mask = kWarp / 2; mask > 0; mask /= 2) x += t.shuffle_xor(x, mask);
    return x;
}

/// The threshold for `wanted` of `count` keys, 0 < wanted <= count; all threads, threshold_bytes() of shared memory at
/// `offset`. Every thread counts for itself, so there is nothing to race for. A barrier before and after is the
/// caller's.
template <typename Thread, typename KeyOf>
GPU_CODE Threshold find_threshold(Thread& t, const KeyOf& key_of, int count, int wanted, int64_t offset) {
    auto counts = t.template shared<uint32_t>(offset, kDigits * t.threads());
    auto totals = t.template shared<uint32_t>(offset + kDigits * t.threads() * 4, kDigits);
    uint32_t prefix = 0, mask = 0;
    for (int shift = 28; shift >= 0; shift -= 4) {
        for (int d = 0; d < kDigits; ++d) counts.set(d * t.threads() + t.id(), 0);
        for (int i = t.id(); i < count; i += t.threads()) {
            const uint32_t key = key_of(i);
            if ((key & mask) != prefix) continue;
            const int at = static_cast<int>(key >> shift & 15) * t.threads() + t.id();
            counts.set(at, counts[at] + 1);
        }
        t.sync();
        for (int d = t.warp(); d < kDigits; d += t.warps()) {
            uint32_t sum = 0;
            for (int i = t.lane(); i < t.threads(); i += kWarp) sum += counts[d * t.threads() + i];
            sum = warp_count(t, sum);
            if (t.lane() == 0) totals.set(d, sum);
        }
        t.sync();
        uint32_t digit = kDigits - 1;
        for (; digit > 0 && static_cast<int>(totals[digit]) < wanted; --digit)
            wanted -= static_cast<int>(totals[digit]);
        prefix |= digit << shift;
        mask |= 15u << shift;
    }
    return {prefix, wanted};
}

constexpr int64_t take_bytes(int threads) { return 2 * int64_t{threads / kWarp} * 4; }

/// put(position, candidate) for the chosen of load(0 .. count - 1), in their order; all threads, take_bytes() of shared
/// memory at `offset`. May work in place: a round is loaded before it is put.
template <typename Thread, typename Load, typename Put>
GPU_CODE void take_chosen(Thread& t, const Load& load, int count, const Threshold& threshold, int64_t offset,
                          const Put& put) {
    auto above_of = t.template shared<uint32_t>(offset, t.warps());
    auto equal_of = t.template shared<uint32_t>(offset + t.warps() * 4, t.warps());
    int above_before = 0, equal_before = 0;  // in earlier rounds
    for (int first = 0; first < count; first += t.threads()) {
        const int i = first + t.id();
        Candidate own = {0, 0};
        if (i < count) own = load(i);
        const bool is_above = i < count && own.key > threshold.key, is_equal = i < count && own.key == threshold.key;
        const uint32_t above = t.ballot(is_above), equal = t.ballot(is_equal);
        if (t.lane() == 0) {
            above_of.set(t.warp(), static_cast<uint32_t>(std::popcount(above)));
            equal_of.set(t.warp(), static_cast<uint32_t>(std::popcount(equal)));
        }
        t.sync();
        const uint32_t lower = (1u << t.lane()) - 1;
        int a = above_before + std::popcount(above & lower), e = equal_before + std::popcount(equal & lower);
        for (int w = 0; w < t.warps(); ++w) {
            const auto above_in = static_cast<int>(above_of[w]), equal_in = static_cast<int>(equal_of[w]);
            if (w < t.warp()) {
                a += above_in;
                e += equal_in;
            }
            above_before += above_in;
            equal_before += equal_in;
        }
        if (is_above || (is_equal && e < threshold.ties)) put(a + (e < threshold.ties ? e : threshold.ties), own);
        t.sync();
    }
}

}  // namespace thermocline::cuda
