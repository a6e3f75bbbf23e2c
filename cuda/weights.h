// How a weight matrix lies in the memory of a card: its codes, then its scales, then its zero points, one slice, each
// part aligned for the widest load.
#pragma once

#include "src/quant/matrix.h"

#include <cstddef>
#include <cstdint>
#include <vector>

namespace thermocline::cuda {

struct Copy {
    const std::byte* from;  // of the host
    std::byte* to;          // of the card
    int64_t bytes;
};

/// The matrix as it will lie from `at` on (aligned to kAlignment), and appends the copies that bring it there.
quant::Matrix place(const quant::Matrix& matrix, std::byte* at, std::vector<Copy>& copies);

/// Bytes that place() takes, a multiple of kAlignment.
int64_t placed_bytes(const quant::Matrix& matrix);

}  // namespace thermocline::cuda
