// Kernels that some cards have instructions for, each with a portable twin. A variant is used only after it has given
// what its twin gives, on this card, when the program starts: nobody here has seen the instructions on silicon.
#pragma once

#include <cstdint>
#include <string>

namespace thermocline::cuda {

class Device;

struct Variants {
    bool mx_products = false;  ///< FewVectorsMx instead of FewVectors<Mxfp4Codes, 1, ...>
    bool mx_experts = false;   ///< FewPairsMx and ManyPairsMx instead of FewPairs and ManyPairs<Mxfp4Codes, 1, ...>
    bool fp4_keys = false;     ///< ScoreEntries<Fp4Scores> instead of ScoreEntries<TileScores>
    bool operator==(const Variants&) const = default;
};

/// Tries the variants that the card may have on random tiles, in which all codes and the extremes of the scales occur.
/// A variant that differs from its twin is logged and left out. Takes milliseconds. Throws Error if the card fails.
Variants try_variants(Device& device);

/// Where two results of `count` numbers differ by more than the matrix instruction may round, in a clause; empty:
/// nowhere. sizes: the sums of the magnitudes of what was added up.
std::string difference(const float* found, const float* expected, const float* sizes, int64_t count);

}  // namespace thermocline::cuda
