// How fast this tier multiplies when nothing else limits it: chains of multiply-adds in registers, as many as hide the
// latency of one and leave room for its operands. The ISA unit gives the integer and bf16 instructions
// (multiply_bytes, multiply_bf16) and says how many operations each does; 0: it has none.

constexpr int kChains = 12;

/// Runs sum = multiply_add(sum) for every chain. The chains start apart: equal ones would be computed once.
template <typename V, typename MultiplyAdd>
[[gnu::always_inline]] inline V run_chains(int64_t rounds, MultiplyAdd multiply_add) {
    V sums[kChains];
    unrolled<kChains>([&](int i)
                          __attribute__((always_inline)) { sums[i] = V{} + static_cast<decltype(V{}[0] + 0)>(i + 1); });
    for (int64_t round = 0; round < rounds; ++round)
        unrolled<kChains>([&](int i) __attribute__((always_inline)) { sums[i] = multiply_add(sums[i]); });
    V total = {};
    for (const V& sum : sums) total += sum;
    return total;
}

int64_t peak(Unit unit, int64_t rounds, float* sink) noexcept {
    const int64_t steps = rounds * kChains;
    if (unit == Unit::kF32) {
        const F factor = broadcast(0.5f), term = broadcast(1.0f);
        *sink = run_chains<F>(
            rounds, [&](F x) __attribute__((always_inline)) { return fma(x, factor, term); })[0];
        return steps * 2 * kLanes;
    }
    if (unit == Unit::kBF16 && kBf16Operations > 0) {
        *sink = run_chains<F>(
            rounds, [](F x) __attribute__((always_inline)) { return multiply_bf16(x); })[0];
        return steps * kBf16Operations;
    }
    if (unit == Unit::kI8 && kByteOperations > 0) {
        const I total = run_chains<I>(
            rounds, [](I x) __attribute__((always_inline)) { return multiply_bytes(x); });
        *sink = static_cast<float>(total[0]);
        return steps * kByteOperations;
    }
    return 0;
}
