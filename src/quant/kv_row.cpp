#include "src/quant/kv_row.h"

#include "src/base/check.h"
#include "src/quant/activation.h"
#include "src/quant/scalar.h"

#include <algorithm>
#include <cstring>

namespace thermocline::quant {
namespace {

constexpr int64_t kFp8Group = 64;
constexpr int64_t kFp4Group = 32;

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
int64_t round_up4(int64_t bytes) { return ceil_div(bytes, 4) * 4; }

void encode_bf16(const float* x, int64_t n, std::byte* out) {
    for (int64_t i = 0; i < n; ++i) {
        const uint16_t code = float_to_bf16(x[i]);
        std::memcpy(out + 2 * i, &code, sizeof code);
    }
}

void decode_bf16(const std::byte* in, int64_t n, float* x) {
    for (int64_t i = 0; i < n; ++i) x[i] = bf16_to_float(load_unaligned<uint16_t>(in + 2 * i));
}

void encode_fp8(const float* x, int64_t width, int64_t rope, std::byte* out) {
    const int64_t plain = width - rope;
    std::byte* scales = out + plain + 2 * rope;
    for (int64_t k = 0; k < plain; k += kFp8Group) {
        const int64_t size = std::min(kFp8Group, plain - k);
        const int exponent = fp8_scale_exponent(largest_magnitude(x + k, size));
        for (int64_t i = k; i < k + size; ++i) out[i] = std::byte{float_to_e4m3(x[i] * pow2(-exponent))};
        scales[k / kFp8Group] = std::byte{exponent_to_e8m0(exponent)};
    }
    encode_bf16(x + plain, rope, out + plain);
}

void decode_fp8(const std::byte* row, int64_t width, int64_t rope, float* x) {
    const int64_t plain = width - rope;
    const std::byte* scales = row + plain + 2 * rope;
    for (int64_t k = 0; k < plain; ++k) {
        const float scale = e8m0_to_float(std::to_integer<uint8_t>(scales[k / kFp8Group]));
        x[k] = e4m3_to_float(std::to_integer<uint8_t>(row[k])) * scale;
    }
    decode_bf16(row + plain, rope, x + plain);
}

void encode_fp8_f32(const float* x, int64_t width, int64_t rope, std::byte* out) {
    std::memcpy(out, x, static_cast<size_t>(width) * sizeof *x);
    for (int64_t k = 0; k < width - rope; k += kFp8Group) {
        float group[kFp8Group];
        const int64_t size = std::min(kFp8Group, width - rope - k);
        std::copy_n(x + k, size, group);
        round_e4m3_blocks64(group, size);
        std::memcpy(out + k * 4, group, static_cast<size_t>(size) * sizeof *x);
    }
}

void encode_fp4(const float* x, int64_t width, std::byte* out) {
    std::byte* scales = out + width / 2;
    for (int64_t k = 0; k < width; k += kFp4Group) {
        const int64_t size = std::min(kFp4Group, width - k);
        const int exponent = fp4_scale_exponent(largest_magnitude(x + k, size));
        const float inverse = pow2(-exponent);
        for (int64_t i = k; i < k + size; i += 2) {
            const int even = float_to_e2m1(x[i] * inverse), odd = float_to_e2m1(x[i + 1] * inverse);
            out[i / 2] = static_cast<std::byte>(even | odd << 4);
        }
        scales[k / kFp4Group] = std::byte{exponent_to_e8m0(exponent)};
    }
}

void decode_fp4(const std::byte* row, int64_t width, float* x) {
    const std::byte* scales = row + width / 2;
    for (int64_t k = 0; k < width; ++k) {
        const uint8_t pair = std::to_integer<uint8_t>(row[k / 2]);
        const float scale = e8m0_to_float(std::to_integer<uint8_t>(scales[k / kFp4Group]));
        x[k] = e2m1_to_float(k % 2 == 0 ? pair & 15 : pair >> 4) * scale;
    }
}

}  // namespace

int64_t kv_row_bytes(KvFormat format, int64_t width, int64_t rope) {
    CHECK(rope >= 0 && rope <= width);
    switch (format) {
        case KvFormat::kF32:
        case KvFormat::kFp8F32:
            return width * 4;
        case KvFormat::kBF16:
            return width * 2;
        case KvFormat::kFp8:
            return round_up4(width - rope + 2 * rope + ceil_div(width - rope, kFp8Group));
        case KvFormat::kFp4:
            CHECK(width % 2 == 0);
            return round_up4(width / 2 + ceil_div(width, kFp4Group));
    }
    CHECK(!"not a KV format");
    return 0;
}

void encode_kv_row(KvFormat format, const float* x, int64_t width, int64_t rope, std::byte* out) {
    std::memset(out, 0, static_cast<size_t>(kv_row_bytes(format, width, rope)));
    switch (format) {
        case KvFormat::kF32:
            std::memcpy(out, x, static_cast<size_t>(width) * sizeof *x);
            return;
        case KvFormat::kFp8F32:
            return encode_fp8_f32(x, width, rope, out);
        case KvFormat::kBF16:
            return encode_bf16(x, width, out);
        case KvFormat::kFp8:
            return encode_fp8(x, width, rope, out);
        case KvFormat::kFp4:
            return encode_fp4(x, width, out);
    }
}

void decode_kv_row(KvFormat format, const std::byte* row, int64_t width, int64_t rope, float* x) {
    switch (format) {
        case KvFormat::kF32:
        case KvFormat::kFp8F32:
            std::memcpy(x, row, static_cast<size_t>(width) * sizeof *x);
            return;
        case KvFormat::kBF16:
            return decode_bf16(row, width, x);
        case KvFormat::kFp8:
            return decode_fp8(row, width, rope, x);
        case KvFormat::kFp4:
            return decode_fp4(row, width, x);
    }
}

}  // namespace thermocline::quant
