// Weights without a file (--load-format dummy): random numbers in the formats and sizes of the official checkpoint,
// entered into a WeightDirectory as if they had been read, so that nothing behind it can tell. What is made depends on
// the seed and on the place of the tensor alone: a model cut to N layers holds the same numbers as the whole one.
//
// Codes, nearly all of the bytes, may be left to who needs them: such a tensor is only addresses, zero when read, and
// packing makes its bytes piece by piece, straight into strips, so that they never lie in memory twice or unpacked.
#pragma once

#include "src/base/tensor.h"
#include "src/model/weights.h"
#include "src/quant/format.h"

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

namespace thermocline::model {

struct DummyTensor {
    enum class Values : uint8_t {
        kCodes,    ///< any finite code of kE4M3, any byte of kI8 (pairs of e2m1)
        kScales,   ///< kE8M0: powers of two near `size`
        kNumbers,  ///< kBF16, kF32: root mean square `size`
        kGains,    ///< kBF16: 1 .. 1.25
        kIds,      ///< kI64 [rows, k]: integers below `size`, different ones in a row
    };
    std::string name;
    quant::Format format;
    Shape shape;
    Values values;
    double size;
};

/// Root mean squares of random codes, to choose scales by.
inline constexpr double kDummyE4M3Size = 0.62, kDummyE2M1Size = 2.93;

/// A checkpoint that holds a config and no tensors yet. `path`: a config file, or a directory with config.json.
/// Throws Error.
Checkpoint open_config(const std::string& path);

/// Enters the tensors with nothing behind them: all read as zero and share memory, each at an address of its own.
/// Enough for plans of any size, from which to compute bytes; not to be multiplied with. Throws Error.
void add_outline(const std::vector<DummyTensor>& tensors, Checkpoint& checkpoint);

/// Makes any part of the tensors that were left to be made. Safe from any thread.
class DummyCodes {
public:
    struct Part {
        int64_t begin, end;  // bytes from `addresses`
        int64_t stream;      // place of `begin` among the random words of the model
        DummyTensor tensor;
    };
    DummyCodes(const std::byte* addresses, std::vector<Part> parts, uint64_t seed)
        : addresses_(addresses), parts_(std::move(parts)), seed_(seed) {}

    bool holds(const std::byte* data) const;
    /// What stands in [data, data + size), to `out`. `data` lies in a part, a multiple of 8 bytes behind its begin.
    void make(const std::byte* data, int64_t size, std::byte* out) const;

private:
    const std::byte* addresses_;
    std::vector<Part> parts_;  // ascending
    uint64_t seed_;
};

/// Makes the tensors with all cores; with `defer_codes` those of Values::kCodes are left to Checkpoint::dummy_codes.
/// Throws Error naming the sizes if they do not fit the memory that is free, one way or the other.
void add_dummy_tensors(const std::vector<DummyTensor>& tensors, uint64_t seed, bool defer_codes,
                       Checkpoint& checkpoint);

}  // namespace thermocline::model
