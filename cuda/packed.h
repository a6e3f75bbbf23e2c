// Packed matrices and the kernels that know their codes.
#pragma once

#include "cuda/kernels/codes.h"
#include "src/base/check.h"
#include "src/ops/steps.h"

#include <utility>

namespace thermocline::cuda {

/// Whether the kernels for packed matrices take it.
inline bool is_packed(const quant::Matrix& w) {
    if (w.layout != quant::Layout::kStrips) return false;
    switch (w.format) {
        case Format::kBF16:
        case Format::kE4M3:
        case Format::kE2M1Pair:
        case Format::kInt4Pair:
        case Format::kQ8_0:
            return true;
        default:
            return false;
    }
}

/// Numbers of bf16 that a number of a vector becomes (kernels/linear.h). One that was rounded to e4m3 is exact in one;
/// the kernels for formats that are not trained so take two all the same.
inline int pieces_for(const quant::Matrix& w, ops::InputRounding rounding) {
    return rounding == ops::InputRounding::kE4M3 && (w.format == Format::kE4M3 || w.format == Format::kE2M1Pair) ? 1
                                                                                                                 : 2;
}

/// visit.operator()<Codes, kPieces>() for a packed matrix.
template <typename Visit>
void with_codes(const quant::Matrix& w, int pieces, Visit visit) {
    const auto either = [&]<typename Codes>() {
        if (pieces == 1) return visit.template operator()<Codes, 1>();
        visit.template operator()<Codes, 2>();
    };
    switch (w.format) {
        case Format::kE4M3:
            return either.template operator()<E4M3Codes>();
        case Format::kE2M1Pair:
            if (w.scale_format == Format::kE8M0) return either.template operator()<Mxfp4Codes>();
            return either.template operator()<Nvfp4Codes>();
        case Format::kInt4Pair:
            if (w.scale_cols == 32) return visit.template operator()<Int4Codes<32>, 2>();
            return visit.template operator()<Int4Codes<128>, 2>();
        case Format::kQ8_0:
            return visit.template operator()<Q8Codes, 2>();
        default:
            CHECK(w.format == Format::kBF16);
            return visit.template operator()<Bf16Codes, 2>();
    }
}

}  // namespace thermocline::cuda
