// e^x, relative error below 2e-7 for -87.3 <= x <= 88; smaller arguments (and -inf) give 0, larger ones e^88. NaN
// stays.

[[gnu::always_inline]] inline F exponential(F x) {
    const F lowest = broadcast(-87.33654f), highest = broadcast(88.0f);
    const F clamped = min(highest, max(lowest, x));
    const I n = round_to_int(clamped * broadcast(1.44269504f));
    const F whole = to_float(n);
    // ln 2 in two parts: the product with the first is exact, so r keeps its last bits.
    F r = fma(whole, broadcast(-0.693359375f), clamped);
    r = fma(whole, broadcast(2.12194440e-4f), r);
    // Taylor series of degree 7: |r| <= 0.3466, the next term is below 6e-9.
    F p = broadcast(1.0f / 5040.0f);
    p = fma(p, r, broadcast(1.0f / 720.0f));
    p = fma(p, r, broadcast(1.0f / 120.0f));
    p = fma(p, r, broadcast(1.0f / 24.0f));
    p = fma(p, r, broadcast(1.0f / 6.0f));
    p = fma(p, r, broadcast(0.5f));
    p = fma(p, r, broadcast(1.0f));
    p = fma(p, r, broadcast(1.0f));
    const F power = as_float((n + 127) << 23);
    return select(x < lowest, F{}, p * power);
}
