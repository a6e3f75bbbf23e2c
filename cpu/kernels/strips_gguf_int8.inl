// Packed GGUF blocks times int8 vectors: what strips_int8.inl needs to know of them.

template <int bits>
struct DigitsGguf : Runs<bits> {
    using Dot = OffsetDot<1 << (bits - 1)>;
    static constexpr int kHalves = Runs<bits>::kColumns / 4;
    static constexpr float kCentre = 1 << (bits - 1);
    template <typename Line>
    [[gnu::always_inline]] U prepare(const Line& line, int i) const {
        return Runs<bits>::quad(line, i);
    }
};

struct DigitsIq4 : OneRun {
    using Dot = SignedDot;
    static constexpr int kHalves = 2;
    ByteTable table = iq4_table();
    [[gnu::always_inline]] U prepare(U words, int half) const {
        return Dot::prepare(look_up_bytes(table, (half ? words >> 4 : words) & 0x0f0f0f0f));
    }
};

template <typename Body>
[[gnu::always_inline]] inline void with_gguf_int8_kernel(quant::Format format, Body body) {
    using quant::Format;
    switch (format) {
        case Format::kQ4_0:
            return body(Int8Kernel<DigitsInt4, F16Scales, 32>{});
        case Format::kQ4_1:
            return body(Int8Kernel<DigitsInt4, ScalesDM, 32>{});
        case Format::kQ4_K:
            return body(Int8Kernel<DigitsInt4, ScalesK, 32>{});
        case Format::kIQ4_NL:
            return body(Int8Kernel<DigitsIq4, F16Scales, 32>{});
        case Format::kIQ4_XS:
            return body(Int8Kernel<DigitsIq4, SignedScales<4>, 32>{});
        case Format::kQ5_0:
            return body(Int8Kernel<DigitsGguf<5>, F16Scales, 32>{});
        case Format::kQ5_1:
            return body(Int8Kernel<DigitsGguf<5>, ScalesDM, 32>{});
        case Format::kQ5_K:
            return body(Int8Kernel<DigitsGguf<5>, ScalesK, 32>{});
        case Format::kQ6_K:
            return body(Int8Kernel<DigitsGguf<6>, SignedScales<8>, 16>{});
        case Format::kQ2_K:
            return body(Int8Kernel<DigitsGguf<2>, ScalesQ2, 16>{});
        case Format::kQ3_K:
            return body(Int8Kernel<DigitsGguf<3>, ScalesQ3, 16>{});
        case Format::kQ2_0:
            return body(Int8Kernel<DigitsGguf<2>, Grouped<F16Scales, 2>, 32>{});
        case Format::kTQ1_0:
        case Format::kTQ2_0:
            return body(Int8Kernel<DigitsGguf<2>, Grouped<F16Scales, 4>, 32>{});
        case Format::kQ1_0:
            return body(Int8Kernel<DigitsGguf<1>, ScalesQ1, 32>{});
        default:
            __builtin_trap();  // has_integer_codes() says so of no others
    }
}
