// Codes of packed weights (src/quant/strips.h) as operands of the matrix instruction m16n8k16 (hybrid-engine.md 3.2).
//
// A strip is the 16 rows of the operand, a block of 128 columns is eight products. With g = lane / 4 and c = lane % 4 a
// lane holds rows g and g + 8 and four columns of every product. Which four is free as long as both operands agree: so
// that a lane finds them in one word of the row, and next to each other in a vector.
//
// Each struct below knows one format: the words a lane needs of a block, how they become bf16 (exactly), which columns
// they are, and the scales.
#pragma once

#include "cuda/launch.h"
#include "src/quant/matrix.h"
#include "src/quant/scalar.h"

#include <cmath>

namespace thermocline::cuda {

using quant::Format;

inline constexpr int kProducts = 8;  // of a block of 128 columns

template <typename T>
GPU_CODE T load_at(const std::byte* at) {
    return *reinterpret_cast<const T*>(at);
}

GPU_CODE inline float scale_at(Format format, const std::byte* scales, int64_t index) {
    switch (format) {
        case Format::kE8M0:
            return quant::e8m0_to_float(load_at<uint8_t>(scales + index));
        case Format::kE4M3:
            return quant::e4m3_to_float(load_at<uint8_t>(scales + index));
        case Format::kBF16:
            return quant::bf16_to_float(load_at<uint16_t>(scales + 2 * index));
        case Format::kF16:
            return quant::f16_to_float(load_at<uint16_t>(scales + 2 * index));
        default:
            return load_at<float>(scales + 4 * index);
    }
}

/// What two numbers of bf16, low half first, are times two others plus two more.
inline constexpr uint32_t kMinusZeros = 0x80008000;

/// Four e4m3 numbers.
template <typename Thread>
GPU_CODE void expand_e4m3(Thread& t, uint32_t word, uint32_t& low, uint32_t& high) {
    constexpr uint32_t kFactor = 0x7b807b80;  // 2^120: the exponent of e4m3 in the field of bf16 is short of that
    const auto expand = [&](uint32_t pair) {
        return t.fma_bf16((pair & 0x80008000) | (pair >> 4 & 0x07f007f0), kFactor, kMinusZeros);
    };
    low = expand(t.permute_bytes(word, 0, 0x1404));
    high = expand(t.permute_bytes(word, 0, 0x3424));
}

/// The four e2m1 numbers in the low nibbles of the bytes.
template <typename Thread>
GPU_CODE void expand_e2m1(Thread& t, uint32_t word, uint32_t& low, uint32_t& high) {
    constexpr uint32_t kFactor = 0x7e807e80;  // 2^126
    const auto expand = [&](uint32_t pair) {
        return t.fma_bf16((pair & 0x00080008) << 12 | (pair & 0x00070007) << 6, kFactor, kMinusZeros);
    };
    low = expand(t.permute_bytes(word, 0, 0x4140));
    high = expand(t.permute_bytes(word, 0, 0x4342));
}

/// The four 4-bit numbers, less 8, in the low nibbles of the bytes.
template <typename Thread>
GPU_CODE void expand_int4(Thread& t, uint32_t word, uint32_t& low, uint32_t& high) {
    constexpr uint32_t k128 = 0x43004300, kOnes = 0x3f803f80, kLess136 = 0xc308c308;
    const auto expand = [&](uint32_t pair) { return t.fma_bf16((pair & 0x000f000f) | k128, kOnes, kLess136); };
    low = expand(t.permute_bytes(word, 0, 0x4140));
    high = expand(t.permute_bytes(word, 0, 0x4342));
}

GPU_CODE inline uint32_t bf16_pair(float low, float high) {
    return quant::float_to_bf16(low) | static_cast<uint32_t>(quant::float_to_bf16(high)) << 16;
}

/// The words of one lane of a block: kWords of row g, then of row g + 8.
template <int kWords>
struct LaneWords {
    uint32_t of[2][kWords];
};

/// Codes of which a lane takes every fourth line's word of its rows.
template <int kLaneWords>
struct WordCodes {
    static constexpr int kWords = kLaneWords;
    static constexpr int64_t kCodeBytes = 256 * kWords;

