// Matrices times vectors: out[v, n] = sum_k W[n, k] x[v, k].
//
// Vectors go to the matrix instruction in bf16: those rounded to e4m3 are exact in it, others are two numbers, the
// nearest bf16 and the nearest of what is left, which together are exact to 2^-17. Sums are float32.
#pragma once

#include "cuda/kernels/block.h"
#include "cuda/kernels/codes.h"
#include "src/quant/strips.h"

namespace thermocline::cuda {

inline constexpr int kRoundedColumns = 128;  // of a vector that share a scale of e4m3

/// One warp: numbers [first, first + kRoundedColumns) of a vector of `width`, if they are to be rounded, then as the
/// nearest numbers of e4m3 with a power-of-two scale for all of them. number_of(i) is called twice then.
template <typename Thread, typename Number, typename Write>
GPU_CODE void prepare_group(Thread& t, int64_t first, int64_t width, bool rounded, Number number_of, Write write) {
    const int64_t last = first + kRoundedColumns < width ? first + kRoundedColumns : width;
    float scale = 1.0f, inverse = 1.0f;
    if (rounded) {
        float most = 0.0f;
        for (int64_t i = first + t.lane(); i < last; i += kWarp) most = fmaxf(most, fabsf(number_of(i)));
        const int exponent = quant::fp8_scale_exponent(warp_max(t, most));
        scale = quant::pow2(exponent);
        inverse = quant::pow2(-exponent);
    }
    for (int64_t i = first + t.lane(); i < last; i += kWarp) {
        const float number = number_of(i);
        write(i, rounded ? quant::e4m3_to_float(quant::float_to_e4m3(number * inverse)) * scale : number);
    }
}

/// A number as a sum of `pieces` numbers of bf16, each the nearest to what is left, `stride` apart.
GPU_CODE inline void write_pieces(float number, int pieces, int64_t stride, uint16_t* out) {
    for (int piece = 0; piece < pieces; ++piece) {
        out[piece * stride] = quant::float_to_bf16(number);
        number -= quant::bf16_to_float(out[piece * stride]);
    }
}

/// Vectors as the kernels below want them. Grid: vectors, groups of 128 columns; one warp.
struct PrepareVectors {
    static constexpr const char* kName = "PrepareVectors";
    const float* in;       // [vectors, width]
    uint16_t* pieces_out;  // [vectors, pieces, width] bf16; or null
    float* floats_out;     // [vectors, width]; or null
    int64_t width;
    int32_t pieces;
    bool rounded;  // to e4m3, each group of 128 with a power-of-two scale

    template <typename Thread>
    GPU_CODE void operator()(Thread& t) const {
        const float* x = in + t.block() * width;
        prepare_group(
            t, t.block_y() * kRoundedColumns, width, rounded, [&](int64_t i) { return x[i]; },
            [&](int64_t i, float number) {
                if (floats_out != nullptr) floats_out[t.block() * width + i] = number;
                if (pieces_out != nullptr)
                    write_pieces(number, pieces, width, pieces_out + t.block() * pieces * width + i);
            });
    }
};

/// What the kernels for packed matrices are given.
struct PackedProduct {
    quant::Matrix w;    // kStrips, one slice
    const uint16_t* x;  // [vectors, groups, pieces, w.cols] bf16
    float* out;         // [vectors, w.rows]
    int64_t vectors;
    int32_t groups;  // blocks of rows of w, each with vectors of its own

