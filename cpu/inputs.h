// What a matrix wants of the vectors that it multiplies: rounded or not, times a power of two of its layout, and for
// packed matrices as a panel (cpu/kernels.h).
#pragma once

#include "cpu/run.h"

#include <bit>

namespace thermocline::cpu {

struct InputForm {
    /// What the vectors become.
    enum class Numbers { kFloat, kInt8, kFixed, kBF16, kParts };

    const quant::Matrix& matrix;
    const KernelTable& kernels;
    ops::InputRounding rounding;  ///< first: kE4M3, kBF16; else what the numbers say
    Numbers numbers;
    bool panel;
    float factor;

    InputForm(const quant::Matrix& w, ops::InputRounding of_step, const KernelTable& table)
        : matrix(w),
          kernels(table),
          rounding(of_step == ops::InputRounding::kBF16 && !quant::has_bf16_numbers(w) ? ops::InputRounding::kExact
                                                                                       : of_step),
          numbers(numbers_for(w, rounding, table)),
          panel(w.layout == quant::Layout::kStrips),
          factor(numbers == Numbers::kFloat ? quant::strip_input_factor(w) : 1.0f) {}

    /// Numbers of a panel for each vector of `width` columns; and of any form that vectors may take for a matrix, which
    /// may not be packed yet.
    int64_t panel_width(int64_t width) const { return numbers == Numbers::kParts ? width + width / 2 : width; }
    static int64_t most_width(const quant::Matrix& w, int64_t width) {
        const bool fp8 = w.format == quant::Format::kE4M3 || w.format == quant::Format::kE4M3Block128;
        return fp8 ? width + width / 2 : width;
    }

    /// Whether m vectors can be taken as they are: a vector alone is its own panel.
    bool takes_as_is(int64_t m) const {
        const bool floats = numbers == Numbers::kFloat || (numbers == Numbers::kParts && m == 1);
        const bool rounded = rounding == ops::InputRounding::kE4M3 || rounding == ops::InputRounding::kBF16;
        return floats && !rounded && factor == 1.0f && (!panel || m == 1);
    }
    /// What matmul wants as x_stride for m vectors of `width` columns.
    int64_t stride(int64_t m, int64_t width) const {
        return !panel ? width : numbers == Numbers::kBF16 ? m * quant::kStripBlock / 2 : m * quant::kStripBlock;
    }
    auto matmul() const {
        switch (numbers) {
            case Numbers::kInt8:
                return kernels.matmul_int8;
            case Numbers::kFixed:
                return kernels.matmul_fixed;
            case Numbers::kBF16:
                return kernels.matmul_bf16;
            case Numbers::kParts:
                return kernels.matmul_parts;
            default:
                return kernels.matmul;
        }
    }

    /// Converts `in` [width] and puts it where vector i of m belongs in `out` [m * panel_width], which matmul takes.
    void prepare(const float* in, int64_t width, float* out, int64_t i, int64_t m) const {
        if (!panel) return convert(in, out + i * width, width);
        const PanelGroups groups(m, kernels.panel_tokens);
        const int64_t group = groups.of(i), first = groups.first(group), count = groups.first(group + 1) - first;
        for (int64_t b = 0; b < width / quant::kStripBlock; ++b) {
            float block[quant::kStripBlock];
            convert(in + b * quant::kStripBlock, block, quant::kStripBlock);
            float* of_block = out + b * quant::kStripBlock * m;
            constexpr int64_t kGroups = quant::kStripBlock / quant::kInt8Columns;
            if (numbers == Numbers::kInt8) {
                kernels.round_int8(block, reinterpret_cast<quant::Int8Group*>(of_block) + i * kGroups,
                                   quant::kStripBlock);
            } else if (numbers == Numbers::kFixed) {
                kernels.round_fixed(block, reinterpret_cast<quant::FixedGroup*>(of_block) + i * kGroups,
                                    quant::kStripBlock);
            } else if (numbers == Numbers::kParts) {
                kernels.put_parts(matrix, block, b, i, m, out);
            } else if (numbers == Numbers::kBF16 && kernels.put_in_panel != nullptr) {
                kernels.put_in_panel(matrix, block, b, i, m, out);
            } else {
                const bool pairs = numbers == Numbers::kBF16;
                if (pairs) make_pairs(block);
                const int64_t size = pairs ? quant::kStripBlock / 2 : quant::kStripBlock;
                float* column = out + b * size * m + first * size + i - first;
                for (int64_t j = 0; j < size; ++j) column[j * count] = block[j];
            }
        }
    }

private:
    void convert(const float* in, float* out, int64_t n) const {
        if (rounding == ops::InputRounding::kE4M3) return kernels.round_e4m3(in, factor, out, n);
        kernels.scale(factor, in, nullptr, out, n);
        if (rounding == ops::InputRounding::kBF16) kernels.round_bf16(out, n);
    }

    static Numbers numbers_for(const quant::Matrix& w, ops::InputRounding rounding, const KernelTable& kernels) {
        const bool e4m3 = rounding == ops::InputRounding::kE4M3;
        if (rounding == ops::InputRounding::kInt8 && quant::has_integer_codes(w)) return Numbers::kInt8;
        if (e4m3 && kernels.matmul_bf16 != nullptr && quant::has_bf16_codes(w)) return Numbers::kBF16;
        if (rounding == ops::InputRounding::kBF16 && kernels.bf16_of_all) return Numbers::kBF16;
        if (kernels.matmul_fixed != nullptr && quant::has_integer_codes(w)) return Numbers::kFixed;
        if (kernels.matmul_parts != nullptr && has_exact_bf16_scales(w)) return Numbers::kParts;
        return Numbers::kFloat;
    }

    static bool has_exact_bf16_scales(const quant::Matrix& w) {
        return w.format == quant::Format::kE4M3 && w.scale_format == quant::Format::kE8M0 && quant::has_bf16_codes(w);
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
