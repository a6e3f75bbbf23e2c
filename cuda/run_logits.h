// The largest logits of the output rows, found on the card behind the last step of a pass.
#pragma once

#include "cuda/device.h"
#include "cuda/kernels/logits.h"

#include <cstddef>
#include <cstdint>
#include <functional>

namespace thermocline::cuda {

/// Memory of the card for up to some rows.
struct LogitsMemory {
    TopRow* rows = nullptr;
    Candidate* candidates = nullptr;
    LogitSum* sums = nullptr;
};
/// take(bytes) gives memory of the card.
LogitsMemory logits_memory(int64_t vocab, int64_t max_rows, const std::function<std::byte*(int64_t)>& take);

/// memory.rows of `logits` [rows, vocab]. `factors`: [rows] 1 / temperature.
void top_logits(Stream& stream, const float* logits, const float* factors, int64_t vocab, int64_t rows,
                const LogitsMemory& memory);

}  // namespace thermocline::cuda
