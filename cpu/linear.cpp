// Embed and Linear: the steps that read weight matrices row by row.
#include "cpu/inputs.h"
#include "cpu/slices.h"

#include <algorithm>
#include <cstring>

namespace thermocline::cpu {

namespace {

constexpr int64_t kGrainMacs = 1 << 15;  // below this a part costs less than waking a worker
constexpr int64_t kRowsTogether = 4;     // of layout kRows: the kernels share the loads of x among so many

}  // namespace

void run(const ops::Embed& s, const Frame& f) noexcept {
    const quant::Matrix& table = f.plan.matrices[static_cast<size_t>(s.table)].matrix;
    for (int64_t t = 0; t < f.batch.rows(); ++t) {
        float* out = f.row(s.out, t);
        f.kernels.decode_row(table, f.batch.tokens[static_cast<size_t>(t)], out);
        for (int32_t copy = 1; copy < s.copies; ++copy)
            std::memcpy(out + copy * table.cols, out, sizeof(float) * static_cast<size_t>(table.cols));
    }
}

void run(const ops::Linear& s, const Frame& f) noexcept {
    const quant::Matrix& w = f.plan.matrices[static_cast<size_t>(s.weight)].matrix;
    const InputForm form(w, s.rounding, f.kernels);
    const int64_t vectors = f.rows(s.in) * s.fold, width = w.cols;
    if (vectors == 0) return;
    // Of every group in turn: its vectors, or their panel.
    const float* x = f.slot(s.in);
    int64_t x_stride = form.panel ? form.stride(1, width) : s.groups * width, group_stride = width;
    if (!form.takes_as_is(vectors)) {
        float* prepared = f.shared.data();
        group_stride = form.panel_width(width) * vectors;
        f.workers.split(vectors * s.groups, 4, [&](int64_t begin, int64_t end, int) {
            for (int64_t i = begin; i < end; ++i)
                form.prepare(x + i * width, width, prepared + i % s.groups * group_stride, i / s.groups, vectors);
        });
        x = prepared;
        x_stride = form.stride(vectors, width);
    }
    float* y = f.slot(s.out);  // [vectors, W.rows]
    const int64_t group_rows = w.rows / s.groups;
    const int64_t unit = w.layout == quant::Layout::kStrips ? quant::kStripRows : kRowsTogether;
    const Slices slices(w, unit);
    const int64_t least = vectors > 1 ? least_strips(slices.count * slices.chunks_of(0), f.workers) : 1;
    const int64_t grain = std::max(least, kGrainMacs / (w.cols * vectors * unit));
    split_slices(f.workers, slices, 1, grain, [&](int64_t slice, int64_t begin, int64_t end, int) {
        const quant::Matrix part = strip_slice(w, slice);
        const int64_t first = slices.first_row(slice);
        begin = first + begin * unit, end = first + std::min(end * unit, slices.rows_of(slice));
        while (begin < end) {  // a part may span output groups, which read different inputs
            const int64_t group = begin / group_rows;
            const int64_t stop = std::min(end, (group + 1) * group_rows);
            form.matmul()(part, begin - first, stop - begin, x + group * group_stride, x_stride, vectors, y + begin,
                          w.rows);
            begin = stop;
        }
    });
}

}  // namespace thermocline::cpu
