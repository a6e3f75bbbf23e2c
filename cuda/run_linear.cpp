// Linear: which kernel takes which matrix.
#include "cuda/kernels/list.h"
#include "cuda/library.h"
#include "cuda/packed.h"
#include "cuda/run.h"
#include "cuda/scratch.h"

#include <algorithm>

namespace thermocline::cuda {

namespace {

constexpr int64_t kFew = 32;  // vectors: above, a kernel that keeps vectors in shared memory

template <typename Codes, int kPieces>
void multiply(const PackedProduct& product, bool batch_invariant, Stream& stream) {
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
    if (product.vectors <= kFew || !whole_groups || batch_invariant) return few.template operator()<4>();
    launch(stream,
           {.x = (strips + kStrips - 1) / kStrips,
            .y = (product.vectors + Many::kVectors - 1) / Many::kVectors,
            .threads = Many::kWarps * kWarp,
            .shared_bytes = Many::shared_bytes()},
           Many{product});
}

void multiply_codes(const ops::Linear& s, const Frame& f, const quant::Matrix& w, int64_t vectors) {
    const int warps = static_cast<int>(std::min<int64_t>(w.cols / quant::kStripBlock, FewVectorsMx::kMostWarps));
    const auto* codes = reinterpret_cast<const uint8_t*>(f.scratch);
    launch(f.stream,
           {.x = w.rows / quant::kStripRows,
            .y = (vectors + FewVectorsMx::kVectors - 1) / FewVectorsMx::kVectors,
            .threads = warps * kWarp,
            .shared_bytes = FewVectorsMx::shared_bytes(warps)},
           FewVectorsMx{w, codes, codes + vectors * s.groups * w.cols, f.slot(s.out), vectors, s.groups});
}

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

InputForm input_form(const ops::Linear& s, const Frame& f) {
    const quant::Matrix& w = f.weights.matrices[static_cast<size_t>(s.weight)];
    const bool packed = is_packed(w), rounded = s.rounding == ops::InputRounding::kE4M3;
    if (!packed && !rounded) return {};
    if (f.variants.mx_products && packed && rounded && w.format == Format::kE2M1Pair &&
        w.scale_format == Format::kE8M0 && (f.rows(s.in) * s.fold <= kFew || f.batch_invariant))
        return {.rounded = true, .width = w.cols, .any = true, .codes = true};
    return {packed ? pieces_for(w, s.rounding) : 0, rounded, w.cols, true, false};
}

void prepare(const ops::Linear& s, const Frame& f) {
    const InputForm form = input_form(s, f);
    const int64_t vectors = f.rows(s.in) * s.fold * s.groups;
    if (!form.any || vectors == 0) return;
    if (form.codes) {
        auto* codes = reinterpret_cast<uint8_t*>(f.scratch);
        launch(f.stream, {.x = vectors, .y = form.width / quant::kStripBlock, .threads = kWarp},
               PrepareCodes{f.slot(s.in), codes, codes + vectors * form.width, form.width});
        return;
    }
    const bool floats = form.pieces == 0;
    launch(
        f.stream, {.x = vectors, .y = column_groups(form.width), .threads = kWarp},
        PrepareVectors{f.slot(s.in), floats ? nullptr : reinterpret_cast<uint16_t*>(f.scratch),
                       floats ? reinterpret_cast<float*>(f.scratch) : nullptr, form.width, form.pieces, form.rounded});
}

void multiply(const ops::Linear& s, const Frame& f) {
    const quant::Matrix& w = f.weights.matrices[static_cast<size_t>(s.weight)];
    const InputForm form = input_form(s, f);
    const int64_t vectors = f.rows(s.in) * s.fold;
    if (vectors == 0) return;
    if (form.codes) return multiply_codes(s, f, w, vectors);
    if (f.library != nullptr && f.library->takes(s.weight, f.rows(s.in))) return multiply_by_library(s, f);
    if (form.pieces > 0) {
        const PackedProduct product{w, reinterpret_cast<const uint16_t*>(f.scratch), f.slot(s.out), vectors, s.groups};
        return with_codes(w, form.pieces, [&]<typename Codes, int kPieces>() {
            multiply<Codes, kPieces>(product, f.batch_invariant, f.stream);
        });
    }
    constexpr int kWarps = 4;
    launch(f.stream,
           {.x = (w.rows + kWarps - 1) / kWarps,
            .y = (vectors + RowProduct::kVectors - 1) / RowProduct::kVectors,
            .threads = kWarps * kWarp},
           RowProduct{w, form.any ? reinterpret_cast<const float*>(f.scratch) : f.slot(s.in), f.slot(s.out), vectors,
                      s.groups});
}

void run(const ops::Linear& s, const Frame& f) {
    prepare(s, f);
    multiply(s, f);
}

}  // namespace thermocline::cuda
