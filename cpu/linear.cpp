// Embed and Linear: the steps that read weight matrices row by row.
#include "cpu/inputs.h"

#include <algorithm>
#include <cstring>

namespace thermocline::cpu {

namespace {

constexpr int64_t kGrainMacs = 1 << 15;  // below this a part costs less than waking a worker

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
    const int64_t vectors = f.rows(s.in) * s.fold;
    if (vectors == 0) return;
    const int64_t in_cols = s.groups * w.cols;
    const float* x = f.slot(s.in);  // [vectors, groups * K]
    if (needs_preparing(w, s.rounding)) {
        prepare_inputs(f, w, s.rounding, x, f.shared.data(), vectors, in_cols);
        x = f.shared.data();
    }
    float* y = f.slot(s.out);  // [vectors, W.rows]
    const int64_t group_rows = w.rows / s.groups;
    const int64_t unit = w.layout == quant::Layout::kStrips ? quant::kStripRows : 1;
    const int64_t grain = std::max<int64_t>(1, kGrainMacs / (w.cols * vectors * unit));
    f.workers.split(w.rows / unit, grain, [&](int64_t begin, int64_t end, int) {
        begin *= unit, end *= unit;
        while (begin < end) {  // a part may span output groups, which read different inputs
            const int64_t group = begin / group_rows;
            const int64_t stop = std::min(end, (group + 1) * group_rows);
            f.kernels.matmul(w, begin, stop - begin, x + group * w.cols, in_cols, vectors, y + begin, w.rows);
            begin = stop;
        }
    });
}

}  // namespace thermocline::cpu
