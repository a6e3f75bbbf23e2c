// What a matrix wants of the vectors that it multiplies: rounded or not, times a power of two of its layout, and for
// packed matrices as a panel (cpu/kernels.h).
#pragma once

#include "cpu/run.h"

#include <bit>

namespace thermocline::cpu {

struct InputForm {
    const quant::Matrix& matrix;
    const KernelTable& kernels;
    bool e4m3, int8, bf16, fixed, panel;
    float factor;

    InputForm(const quant::Matrix& w, ops::InputRounding rounding, const KernelTable& table)
        : matrix(w),
          kernels(table),
          e4m3(rounding == ops::InputRounding::kE4M3),
          int8(rounding == ops::InputRounding::kInt8 && quant::has_integer_codes(w)),
          bf16(e4m3 && kernels.matmul_bf16 != nullptr && quant::has_bf16_codes(w)),
          fixed(!int8 && !bf16 && kernels.matmul_fixed != nullptr && quant::has_integer_codes(w)),
          panel(w.layout == quant::Layout::kStrips),
          factor(int8 || bf16 || fixed ? 1.0f : quant::strip_input_factor(w)) {}

    /// Whether m vectors can be taken as they are: a vector alone is its own panel.
    bool takes_as_is(int64_t m) const { return !e4m3 && !int8 && !fixed && factor == 1.0f && (!panel || m == 1); }
    /// What matmul wants as x_stride for m vectors of `width` columns.
    int64_t stride(int64_t m, int64_t width) const {
        return !panel ? width : bf16 ? m * quant::kStripBlock / 2 : m * quant::kStripBlock;
    }
    auto matmul() const {
        return int8 ? kernels.matmul_int8 : bf16 ? kernels.matmul_bf16 : fixed ? kernels.matmul_fixed : kernels.matmul;
    }

    /// Converts `in` [width] and puts it where vector i of m belongs in `out` [m * width], which matmul takes.
    void prepare(const float* in, int64_t width, float* out, int64_t i, int64_t m) const {
        if (!panel) return convert(in, out + i * width, width);
        constexpr int64_t kGroups = quant::kStripBlock / quant::kInt8Columns;
        if (fixed) {
            for (int64_t k = 0; k < width; k += quant::kStripBlock) {
                float numbers[quant::kStripBlock];
                convert(in + k, numbers, quant::kStripBlock);
                kernels.round_fixed(numbers, reinterpret_cast<quant::FixedGroup*>(out + k * m) + i * kGroups,
                                    quant::kStripBlock);
            }
            return;
        }
        if (int8) {
            for (int64_t k = 0; k < width; k += quant::kStripBlock)
                kernels.round_int8(in + k, reinterpret_cast<quant::Int8Group*>(out + k * m) + i * kGroups,
                                   quant::kStripBlock);
            return;
        }
        if (bf16 && kernels.put_in_panel != nullptr) {
            for (int64_t b = 0; b < width / quant::kStripBlock; ++b) {
                float numbers[quant::kStripBlock];
                convert(in + b * quant::kStripBlock, numbers, quant::kStripBlock);
                kernels.put_in_panel(matrix, numbers, b, i, m, out);
            }
            return;
        }
        const PanelGroups groups(m, kernels.panel_tokens);
        const int64_t group = groups.of(i), first = groups.first(group), count = groups.first(group + 1) - first;
        const int64_t block = bf16 ? quant::kStripBlock / 2 : quant::kStripBlock;
        out += first * block + i - first;
        for (int64_t k = 0; k < width; k += quant::kStripBlock, out += block * m) {
            float numbers[quant::kStripBlock];
            convert(in + k, numbers, quant::kStripBlock);
            if (bf16) make_pairs(numbers);
            for (int64_t j = 0; j < block; ++j) out[j * count] = numbers[j];
        }
    }

private:
    void convert(const float* in, float* out, int64_t n) const {
        e4m3 ? kernels.round_e4m3(in, factor, out, n) : kernels.scale(factor, in, nullptr, out, n);
    }

    /// In place: of every four numbers, which are exact in bf16, the pairs 0, 2 and 1, 3.
    static void make_pairs(float numbers[quant::kStripBlock]) {
        const auto pair = [](float low, float high) {
            return std::bit_cast<float>(std::bit_cast<uint32_t>(low) >> 16 | std::bit_cast<uint32_t>(high));
        };
        for (int64_t k = 0; k < quant::kStripBlock; k += 4) {
            const float* four = numbers + k;
            const float even = pair(four[0], four[2]), odd = pair(four[1], four[3]);
            numbers[k / 2] = even;
            numbers[k / 2 + 1] = odd;
        }
    }
};

}  // namespace thermocline::cpu
