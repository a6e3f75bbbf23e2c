// The kernel table: every inner loop of the CPU backend, compiled once per ISA tier (cpu/isa/*.cpp) and picked at
// start by cpu/dispatch.cpp. Kernels are noexcept, allocate nothing, take unaligned data, and give results that do
// not depend on how rows are split over threads nor on the number of tokens m. No std:: containers here: ISA units
// include this file.
#pragma once

#include "src/quant/kv_row.h"
#include "src/quant/strips.h"

#include <cstddef>
#include <cstdint>

namespace thermocline::cpu {

/// What multiplies: a peak is one of these.
enum class Unit : uint8_t { kF32, kBF16, kI8 };

/// The m vectors of a panel in groups that a kernel passes at a time: nearly equal, none larger than `most`.
struct PanelGroups {
    int64_t m, count;

    [[gnu::always_inline]] PanelGroups(int64_t vectors, int64_t most) : m(vectors), count((m + most - 1) / most) {}
    /// The first vector of group g; of g = count: m.
    [[gnu::always_inline]] int64_t first(int64_t g) const { return m * g / count; }
    /// The group of vector i.
    [[gnu::always_inline]] int64_t of(int64_t i) const { return ((i + 1) * count - 1) / m; }
};

inline constexpr int64_t kPanelSlack = 16;     // numbers behind a panel that kernels read
inline constexpr int64_t kMostHeadBlock = 32;  // heads are padded to a multiple of it where any tier may write

struct KernelTable {
    const char* name;  ///< "scalar", "avx2", "avx512", "avx512_bf16", "amx"

    /// y[m, n - first] = sum_k W[n, k] * x[m, k] for rows n in [first, first + count), every weight format, decoded
    /// on the fly. Accumulates in float32 in an order that depends on k alone. Layout kStrips: `first` and `count` are
    /// multiples of 16, and x comes multiplied by quant::strip_input_factor(w) as a panel whose blocks are x_stride
    /// apart: [K / 128], of these the groups of PanelGroups, of these [128][vectors of the group].
    /// Up to kPanelSlack numbers behind it are read.
    void (*matmul)(const quant::Matrix& w, int64_t first, int64_t count, const float* x /*[m, x_stride]*/,
                   int64_t x_stride, int64_t m, float* y /*[m, y_stride]*/, int64_t y_stride) noexcept;
    /// The same for packed matrices with integer codes (quant::has_integer_codes). The panel is [K / 128], of these
    /// [m][4] quant::Int8Group.
    void (*matmul_int8)(const quant::Matrix& w, int64_t first, int64_t count, const float* x, int64_t x_stride,
                        int64_t m, float* y, int64_t y_stride) noexcept;
    /// The same with vectors in fixed point: [K / 128], of these [m][4] quant::FixedGroup. Null: the tier has no
    /// instruction for it, and matmul takes such vectors.
    void (*matmul_fixed)(const quant::Matrix& w, int64_t first, int64_t count, const float* x, int64_t x_stride,
                         int64_t m, float* y, int64_t y_stride) noexcept;
    /// The same for packed FP8 and FP4 matrices and vectors rounded to e4m3 (quant::has_bf16_codes), as matmul but that
    /// x is not multiplied and a number of the panel is a pair of bf16 columns: of every four 0 and 2, then 1 and 3.
    /// Null where the tier has no instruction for it.
    void (*matmul_bf16)(const quant::Matrix& w, int64_t first, int64_t count, const float* x, int64_t x_stride,
                        int64_t m, float* y, int64_t y_stride) noexcept;
    bool bf16_of_all;  ///< it takes any vectors of bf16, and all matrices that quant::has_bf16_numbers()
    /// Null: matmul_bf16 takes such a panel. Else one of its own, of [m * K] numbers, and x_stride does not matter:
    /// puts the rounded columns 128 b on of vector i of m, `numbers` [128], where they belong.
    void (*put_in_panel)(const quant::Matrix& w, const float* numbers, int64_t b, int64_t i, int64_t m,
                         float* panel) noexcept;
    /// The same for packed FP8 matrices with scales of e8m0, and vectors as the sum of three bf16 numbers, which is
    /// exact: put_parts puts columns of a vector in its panel, of [m * K * 3/2] numbers. Null: matmul takes them.
    void (*matmul_parts)(const quant::Matrix& w, int64_t first, int64_t count, const float* x, int64_t x_stride,
                         int64_t m, float* y, int64_t y_stride) noexcept;
    void (*put_parts)(const quant::Matrix& w, const float* numbers, int64_t b, int64_t i, int64_t m,
                      float* panel) noexcept;
    int panel_tokens;  ///< most vectors of a group of a panel
    /// Row n of W (layout kRows) as float32: out [W.cols].
    void (*decode_row)(const quant::Matrix& w, int64_t row, float* out) noexcept;

    float (*dot)(const float* a, const float* b, int64_t n) noexcept;
    float (*sum_squares)(const float* x, int64_t n) noexcept;
    /// y += a * x
    void (*axpy)(float a, const float* x, float* y, int64_t n) noexcept;
    /// y = a * x [* w if w]
    void (*scale)(float a, const float* x, const float* w, float* y, int64_t n) noexcept;
    /// In place rounding to bf16 (nearest even).
    void (*round_bf16)(float* x, int64_t n) noexcept;
    /// e4m3 fake quantisation in groups of 128 with power-of-two scales (deepseek-v4.md 2.11), times a power of two;
    /// y may be x.
    void (*round_e4m3)(const float* x, float factor, float* y, int64_t n) noexcept;
    /// int8 in groups of 32 columns; n % 32 == 0. x and out may begin at the same address.
    void (*round_int8)(const float* x, quant::Int8Group* out, int64_t n) noexcept;
    /// Fixed point in groups of 32 columns; n % 32 == 0. Null where matmul_fixed is.
    void (*round_fixed)(const float* x, quant::FixedGroup* out, int64_t n) noexcept;
    /// silu(min(gate, limit)) * clamp(up, -limit, limit) * weight
    void (*swiglu)(const float* gate, const float* up, float limit, float weight, float* out, int64_t n) noexcept;

