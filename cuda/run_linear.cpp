// Linear: which kernel takes which matrix.
#include "cuda/kernels/list.h"
#include "cuda/run.h"
#include "cuda/scratch.h"

#include <algorithm>

namespace thermocline::cuda {

namespace {

using quant::Format;

constexpr int64_t kFew = 32;  // vectors: above, a kernel that keeps vectors in shared memory

bool is_packed(const quant::Matrix& w) {
    return w.layout == quant::Layout::kStrips && w.format != Format::kF32 && w.format != Format::kF16;
}

template <typename Codes, int kPieces>
void multiply(const PackedProduct& product, Stream& stream) {
    const int64_t strips = product.w.rows / quant::kStripRows, blocks = product.w.cols / quant::kStripBlock;
    const auto few = [&]<int kTiles>() {
        using Kernel = FewVectors<Codes, kPieces, kTiles>;
        const int warps = static_cast<int>(std::min<int64_t>(blocks, Kernel::kMostWarps));
        launch(stream,
               {.x = strips,
                .y = (product.vectors + Kernel::kVectors - 1) / Kernel::kVectors,
                .threads = warps * kWarp,
                .shared_bytes = Kernel::shared_bytes(warps)},
               Kernel{product});
    };
    using Many = ManyVectors<Codes, kPieces>;
    constexpr int64_t kStrips = Many::kWarps * Many::kStrips;
    const bool whole_groups = product.groups == 1 || strips / product.groups % kStrips == 0;
    if (product.vectors <= 8) return few.template operator()<1>();
    if (product.vectors <= kFew || !whole_groups) return few.template operator()<4>();
    launch(stream,
           {.x = (strips + kStrips - 1) / kStrips,
            .y = (product.vectors + Many::kVectors - 1) / Many::kVectors,
            .threads = Many::kWarps * kWarp,
            .shared_bytes = Many::shared_bytes()},
           Many{product});
}

template <typename Codes>
void multiply(const PackedProduct& product, int pieces, Stream& stream) {
    if (pieces == 1)
        multiply<Codes, 1>(product, stream);
    else
        multiply<Codes, 2>(product, stream);
}

void multiply_packed(const PackedProduct& product, int pieces, Stream& stream) {
    const quant::Matrix& w = product.w;
    switch (w.format) {
        case Format::kE4M3:
            return multiply<E4M3Codes>(product, pieces, stream);
        case Format::kE2M1Pair:
            if (w.scale_format == Format::kE8M0) return multiply<Mxfp4Codes>(product, pieces, stream);
            return multiply<Nvfp4Codes>(product, pieces, stream);
        case Format::kInt4Pair:
            if (w.scale_cols == 32) return multiply<Int4Codes<32>, 2>(product, stream);
            return multiply<Int4Codes<128>, 2>(product, stream);
        case Format::kQ8_0:
            return multiply<Q8Codes, 2>(product, stream);
        default:
            return multiply<Bf16Codes, 2>(product, stream);
    }
}

int64_t groups_of_columns(int64_t width) { return (width + kRoundedColumns - 1) / kRoundedColumns; }

}  // namespace

std::string why_not(const ops::Plan& plan, const ops::Linear& step) {
    const quant::Matrix& w = plan.matrices[static_cast<size_t>(step.weight)].matrix;
    switch (w.format) {
        case Format::kF32:
        case Format::kF16:
        case Format::kBF16:
        case Format::kE4M3:
        case Format::kE2M1Pair:
        case Format::kInt4Pair:
            return "";
        case Format::kQ8_0:
            if (w.layout == quant::Layout::kStrips) return "";
            [[fallthrough]];
        default:
            return plan.matrices[static_cast<size_t>(step.weight)].name + " is " +
                   std::string(quant::traits(w.format).name) + ", which no GPU kernel multiplies with";
    }
}

int64_t linear_scratch(const ops::Plan& plan, const ops::Linear& step, int64_t max_rows) {
    return max_rows * plan.slots[static_cast<size_t>(step.in)].cols * 4;  // two bf16 or one float32 a number
}

void run(const ops::Linear& s, const Frame& f) {
    const quant::Matrix& w = f.weights.matrices[static_cast<size_t>(s.weight)];
    const int64_t vectors = f.rows(s.in) * s.fold;
    if (vectors == 0) return;
    const bool packed = is_packed(w), rounded = s.rounding == ops::InputRounding::kE4M3;
    // A rounded number is exact in one bf16; the kernels for formats that are not trained so take two all the same.
    const int pieces = rounded && (w.format == Format::kE4M3 || w.format == Format::kE2M1Pair) ? 1 : 2;
    if (packed || rounded)
        launch(f.stream, {.x = vectors * s.groups, .y = groups_of_columns(w.cols), .threads = kWarp},
               PrepareVectors{f.slot(s.in), packed ? reinterpret_cast<uint16_t*>(f.scratch) : nullptr,
                              packed ? nullptr : reinterpret_cast<float*>(f.scratch), w.cols, pieces, rounded});
    if (packed) {
        multiply_packed({w, reinterpret_cast<const uint16_t*>(f.scratch), f.slot(s.out), vectors, s.groups}, pieces,
                        f.stream);
        return;
    }
    constexpr int kWarps = 4;
    launch(f.stream,
           {.x = (w.rows + kWarps - 1) / kWarps,
            .y = (vectors + RowProduct::kVectors - 1) / RowProduct::kVectors,
            .threads = kWarps * kWarp},
           RowProduct{w, rounded ? reinterpret_cast<const float*>(f.scratch) : f.slot(s.in), f.slot(s.out), vectors,
                      s.groups});
}

}  // namespace thermocline::cuda
