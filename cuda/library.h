// Products of prompts by a library of the card's maker (Stream::multiply): a matrix whose numbers are exact in bf16 is
// expanded to it, a stretch of rows at a time that a large card's cache holds, and multiplied from there. So are
// vectors prepared for the kernels of this program: one number of bf16, or two whose products are added
// (kernels/linear.h). Other matrices stay with these kernels, and so do passes of few rows, which are recorded.
//
// Which products the library takes, and from how many rows on, is measured when the program starts.
#pragma once

#include "cuda/run.h"

#include <cstdint>
#include <string>
#include <vector>

namespace thermocline::cuda {

/// Passes of fewer rows do not ask.
inline constexpr int64_t kLeastLibraryRows = 256;

struct LibraryProducts {
    uint16_t* expanded = nullptr;          // [expanded_bytes()] on the card
    std::vector<int64_t> from_rows = {};   // [plan.matrices] rows from which on; 0: never. Empty: nothing by a library
    std::vector<std::string> report = {};  // a line for every shape and kind of matrix

    bool takes(ops::MatrixId weight, int64_t rows) const {
        const auto i = static_cast<size_t>(weight);
        return i < from_rows.size() && from_rows[i] > 0 && rows >= from_rows[i];
    }
};

/// Bytes of card memory for stretches of matrices in passes of up to `max_rows` rows; 0: no product of the plan asks.
int64_t expanded_bytes(const ops::Plan& plan, int64_t max_rows);

/// What lies in frame.scratch (prepare()) times the step's matrix, by the library.
void multiply_by_library(const ops::Linear& step, const Frame& frame);

/// Plays one product of every shape with random vectors both ways, with as many rows as a prompt has and with fewer:
/// the library takes it from where on it is the faster, if it gives what the kernels give. `frame`: slots are
/// overwritten; frame.library is not looked at. Takes up to seconds. Throws Error if the card fails.
LibraryProducts try_library(const Frame& frame, Device& device, int64_t max_rows, uint16_t* expanded);

}  // namespace thermocline::cuda