    /// Rotates interleaved pairs by cos, sin of pair i at rotation[2i], [2i + 1]; sign -1: back. x [count, stride], of
    /// each row the first `dims`.
    void (*rope)(float* x, int64_t stride, int64_t count, const float* rotation, int64_t dims, float sign) noexcept;
    /// quant::hadamard: n a power of two.
    void (*hadamard)(float* x, int64_t n) noexcept;
    /// z = sqrt(softplus(z)) in place.
    void (*route_scores)(float* z, int64_t n) noexcept;

    /// quant::encode_kv_row.
    void (*encode_kv)(quant::KvFormat format, const float* x, int64_t width, int64_t rope, std::byte* row) noexcept;
    /// Cache rows to float32: count rows given by pointers, out [count, out_stride].
    void (*decode_kv)(quant::KvFormat format, const std::byte* const* rows, int64_t count, int64_t width, int64_t rope,
                      float* out, int64_t out_stride) noexcept;

    /// Head panels: heads in blocks of `head_block`, which divides kMostHeadBlock, of each block [width][head_block],
    /// zeros behind the last head. q [heads, width].
    void (*head_panel)(const float* q, int64_t heads, int64_t width, float* panel) noexcept;
    int head_block;
    /// logits[j, h] = scale * <q[h], keys[j]>, written up to the end of the last block of heads.
    void (*attention_scores)(const float* panel, int64_t heads, const float* keys /*[count, keys_stride]*/,
                             int64_t keys_stride, int64_t count, int64_t width, float scale, float* logits,
                             int64_t logits_stride) noexcept;
    /// One step of an online softmax of every head, heads % head_block == 0: logits [count, stride] become
    /// exp(logit - maximum); maximum, sum [heads] take them in; shrink [heads] is what earlier sums are worth now.
    void (*softmax_keys)(float* logits, int64_t stride, int64_t count, int64_t heads, float* maximum, float* sum,
                         float* shrink) noexcept;
    /// out[h] = shrink[h] * out[h] + sum_j p[j, h] * keys[j].
    void (*attention_values)(const float* p, int64_t p_stride, const float* shrink, int64_t heads, const float* keys,
                             int64_t keys_stride, int64_t count, int64_t width, float* out /*[heads, width]*/) noexcept;
    /// scores[j] = sum_h gates[h] * max(0, <q[h], keys[j]>), NaN as -infinity; keys [count, width].
    void (*index_scores)(const float* panel, const float* gates, int64_t heads, const float* keys, int64_t count,
                         int64_t width, float* scores) noexcept;
    /// The same for keys in rows of KvFormat::kFp4 and queries whose numbers it holds, width % 32 == 0: products of 32
    /// columns are exact. fp4_panel() makes their panel, no larger than head_panel()'s; work [count, width / 32].
    void (*fp4_panel)(const float* q, int64_t heads, int64_t width, float* panel) noexcept;
    void (*index_scores_fp4)(const float* panel, const float* gates, int64_t heads, const std::byte* const* rows,
                             int64_t count, int64_t width, quant::Int8Group* work, float* scores) noexcept;
    /// Channel-wise softmax-weighted sum over `count` slots: out[c] = sum_i softmax_i(scores[i][c]) * values[i][c].
    /// A null score row does not exist (score -inf).
    void (*pool)(const float* const* values, const float* const* scores, int64_t count, int64_t width,
                 float* out) noexcept;

    /// Index of the largest of x [n], n >= 1, the lowest of equals; a NaN counts as larger than any number.
    int64_t (*largest)(const float* x, int64_t n) noexcept;
    /// The k-th largest of x [n], 1 <= k <= n; NaN counts as -infinity.
    float (*kth_largest)(const float* x, int64_t n, int64_t k, int32_t* work /*[n]*/) noexcept;
    /// Indices of the numbers >= least, ascending; returns how many.
    int64_t (*at_least)(const float* x, int64_t n, float least, int32_t* out /*[n]*/) noexcept;
    /// out = exp((x - largest) * factor), 0 where x < least; returns the sum. For chunks of a few thousand numbers.
    float (*exp_sum)(const float* x, int64_t n, float largest, float factor, float least, float* out) noexcept;

    /// `rounds` rounds of independent multiply-adds in registers, as fast as the tier can. Returns the operations done,
    /// two per multiply-add; 0: the tier has no such unit. What they come to goes to sink [1].
    int64_t (*peak)(Unit unit, int64_t rounds, float* sink) noexcept;
};

/// Tiers that this binary carries and this processor runs, best last. Names as for --isa.
/// select("auto") takes the best; Error names an unknown or unsupported tier. The choice is process-wide and made
/// before the first step; THERMOCLINE_ISA overrides "auto" (developers).
const KernelTable& select_kernels(const char* isa);
int tier_count();
const KernelTable* tier_kernels(int tier);         ///< tier 0 .. tier_count() - 1; null: not runnable here
const KernelTable* find_kernels(const char* isa);  ///< null: unknown or not runnable here

}  // namespace thermocline::cpu
