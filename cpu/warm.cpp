#include "cpu/warm.h"

#include "cpu/slices.h"

#include <algorithm>
#include <atomic>
#include <cstring>

namespace thermocline::cpu {

namespace {

constexpr int64_t kPiece = 2048;  // bytes between two looks at the stop: a fraction of a microsecond

class Warmer {
public:
    Warmer(int64_t most, const uint64_t& stop) : left_(most), stop_(stop) {}

    void bring(const std::byte* from, int64_t bytes) {
        for (const std::byte* end = from + std::min(bytes, left_); from < end; from += kPiece) {
            if (std::atomic_ref<uint64_t>(const_cast<uint64_t&>(stop_)).load(std::memory_order_relaxed) != 0) {
                left_ = 0;
                return;
            }
            const int64_t piece = std::min<int64_t>(kPiece, end - from);
            for (int64_t at = 0; at < piece; at += quant::kLineBytes) __builtin_prefetch(from + at, 0, 2);
            left_ -= piece;
            brought_ += piece;
        }
    }
    /// Rows [begin, end) of a slice.
    void bring_rows(const quant::Matrix& w, int64_t slice, int64_t begin, int64_t end) {
        const quant::Matrix part = quant::strip_slice(w, slice);
        if (part.layout == quant::Layout::kStrips) {
            begin /= quant::kStripRows;
            end = (end + quant::kStripRows - 1) / quant::kStripRows;
            bring(part.data + begin * part.strip_bytes, (end - begin) * part.strip_bytes);
        } else {
            bring(part.data + begin * part.row_bytes, (end - begin) * part.row_bytes);
        }
    }
    bool done() const { return left_ <= 0; }
    int64_t brought() const { return brought_; }

private:
    int64_t left_, brought_ = 0;
    const uint64_t& stop_;
};

}  // namespace

int64_t warm_experts(const ops::Experts& s, const Frame& f, std::span<const int32_t> experts, int64_t bytes_each,
                     const uint64_t& stop) noexcept {
    const ops::ExpertSet& set = f.plan.experts[static_cast<size_t>(s.experts)];
    const Slices channels(set.w1[0], kExpertStrip), outputs(set.w2[0], kExpertStrip);
    f.workers.each([&](int worker) {
        Warmer warmer(bytes_each, stop);
        for (size_t i = 0; i < experts.size() && !warmer.done(); ++i) {
            const auto e = static_cast<size_t>(experts[i]);
            own_slices(f.workers, worker, channels, [&](int64_t slice, int64_t begin, int64_t end) {
                for (const quant::Matrix* w : {&set.w1[e], &set.w3[e]})
                    warmer.bring_rows(*w, slice, begin * kExpertStrip,
                                      std::min(end * kExpertStrip, channels.rows_of(slice)));
            });
            own_slices(f.workers, worker, outputs, [&](int64_t slice, int64_t begin, int64_t end) {
                warmer.bring_rows(set.w2[e], slice, begin * kExpertStrip,
                                  std::min(end * kExpertStrip, outputs.rows_of(slice)));
            });
        }
        const int64_t brought = warmer.brought();
        std::memcpy(f.worker_scratch(worker).data(), &brought, sizeof brought);
    });
    int64_t all = 0;
    for (int worker = 0; worker < f.workers.count(); ++worker) {
        int64_t brought = 0;
        std::memcpy(&brought, f.worker_scratch(worker).data(), sizeof brought);
        all += brought;
    }
    return all;
}

}  // namespace thermocline::cpu