    /// The first number of vector v for the strip.
    GPU_CODE const uint16_t* vector(int64_t v, int64_t strip, int pieces) const {
        const int64_t group = strip * quant::kStripRows / (w.rows / groups);
        return x + (v * groups + group) * pieces * w.cols;
    }
};

/// acc += the products of one block of 128 columns for kTiles tiles of 8 vectors. operand(tile, piece, column) gives
/// four columns of the lane's vector.
template <typename Codes, int kPieces, int kTiles, typename Thread, typename Operand>
GPU_CODE void multiply_block(Thread& t, const quant::Matrix& w, const std::byte* block,
                             const LaneWords<Codes::kWords>& words, int64_t row, int64_t column, Operand operand,
                             float (&acc)[kTiles][4]) {
    const int g = t.lane() / 4, c = t.lane() % 4;
#pragma unroll
    for (int group = 0; group < kProducts / Codes::kGroup; ++group) {
        float part[kTiles][4] = {};
#pragma unroll
        for (int i = 0; i < Codes::kGroup; ++i) {
            const int product = group * Codes::kGroup + i;
            uint32_t a[4];
            Codes::expand(t, words, product, 0, a[0], a[2]);
            Codes::expand(t, words, product, 1, a[1], a[3]);
#pragma unroll
            for (int tile = 0; tile < kTiles; ++tile)
#pragma unroll
                for (int piece = 0; piece < kPieces; ++piece) {
                    const uint64_t four = operand(tile, piece, Codes::column(product, c));
                    const uint32_t b[2] = {static_cast<uint32_t>(four), static_cast<uint32_t>(four >> 32)};
                    t.mma(part[tile], a, b);
                }
        }
        const float upper = Codes::scale(w, block, row + g, column, group);
        const float lower = Codes::scale(w, block, row + g + 8, column, group);
#pragma unroll
        for (int tile = 0; tile < kTiles; ++tile) {
            acc[tile][0] = fmaf(upper, part[tile][0], acc[tile][0]);
            acc[tile][1] = fmaf(upper, part[tile][1], acc[tile][1]);
            acc[tile][2] = fmaf(lower, part[tile][2], acc[tile][2]);
            acc[tile][3] = fmaf(lower, part[tile][3], acc[tile][3]);
        }
    }
}

/// Eight numbers of bf16.
struct alignas(16) Eight {
    uint32_t words[4];
};

/// Few vectors: a block has one strip, its warps share the columns; their sums are added in the order of the warps.
/// Grid: strips, ceil(vectors / (8 kTiles)); at most kMostWarps warps; shared_bytes().
template <typename Codes, int kPieces, int kTiles>
struct FewVectors : PackedProduct {
    static constexpr const char* kName = "FewVectors";
    static constexpr int kMostWarps = 8, kMostThreads = kMostWarps * kWarp;
    static constexpr int kVectors = 8 * kTiles;
    static constexpr int64_t shared_bytes(int warps) {
        return int64_t{warps} * quant::kStripRows * kVectors * static_cast<int64_t>(sizeof(float));
    }

