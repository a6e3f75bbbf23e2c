// Packed matrices whose numbers are exact in bf16 times vectors rounded to bf16 or e4m3, with the instruction that adds
// two products (strips_pairs.inl).

void matmul_bf16(const quant::Matrix& w, int64_t first, int64_t count, const float* x, int64_t x_stride, int64_t m,
                 float* y, int64_t y_stride) noexcept {
    using quant::Format;
    const auto multiply = [&](const auto& kernel) __attribute__((always_inline)) {
        kernel.multiply(w, first, count, x, x_stride, m, y, y_stride);
    };
    switch (w.format) {
        case Format::kE4M3:
            if (w.scale_in_strip)
                multiply(StripKernel<PairsE4M3, Grouped<E8M0Scales, 4>>{{}, {{1.0f}}});
            else
                multiply(StripKernel<PairsE4M3, NoScales>{});
            break;
        case Format::kE2M1Pair:
            if (w.scale_format == Format::kE8M0)
                multiply(StripKernel<PairsE2M1<32>, E8M0Scales>{{}, {1.0f}});
            else
                multiply(StripKernel<PairsE2M1<16>, E4M3Scales>{{}, {1.0f}});
            break;
        case Format::kInt4Pair:
            if (w.scale_cols == 32)
                multiply(StripKernel<PairsOf<StripInt4<32>>, BF16Scales>{});
            else
                multiply(StripKernel<PairsOf<StripInt4<32>>, Grouped<BF16Scales, 4>>{});
            break;
        case Format::kQ8_0:
            multiply(StripKernel<PairsQ8, F16Scales>{});
            break;
        case Format::kQ4_0:
            multiply(StripKernel<PairsOf<StripInt4<32>>, F16Scales>{});
            break;
        case Format::kQ5_0:
            multiply(StripKernel<PairsOf<StripCodes<5, 32>>, F16Scales>{});
            break;
        case Format::kQ6_K:
            multiply(StripKernel<PairsOf<StripCodes<6, 16>>, SignedScales<8>>{});
            break;
        case Format::kIQ4_NL:
            multiply(StripKernel<PairsOf<StripIq4>, F16Scales>{});
            break;
        case Format::kIQ4_XS:
            multiply(StripKernel<PairsOf<StripIq4>, SignedScales<4>>{});
            break;
        default:
            __builtin_trap();  // has_bf16_numbers() says so of no others
    }
    apply_multiplier(w, m, count, y, y_stride);
}
