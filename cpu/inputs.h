// What a matrix wants of the vectors that it multiplies: rounded or not, times a power of two of its layout, and for
// packed matrices as a panel (cpu/kernels.h).
#pragma once

#include "cpu/run.h"

namespace thermocline::cpu {

struct InputForm {
    bool e4m3, int8, panel;
    float factor;

    InputForm(const quant::Matrix& w, ops::InputRounding rounding)
        : e4m3(rounding == ops::InputRounding::kE4M3),
          int8(rounding == ops::InputRounding::kInt8 && quant::has_integer_codes(w)),
          panel(w.layout == quant::Layout::kStrips),
          factor(int8 ? 1.0f : quant::strip_input_factor(w)) {}

    /// Whether m vectors can be taken as they are: a vector alone is its own panel.
    bool takes_as_is(int64_t m) const { return !e4m3 && !int8 && factor == 1.0f && (!panel || m == 1); }
    /// What matmul wants as x_stride for m vectors of `width` columns.
    int64_t stride(int64_t m, int64_t width) const { return panel ? m * quant::kStripBlock : width; }
    auto matmul(const KernelTable& kernels) const { return int8 ? kernels.matmul_int8 : kernels.matmul; }

    /// Converts `in` [width] and puts it where vector i of m belongs in `out` [m * width], which matmul takes.
    void prepare(const KernelTable& kernels, const float* in, int64_t width, float* out, int64_t i, int64_t m) const {
        if (!panel) return convert(kernels, in, out + i * width, width);
        if (int8) {
            constexpr int64_t kGroups = quant::kStripBlock / quant::kInt8Columns;
            for (int64_t k = 0; k < width; k += quant::kStripBlock)
                kernels.round_int8(in + k, reinterpret_cast<quant::Int8Group*>(out + k * m) + i * kGroups,
                                   quant::kStripBlock);
            return;
        }
        const PanelGroups groups(m, kernels.panel_tokens);
        const int64_t group = groups.of(i), first = groups.first(group), count = groups.first(group + 1) - first;
        for (int64_t k = 0; k < width; k += quant::kStripBlock) {
            float numbers[quant::kStripBlock];
            convert(kernels, in + k, numbers, quant::kStripBlock);
            float* column = out + k * m + first * quant::kStripBlock + i - first;
            for (const float number : numbers) {
                *column = number;
                column += count;
            }
        }
    }

private:
    void convert(const KernelTable& kernels, const float* in, float* out, int64_t n) const {
        e4m3 ? kernels.round_e4m3(in, factor, out, n) : kernels.scale(factor, in, nullptr, out, n);
    }
};

}  // namespace thermocline::cpu
