// Decoders of the self-contained blocks, one obvious function per format; used by reference.cpp alone.
#pragma once

#include "src/quant/format.h"

#include <cstddef>

namespace thermocline::quant {

/// Decodes one block of a self-contained GGUF format: traits(format).block numbers. CHECK on other formats.
void decode_block(Format format, const std::byte* block, double* out);

}  // namespace thermocline::quant