    template <typename Thread>
    GPU_CODE void operator()(Thread& t) const {
        const int g = t.lane() / 4, c = t.lane() % 4;
        const int64_t strip = t.block(), first = t.block_y() * kVectors, row = strip * quant::kStripRows;
        const std::byte* codes = w.data + strip * w.strip_bytes;
        const uint16_t* own[kTiles];  // the lane's vectors; null: none
#pragma unroll
        for (int tile = 0; tile < kTiles; ++tile) {
            const int64_t v = first + tile * 8 + g;
            own[tile] = v < vectors ? this->vector(v, strip, kPieces) : nullptr;
        }
        float acc[kTiles][4] = {};
        for (int64_t k = t.warp() * quant::kStripBlock; k < w.cols; k += t.warps() * quant::kStripBlock) {
            const std::byte* block = codes + k / quant::kStripBlock * Codes::kBlockBytes;
            const auto words = Codes::load(t, block);
            multiply_block<Codes, kPieces>(
                t, w, block, words, row, k,
                [&](int tile, int piece, int column) {
                    if (own[tile] == nullptr) return uint64_t{0};
                    return *reinterpret_cast<const uint64_t*>(own[tile] + piece * w.cols + k + column);
                },
                acc);
        }

        auto sums = t.template shared<float>(0, int64_t{t.warps()} * quant::kStripRows * kVectors);
        const int own_sums = t.warp() * 16 * kVectors;  // [vector][row]
#pragma unroll
        for (int tile = 0; tile < kTiles; ++tile)
#pragma unroll
            for (int i = 0; i < 4; ++i)
                sums.set(own_sums + (tile * 8 + 2 * c + i % 2) * 16 + g + i / 2 * 8, acc[tile][i]);
        t.sync();
        for (int i = t.id(); i < 16 * kVectors; i += t.threads()) {
            float sum = 0.0f;
            for (int warp = 0; warp < t.warps(); ++warp) sum += sums[warp * 16 * kVectors + i];
            const int64_t v = first + i / 16;
            if (v < vectors) out[v * w.rows + row + i % 16] = sum * w.multiplier;
        }
    }
};

/// Many vectors: a block has 64 of them and 2 strips a warp, all columns of them in turn; vectors lie in shared memory,
/// where rows are 16 bytes longer than their columns so that the eight vectors of a tile come from different banks.
/// Grid: ceil(strips / (2 warps)), ceil(vectors / 64); shared_bytes().
template <typename Codes, int kPieces>
struct ManyVectors : PackedProduct {
    static constexpr const char* kName = "ManyVectors";
    static constexpr int kWarps = 8, kMostThreads = kWarps * kWarp, kStrips = 2, kTiles = 8, kVectors = 8 * kTiles;
    static constexpr int kStride = quant::kStripBlock + 8;
    static constexpr int64_t shared_bytes() { return int64_t{kVectors} * kPieces * kStride * 2; }

    template <typename Thread>
    GPU_CODE void operator()(Thread& t) const {
        const int g = t.lane() / 4, c = t.lane() % 4;
        const int64_t first = t.block_y() * kVectors;
        const int64_t strip = (t.block() * kWarps + t.warp()) * kStrips, strips = w.rows / quant::kStripRows;
        auto panel = t.template shared<uint16_t>(0, kVectors * kPieces * kStride);  // [vector, piece][column]
        float acc[kStrips][kTiles][4] = {};
        for (int64_t k = 0; k < w.cols; k += quant::kStripBlock) {
            t.sync();
            // Blocks do not straddle groups of rows: the launch sees to that.
            for (int i = t.id(); i < kVectors * kPieces * 16; i += t.threads()) {  // 8 columns each
                const int64_t v = first + i / 16 / kPieces;
                Eight eight = {};
                if (v < vectors)
                    eight = *reinterpret_cast<const Eight*>(vector(v, t.block() * kWarps * kStrips, kPieces) +
                                                            i / 16 % kPieces * w.cols + k + i % 16 * 8);
                panel.template set_as<Eight>(i / 16 * kStride + i % 16 * 8, eight);
            }
            t.sync();
#pragma unroll
            for (int s = 0; s < kStrips; ++s) {
                if (strip + s >= strips) continue;
                const std::byte* block =
                    w.data + (strip + s) * w.strip_bytes + k / quant::kStripBlock * Codes::kBlockBytes;
                const auto words = Codes::load(t, block);
                multiply_block<Codes, kPieces>(
                    t, w, block, words, (strip + s) * quant::kStripRows, k,
                    [&](int tile, int piece, int column) {
                        return panel.template as<uint64_t>(((tile * 8 + g) * kPieces + piece) * kStride + column);
                    },
                    acc[s]);
            }
        }
#pragma unroll
        for (int s = 0; s < kStrips; ++s) {
            if (strip + s >= strips) continue;
#pragma unroll
            for (int tile = 0; tile < kTiles; ++tile)
#pragma unroll
                for (int i = 0; i < 4; ++i) {
                    const int64_t v = first + tile * 8 + 2 * c + i % 2;
                    const int64_t n = (strip + s) * quant::kStripRows + g + i / 2 * 8;
                    if (v < vectors) out[v * w.rows + n] = acc[s][tile][i] * w.multiplier;
                }
        }
    }
};

/// Matrices that have no packed form, or one of float32 or f16: a warp has a row, its lanes share the columns.
/// Grid: ceil(rows / warps), ceil(vectors / kVectors).
struct RowProduct {
    static constexpr const char* kName = "RowProduct";
    static constexpr int kVectors = 8;
    quant::Matrix w;  // F32, F16, BF16, E4M3, E2M1 pairs or INT4 pairs
    const float* x;   // [vectors, groups, w.cols]
    float* out;       // [vectors, w.rows]
    int64_t vectors;
    int32_t groups;

