// Wrong NVFP4 files produce plausible garbage, so their layout is checked before it is believed (weight-formats.md 5):
// shapes, the convention of the global scale, the codes, and whether block scales lie in rows or in the 128x4 tiles
// that tensor cores want. Pure functions.
#pragma once

#include "src/model/weights.h"

#include <cstdint>
#include <string>
#include <vector>

namespace thermocline::model {

inline constexpr int64_t kNvfp4Group = 16;

/// Throws Error unless `scale` is F8_E4M3 [rows, cols / 16]; names swizzled and half-written scales as what they are.
void check_nvfp4_scale_shape(const TensorEntry& scale, int64_t rows, int64_t cols);

/// The global scale as a multiplier. `divisor`: the name says that it divides. Throws Error if the largest weight it
/// implies is absurd while its reciprocal would make sense (the file mixes up the conventions), or if neither does.
float nvfp4_multiplier(const TensorEntry& global, bool divisor);

/// Throws Error if the largest weight of `name` that a multiplier implies, 6 * 448 * multiplier, is not plausible.
void check_nvfp4_amax(const std::string& name, double multiplier);

/// Where the scale of row n and block kb lies in the 128x4 tile order of a matrix with `blocks` blocks a row.
int64_t swizzled_offset(int64_t n, int64_t kb, int64_t blocks);

/// How much better than chance rows and columns explain log2 of the scales [rows, blocks], read in either order.
double scale_structure(const std::byte* scales, int64_t rows, int64_t blocks, bool swizzled);

enum class ScaleOrder { kLinear, kSwizzled, kUndetermined };

/// Decides over many scale tensors (E4M3 [rows, blocks], rows a multiple of 128, blocks of 4; others do not vote).
ScaleOrder scale_order(const std::vector<const TensorEntry*>& scales);

/// The checks that need many tensors, on a sample of a file: scale order (throws Error if swizzled), codes, sizes of
/// scales, and magnitudes between experts of a layer (warnings, appended one line each). Nothing to do without NVFP4.
void check_nvfp4_sample(const WeightDirectory& weights, std::vector<std::string>& warnings);

}  // namespace thermocline::model
