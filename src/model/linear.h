// One linear layer of a checkpoint: which tensors it consists of, how they are quantised (weight-formats.md section
// 10: the suffixes decide, not the config), and the matrix they make. Checks shapes and scales; copies nothing.
// Functions without state.
#pragma once

#include "src/model/weights.h"

#include <string>
#include <vector>

namespace thermocline::model {

enum class Scheme { kUnknown, kPlain, kFp8, kMxfp4, kNvfp4Multiplier, kNvfp4Divisor, kInt4, kConverted };

/// "plain", "FP8 e4m3", "MXFP4", ...
const char* scheme_text(Scheme scheme);

/// The tensors named X.<suffix>; absent ones are null.
struct LinearTensors {
    std::string module;                        // X
    const TensorEntry* weight = nullptr;       // .weight
    const TensorEntry* packed = nullptr;       // .weight_packed
    std::vector<const TensorEntry*> scales;    // .weight_scale_inv, .scale, .weight_scale: one at most is right
    const TensorEntry* divisor = nullptr;      // .weight_global_scale
    const TensorEntry* multiplier = nullptr;   // .weight_scale_2
    const TensorEntry* shape = nullptr;        // .weight_shape
    const TensorEntry* zero_point = nullptr;   // .weight_zero_point
    const TensorEntry* group_index = nullptr;  // .weight_g_idx
    std::vector<const TensorEntry*> ignored;   // scales of activations and of the KV cache

    bool empty() const { return !weight && !packed; }
    /// All tensors that are there.
    std::vector<const TensorEntry*> all() const;
};

LinearTensors linear_tensors(const WeightDirectory& weights, const std::string& module);

Scheme scheme_of(const LinearTensors& tensors);

/// The matrix [rows, cols] that the tensors make. `ue8m0`: the config says that U8 scales are exponents. Scans all
/// scales, samples FP8 codes. Throws Error naming the tensor, what was found and what was expected.
quant::Matrix linear_matrix(const LinearTensors& tensors, int64_t rows, int64_t cols, bool ue8m0);

/// A tensor with its rows as they lie (plain or GGUF blocks) as a matrix [rows, cols]. Throws Error.
quant::Matrix plain_matrix(const TensorEntry& tensor, int64_t rows, int64_t cols);

}  // namespace thermocline::model
