// Looks at scales and codes for what no sound file holds (weight-formats.md sections 3 and 12): NaN, infinity, zero or
// negative scales (all of them are read); NaN and infinity in plain numbers, FP8 codes and the scales inside GGUF
// blocks (a sample). Pure functions.
#pragma once

#include "src/quant/matrix.h"

#include <string>

namespace thermocline::model {

/// Throws Error naming `tensor` and the place of the first bad scale of `matrix`. Zero is allowed for E4M3 scales only.
void check_scales(const quant::Matrix& matrix, const std::string& tensor);

/// Throws Error naming `tensor` and the place if a sampled number, code or block scale of `matrix` is not finite.
void check_codes(const quant::Matrix& matrix, const std::string& tensor);

}  // namespace thermocline::model
