// One row of a KV cache: a vector of `width` channels whose last `rope` channels carry the rotary position. Rows are
// self-contained and may lie at any address. Pure functions, nothing allocates.
//
//   kF32, kBF16  the numbers                                                                  width * 4, width * 2
//   kFp8F32      the numbers that kFp8 would give, rope channels exact, as f32: to compare with      width * 4
//                reference implementations, which simulate the trained form in wider numbers
//   kFp8         e4m3 of channels [0, width - rope), then the rope channels as bf16, then one e8m0 scale byte per 64
//                e4m3 channels (the last group may be shorter), zero bytes up to a multiple of 4.  512, rope 64: 584
//   kFp4         all channels (rope is ignored: the caller has mixed them by hadamard()) as e2m1, two a byte, low
//                nibble first, then one e8m0 scale byte per 32 channels, zero bytes up to a multiple of 4.   128: 68
//
// Scales are powers of two by the rules of deepseek-v4.md section 3.1: what decode returns is what
// round_e4m3_blocks64() and round_e2m1_blocks32() of activation.h give, with the rope channels rounded to bf16.
#pragma once

#include <cstddef>
#include <cstdint>

namespace thermocline::quant {

enum class KvFormat : uint8_t { kF32, kBF16, kFp8F32, kFp8, kFp4 };

/// Bytes of one row. 0 <= rope <= width (CHECK), width even for kFp4 (CHECK).
int64_t kv_row_bytes(KvFormat format, int64_t width, int64_t rope);

/// x [width] -> out [kv_row_bytes]. kFp4 holds no NaN: it becomes the largest code of its group.
void encode_kv_row(KvFormat format, const float* x, int64_t width, int64_t rope, std::byte* out);

/// row [kv_row_bytes] -> x [width].
void decode_kv_row(KvFormat format, const std::byte* row, int64_t width, int64_t rope, float* x);

}  // namespace thermocline::quant
