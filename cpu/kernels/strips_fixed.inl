// Packed matrices with integer codes times vectors in fixed point (quant::FixedGroup): as strips_int8.inl, with a
// product of bytes for each of the three digits of a number. The sums of a unit are exact but for the rounding of their
// two parts to float32, so vectors that are not rounded cost three products of bytes a column instead of a code turned
// into a float and a multiply-add. For tiers that add products of bytes to words without saturation.

using quant::FixedGroup;

struct FixedInput {
    using Group = FixedGroup;
    static constexpr int kPlanes = 3, kStride = kBlock / quant::kInt8Columns * static_cast<int>(sizeof(Group));

    template <typename Dot, int unit>
    [[gnu::always_inline]] static typename Dot::Sums start(const Group& group, int first, int plane) {
        const int16_t* halves = group.sums[plane];
        return unit == quant::kInt8Columns ? Dot::start(halves) : Dot::start_one(halves + first / 16);
    }
    [[gnu::always_inline]] static const int8_t* codes(const Group& group, int plane) { return group.digits[plane]; }
    template <typename Dot>
    [[gnu::always_inline]] static F total(const typename Dot::Sums sums[kPlanes]) {
        const I low = Dot::total(sums[0]) + (Dot::total(sums[1]) << 8);
        return fma(to_float(Dot::total(sums[2])), broadcast(65536.0f), to_float(low));
    }
    template <int unit>
    [[gnu::always_inline]] static float sum(const Group& group, int first) {
        return unit == quant::kInt8Columns ? group.half_sums[0] + group.half_sums[1] : group.half_sums[first / 16];
    }
};

void matmul_fixed(const quant::Matrix& w, int64_t first, int64_t count, const float* x, int64_t x_stride, int64_t m,
                  float* y, int64_t y_stride) noexcept {
    with_int8_kernel(
        w, [&](const auto& kernel) __attribute__((always_inline)) {
            kernel.template multiply<FixedInput>(w, first, count, x, x_stride, m, y, y_stride);
        });
    apply_multiplier(w, m, count, y, y_stride);
}

void round_fixed(const float* x, FixedGroup* out, int64_t n) noexcept {
    constexpr int kColumns = quant::kInt8Columns;
    static_assert(kLanes == 16);  // a half of a group
    for (int64_t k = 0; k < n; k += kColumns, x += kColumns, ++out) {
        // Of the largest power of two: its numbers are below 2^22 units. Smaller ones than 2^-80 have the unit of that.
        const uint32_t field = bits_as<uint32_t>(largest_magnitude(x, kColumns)) >> 23;
        const uint32_t exponent = field > 47 ? field : 47;
        const F inverse = broadcast(bits_as<float>((275 - exponent) << 23));  // 2^21 / 2^(exponent - 127)
        const float scale = bits_as<float>((exponent - 21) << 23);
        F poison = {};  // NaN if a number is not finite
        for (int half = 0; half < 2; ++half) {
            const F numbers = load(x + half * kLanes);
            poison += numbers * broadcast(0.0f);
            I rest = round_to_int(numbers * inverse);
            int32_t sum = 0;
            for (int plane = 0; plane < 3; ++plane) {
                typedef int8_t Narrow __attribute__((vector_size(kLanes)));
                const I digit = rest << 24 >> 24;
                const Narrow narrow = __builtin_convertvector(digit, Narrow);
                __builtin_memcpy(out->digits[plane] + half * kLanes, &narrow, sizeof narrow);
                const int32_t digits_sum = add_lanes(digit);
                out->sums[plane][half] = static_cast<int16_t>(digits_sum);
                sum += digits_sum * (1 << 8 * plane);
                rest = (rest - digit) >> 8;
            }
            out->half_sums[half] = scale * static_cast<float>(sum);
        }
        out->scale = mask_bits(poison != poison) ? __builtin_nanf("") : scale;
    }
}

/// All kernels of a tier that has these.
constexpr KernelTable make_vnni_kernels(const char* name) {
    KernelTable kernels = make_kernels(name);
    kernels.matmul_fixed = matmul_fixed;
    kernels.round_fixed = round_fixed;
    return kernels;
}
