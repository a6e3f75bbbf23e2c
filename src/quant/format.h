// How bytes on disk encode numbers: one enum, one trait row per format. Everything that must know a block size, a
// name or a type id asks here. Layouts: shared/design/weight-formats.md (sections 1, 8.1, 9).
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string_view>

namespace thermocline::quant {

enum class Format : uint8_t {
    // plain numbers
    kF64,
    kF32,
    kF16,
    kBF16,
    kI64,
    kI32,
    kI16,
    kI8,
    kU64,
    kU32,
    kU16,
    kU8,
    kBool,
    // one-byte floats; a matrix of kE4M3 carries its scales beside it (Matrix::scales)
    kE4M3,
    kE5M2,
    kE8M0,
    // nibbles along a row, low nibble first, scales beside it: e2m1 (MXFP4, NVFP4) and offset-binary int4
    kE2M1Pair,
    kInt4Pair,
    // self-contained GGUF blocks
    kQ4_0,
    kQ4_1,
    kQ5_0,
    kQ5_1,
    kQ8_0,
    kQ2_K,
    kQ3_K,
    kQ4_K,
    kQ5_K,
    kQ6_K,
    kIQ4_NL,
    kIQ4_XS,
    kIQ2_XXS,
    kIQ2_XS,
    kIQ2_S,
    kIQ3_XXS,
    kIQ3_S,
    kIQ1_S,
    kIQ1_M,
    kTQ1_0,
    kTQ2_0,
    kMxfp4Block,
    kNvfp4Block,
    kQ1_0,
    kQ2_0,
    kE4M3Block128,
    kCount
};

struct FormatTraits {
    std::string_view name;  ///< as printed by `inspect`, e.g. "Q4_K"
    int32_t block;          ///< elements per block along a row
    int32_t block_bytes;    ///< bytes per block
    bool weight;            ///< a matrix of this format can be multiplied with
};

/// The trait row of a format. Constant time, thread-safe.
const FormatTraits& traits(Format format);

/// Bytes of `elements` consecutive numbers; `elements` must be a multiple of the block (CHECK).
int64_t bytes_of(Format format, int64_t elements);

/// safetensors dtype string ("BF16", "F8_E4M3", ...) -> format; nothing for names that are not supported.
std::optional<Format> from_safetensors(std::string_view dtype);

/// GGUF tensor type id -> format. Nothing for unknown and refused ids, and for 42: three writers use that number, so
/// the GGUF reader must tell kQ2_0 from kE4M3Block128 by the bytes that the tensors occupy (section 8.1).
std::optional<Format> from_gguf(uint32_t type_id);

/// Why from_gguf() returns nothing for this id, for an error message; empty for accepted ids and for 42.
std::string_view refused_gguf_type(uint32_t type_id);

}  // namespace thermocline::quant