    template <typename Thread>
    GPU_CODE void operator()(Thread& t) const {
        const int64_t n = t.block() * t.warps() + t.warp();
        if (n >= w.rows) return;
        const int64_t first = t.block_y() * kVectors, group = n / (w.rows / groups);
        const int count = static_cast<int>(vectors - first < kVectors ? vectors - first : kVectors);
        float acc[kVectors] = {};
        for (int64_t k = t.lane(); k < w.cols; k += kWarp) {
            const float number = element(n, k);
#pragma unroll
            for (int v = 0; v < kVectors; ++v)
                if (v < count) acc[v] = fmaf(number, x[((first + v) * groups + group) * w.cols + k], acc[v]);
        }
#pragma unroll
        for (int v = 0; v < kVectors; ++v) {
            if (v >= count) break;
            const float sum = warp_sum(t, acc[v]);
            if (t.lane() == 0) out[(first + v) * w.rows + n] = sum * w.multiplier;
        }
    }

    /// Number (n, k) without the multiplier.
    GPU_CODE float element(int64_t n, int64_t k) const {
        if (w.layout == quant::Layout::kStrips) return packed_element(n, k);
        const std::byte* row = w.data + n * w.row_bytes;
        float code = 0.0f;
        switch (w.format) {
            case Format::kF32:
                return load_at<float>(row + 4 * k);
            case Format::kF16:
                return quant::f16_to_float(load_at<uint16_t>(row + 2 * k));
            case Format::kBF16:
                return quant::bf16_to_float(load_at<uint16_t>(row + 2 * k));
            case Format::kE4M3:
                code = quant::e4m3_to_float(load_at<uint8_t>(row + k));
                break;
            default: {
                const int nibble = load_at<uint8_t>(row + k / 2) >> k % 2 * 4 & 15;
                code = w.format == Format::kE2M1Pair ? e2m1(nibble) : static_cast<float>(nibble - zero_point(n, k));
            }
        }
        if (w.scales == nullptr) return code;
        return code * scale_at(w.scale_format, w.scales + n / w.scale_rows * w.scale_stride, k / w.scale_cols);
    }

private:
    GPU_CODE static float e2m1(int nibble) {
        const float magnitude = quant::expand_small_float<1, 1>(static_cast<uint32_t>(nibble & 7));
        return nibble & 8 ? -magnitude : magnitude;
    }
    GPU_CODE int zero_point(int64_t n, int64_t k) const {
        if (w.zero_points == nullptr) return 8;
        const int64_t per_row = (w.cols + w.scale_cols - 1) / w.scale_cols;
        const std::byte* word = w.zero_points + (n / 8 * per_row + k / w.scale_cols) * 4;
        return load_at<uint8_t>(word + n % 8 / 2) >> n % 2 * 4 & 15;
    }
    GPU_CODE float packed_element(int64_t n, int64_t k) const {
        const int64_t bytes = w.format == Format::kF32 ? 4 : 2, columns = 4 / bytes;  // of a word
        const std::byte* block =
            w.data + n / quant::kStripRows * w.strip_bytes + k / quant::kStripBlock * (2048 * bytes);
        const std::byte* word = block + k % quant::kStripBlock / columns * quant::kLineBytes + n % 16 * 4;
        if (w.format == Format::kF32) return load_at<float>(word);
        return quant::f16_to_float(load_at<uint16_t>(word + k % 2 * 2));
    }
};

}  // namespace thermocline::cuda
