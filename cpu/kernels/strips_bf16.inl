// Packed FP8 and FP4 matrices times vectors rounded to e4m3, with the instruction that adds two products
// (strips_pairs.inl).

void matmul_bf16(const quant::Matrix& w, int64_t first, int64_t count, const float* x, int64_t x_stride, int64_t m,
                 float* y, int64_t y_stride) noexcept {
    using quant::Format;
    const auto multiply = [&](const auto& kernel) __attribute__((always_inline)) {
        kernel.multiply(w, first, count, x, x_stride, m, y, y_stride);
    };
    if (w.format == Format::kE4M3 && w.scale_in_strip)
        multiply(StripKernel<PairsE4M3, Grouped<E8M0Scales, 4>>{{}, {{1.0f}}});
    else if (w.format == Format::kE4M3)
        multiply(StripKernel<PairsE4M3, NoScales>{});
    else if (w.scale_format == Format::kE8M0)
        multiply(StripKernel<PairsE2M1<32>, E8M0Scales>{{}, {1.0f}});
    else
        multiply(StripKernel<PairsE2M1<16>, E4M3Scales>{{}, {1.0f}});
    apply_multiplier(w, m, count, y, y_stride);
}
