// Looks at scales and codes for what no sound file holds (weight-formats.md sections 3 and 12): NaN, infinity, zero or
// negative scales (all of them are read), NaN codes in FP8 weights and in MXFP4 blocks (a sample). Pure functions.
#pragma once

#include "src/quant/matrix.h"

#include <string>

namespace thermocline::model {

/// Throws Error naming `tensor` and the place of the first bad scale of `matrix`. Zero is allowed for E4M3 scales only.
void check_scales(const quant::Matrix& matrix, const std::string& tensor);

/// Throws Error naming `tensor` if a sampled code of an E4M3, MXFP4-block or F8_E4M3_B128 matrix is NaN.
void check_codes(const quant::Matrix& matrix, const std::string& tensor);

}  // namespace thermocline::model