    template <typename Thread>
    GPU_CODE static LaneWords<kWords> load(Thread& t, const std::byte* block) {
        LaneWords<kWords> words;
        const int g = t.lane() / 4, c = t.lane() % 4;
        for (int i = 0; i < kWords; ++i)
            for (int half = 0; half < 2; ++half)
                words.of[half][i] =
                    t.stream(reinterpret_cast<const uint32_t*>(block + (4 * i + c) * 64 + (g + 8 * half) * 4));
        return words;
    }
};

/// One byte a column: product i has columns 16 i + 4 c .. + 3.
struct ByteCodes : WordCodes<8> {
    GPU_CODE static int column(int product, int c) { return 16 * product + 4 * c; }
};

struct E4M3Codes : ByteCodes {
    static constexpr int64_t kBlockBytes = kCodeBytes;  // the scales lie elsewhere
    static constexpr int kGroup = 8;                    // products with one scale
    template <typename Thread>
    GPU_CODE static void expand(Thread& t, const LaneWords<kWords>& words, int product, int half, uint32_t& low,
                                uint32_t& high) {
        expand_e4m3(t, words.of[half][product], low, high);
    }
    GPU_CODE static float scale(const quant::Matrix& w, const std::byte*, int64_t n, int64_t k, int) {
        return scale_at(w.scale_format, w.scales + n / w.scale_rows * w.scale_stride, k / w.scale_cols);
    }
};

struct Q8Codes : ByteCodes {
    static constexpr int64_t kBlockBytes = kCodeBytes + 128;  // f16 scales of 32 columns
    static constexpr int kGroup = 2;
    template <typename Thread>
    GPU_CODE static void expand(Thread&, const LaneWords<kWords>& words, int product, int half, uint32_t& low,
                                uint32_t& high) {
        const uint32_t word = words.of[half][product];
        const auto number = [&](int i) { return static_cast<float>(static_cast<int8_t>(word >> 8 * i)); };
        low = bf16_pair(number(0), number(1));
        high = bf16_pair(number(2), number(3));
    }
    GPU_CODE static float scale(const quant::Matrix&, const std::byte* block, int64_t n, int64_t, int group) {
        return scale_at(Format::kF16, block + kCodeBytes, group * 16 + n % 16);
    }
};

/// Two columns a byte, scales for groups of at least 32: products 2 j and 2 j + 1 are the low and the high nibbles of
/// the same words, columns 32 j + 8 c .. + 3 and .. + 7.
struct NibbleCodes : WordCodes<4> {
    GPU_CODE static int column(int product, int c) { return 32 * (product / 2) + 8 * c + 4 * (product % 2); }
};

struct Mxfp4Codes : NibbleCodes {
    static constexpr int64_t kBlockBytes = kCodeBytes + 64;  // e8m0 scales of 32 columns
    static constexpr int kGroup = 2;
    template <typename Thread>
    GPU_CODE static void expand(Thread& t, const LaneWords<kWords>& words, int product, int half, uint32_t& low,
                                uint32_t& high) {
        expand_e2m1(t, words.of[half][product / 2] >> 4 * (product % 2), low, high);
    }
    GPU_CODE static float scale(const quant::Matrix&, const std::byte* block, int64_t n, int64_t, int group) {
        return scale_at(Format::kE8M0, block + kCodeBytes, group * 16 + n % 16);
    }
};

/// Scales of kColumns columns in bf16.
template <int kColumns>
struct Int4Codes : NibbleCodes {
    static constexpr int64_t kBlockBytes = kColumns == 32 ? kCodeBytes + 128 : kCodeBytes + 64;  // whole lines
    static constexpr int kGroup = kColumns / 16;
    template <typename Thread>
    GPU_CODE static void expand(Thread& t, const LaneWords<kWords>& words, int product, int half, uint32_t& low,
                                uint32_t& high) {
        expand_int4(t, words.of[half][product / 2] >> 4 * (product % 2), low, high);
    }
    GPU_CODE static float scale(const quant::Matrix&, const std::byte* block, int64_t n, int64_t, int group) {
        return scale_at(Format::kBF16, block + kCodeBytes, group * 16 + n % 16);
    }
};

/// e2m1 with e4m3 scales for groups of 16: a product is one group, columns 16 i + 4 c .. + 3, half a word of a lane.
struct Nvfp4Codes {
    static constexpr int kWords = 8;
    static constexpr int64_t kCodeBytes = 1024;
    static constexpr int64_t kBlockBytes = kCodeBytes + 128;
    static constexpr int kGroup = 1;

    template <typename Thread>
    GPU_CODE static LaneWords<kWords> load(Thread& t, const std::byte* block) {
        LaneWords<kWords> words;
        const int g = t.lane() / 4, c = t.lane() % 4;
        for (int i = 0; i < kWords; ++i)
            for (int half = 0; half < 2; ++half)
                words.of[half][i] =
                    t.stream(reinterpret_cast<const uint32_t*>(block + (2 * i + c / 2) * 64 + (g + 8 * half) * 4)) >>
                    4 * (c % 2);
        return words;
    }
    GPU_CODE static int column(int product, int c) { return 16 * product + 4 * c; }
    template <typename Thread>
    GPU_CODE static void expand(Thread& t, const LaneWords<kWords>& words, int product, int half, uint32_t& low,
                                uint32_t& high) {
        expand_e2m1(t, words.of[half][product], low, high);
    }
    GPU_CODE static float scale(const quant::Matrix&, const std::byte* block, int64_t n, int64_t, int group) {
        return scale_at(Format::kE4M3, block + kCodeBytes, group * 16 + n % 16);
    }
};

/// bf16 as it is: product i has columns 16 i + 4 c .. + 3 in two words.
struct Bf16Codes {
    static constexpr int kWords = 16;
    static constexpr int64_t kBlockBytes = 4096;
    static constexpr int kGroup = 8;

    template <typename Thread>
    GPU_CODE static LaneWords<kWords> load(Thread& t, const std::byte* block) {
        LaneWords<kWords> words;
        const int g = t.lane() / 4, c = t.lane() % 4;
        for (int i = 0; i < kWords; ++i)
            for (int half = 0; half < 2; ++half)
                words.of[half][i] = t.stream(
                    reinterpret_cast<const uint32_t*>(block + (8 * (i / 2) + 2 * c + i % 2) * 64 + (g + 8 * half) * 4));
        return words;
    }
    GPU_CODE static int column(int product, int c) { return 16 * product + 4 * c; }
    template <typename Thread>
    GPU_CODE static void expand(Thread&, const LaneWords<kWords>& words, int product, int half, uint32_t& low,
                                uint32_t& high) {
        low = words.of[half][2 * product];
        high = words.of[half][2 * product + 1];
    }
    GPU_CODE static float scale(const quant::Matrix&, const std::byte*, int64_t, int64_t, int) { return 1.0f; }
};

}  // namespace thermocline::cuda
