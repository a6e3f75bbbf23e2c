// Shared-KV attention (deepseek-v4.md 2.5): window keys and compressed entries under one softmax with a sink.
//
// A part of the work is one row and some of its heads. Keys are visited in tiles of fixed size, window first, with an
// online softmax: the scratch is bounded at any context, and the order, hence the result, depends on the row and the
// head alone.
#include "cpu/scratch.h"

#include <algorithm>
#include <cstring>
#include <utility>

namespace thermocline::cpu {

namespace {

constexpr int64_t kTile = 64;       // keys decoded at a time
constexpr int64_t kMostHeads = 64;  // that share a decoded tile
constexpr int64_t kKeyPad = 16;     // keys apart by a power of two would share a few cache sets
static_assert(kMostHeads % kMostHeadBlock == 0);

/// The keys of one row in visiting order.
struct Keys {
    const ops::Attention& step;
    const Frame& frame;
    const ops::Segment& segment;
    int64_t position;  // of the row
    int64_t window_begin, window_count, entry_count;
    const int32_t* chosen;  // entry indices, or null: 0 .. entry_count - 1

    int64_t count() const { return window_count + entry_count; }

    /// Decodes keys [first, first + n) into out [n, width + kKeyPad]; n <= kTile.
    void decode(int64_t first, int64_t n, float* out) const {
        const int64_t width = step.width, stride = width + kKeyPad;
        const ops::CacheView& ring = segment.caches[step.window_cache];
        const ops::CacheSpec& ring_spec = frame.plan.caches[static_cast<size_t>(step.window_cache)];
        const std::byte* rows[kTile];
        int64_t done = 0;
        while (done < n) {
            const int64_t key = first + done;
            const int64_t key_position = window_begin + key;
            int64_t run = 0;
            if (key < window_count && key_position >= segment.position) {  // from this batch, rounded already
                run = std::min(n - done, window_count - key);
                const int64_t row = segment.first_row + key_position - segment.position;
                for (int64_t i = 0; i < run; ++i)
                    std::memcpy(out + (done + i) * stride, frame.row(step.kv, row + i),
                                sizeof(float) * static_cast<size_t>(width));
            } else if (key < window_count) {
                run = std::min(n - done, segment.position - key_position);
                for (int64_t i = 0; i < run; ++i) rows[i] = ring.row(key_position + i);
                frame.kernels.decode_kv(ring_spec.format, rows, run, width, ring_spec.rope, out + done * stride,
                                        stride);
            } else {
                const ops::CacheView& entries = segment.caches[step.entries];
                const ops::CacheSpec& spec = frame.plan.caches[static_cast<size_t>(step.entries)];
                run = n - done;
                for (int64_t i = 0; i < run; ++i) {
                    const int64_t entry = key - window_count + i;
                    rows[i] = entries.row(chosen ? chosen[entry] : entry);
                }
                frame.kernels.decode_kv(spec.format, rows, run, width, spec.rope, out + done * stride, stride);
            }
            done += run;
        }
    }
};

Keys keys_of(const ops::Attention& s, const Frame& f, const ops::Segment& segment, int64_t row) {
    const int64_t position = f.batch.positions[static_cast<size_t>(row)];
    Keys keys{s, f, segment, position, std::max<int64_t>(0, position - s.window + 1), 0, 0, nullptr};
    keys.window_count = position - keys.window_begin + 1;
    if (s.entries != ops::kNone) {
        keys.entry_count = (position + 1) / s.ratio;
        if (s.selection != ops::kNone) {
            const int32_t* selection = f.int_row(s.selection, row);
            keys.entry_count = selection[0];
            keys.chosen = selection + 1;
        }
    }
    return keys;
}

/// One row, heads [h0, h0 + heads), heads <= kMostHeads.
void attend(const Keys& keys, int64_t row, int64_t h0, int64_t heads, float* scratch) {
    const ops::Attention& s = keys.step;
    const Frame& f = keys.frame;
    const int64_t padded = (heads + f.kernels.head_block - 1) / f.kernels.head_block * f.kernels.head_block;
    const auto take = [&](int64_t count) { return std::exchange(scratch, scratch + count); };
    float* panel = take(padded * s.width);            // head panel
    float* tile = take(kTile * (s.width + kKeyPad));  // [kTile, width + kKeyPad]
    float* scores = take(kTile * padded);             // [kTile, padded]
    float* maximum = take(padded);                    // [padded], as are the next two
    float* sum = take(padded);
    float* shrink = take(padded);
    float* out = f.row(s.out, row) + h0 * s.width;
    const float* sinks = f.plan.vectors[static_cast<size_t>(s.sinks)].values.data() + h0;

    f.kernels.head_panel(f.row(s.q, row) + h0 * s.width, heads, s.width, panel);
    std::fill_n(maximum, padded, 0.0f);
    std::copy_n(sinks, heads, maximum);  // the sink opens the softmax: a key without a value
    std::fill_n(sum, padded, 1.0f);
    std::memset(out, 0, sizeof(float) * static_cast<size_t>(heads * s.width));
    for (int64_t first = 0; first < keys.count(); first += kTile) {
        const int64_t n = std::min(kTile, keys.count() - first);
        keys.decode(first, n, tile);
        f.kernels.attention_scores(panel, heads, tile, s.width + kKeyPad, n, s.width, s.scale, scores, padded);
        f.kernels.softmax_keys(scores, padded, n, padded, maximum, sum, shrink);
        f.kernels.attention_values(scores, padded, shrink, heads, tile, s.width + kKeyPad, n, s.width, out);
    }
    for (int64_t h = 0; h < heads; ++h)
        f.kernels.scale(1.0f / sum[h], out + h * s.width, nullptr, out + h * s.width, s.width);
}

/// Heads of a part: many, for they share keys and their decoding, but leave parts enough for all workers.
int64_t heads_of_part(const ops::Attention& s, const Frame& f) {
    constexpr int64_t kPartsPerWorker = 4;
    const int64_t block = f.kernels.head_block,
                  share = f.batch.rows() * s.heads / (kPartsPerWorker * f.workers.count());
    return std::clamp((share + block - 1) / block * block, block, kMostHeads);
}

const ops::Segment& segment_of(const ops::Batch& batch, int64_t row) {
    const auto after = std::upper_bound(batch.segments.begin(), batch.segments.end(), row,
                                        [](int64_t r, const ops::Segment& segment) { return r < segment.first_row; });
    return *(after - 1);
}

}  // namespace

void run(const ops::Attention& s, const Frame& f) noexcept {
    const int64_t each = heads_of_part(s, f), parts = (s.heads + each - 1) / each;
    f.workers.split(f.batch.rows() * parts, 1, [&](int64_t begin, int64_t end, int worker) {
        float* scratch = f.worker_scratch(worker).data();
        for (int64_t item = begin; item < end; ++item) {
            const int64_t row = item / parts, h0 = item % parts * each;
            const Keys keys = keys_of(s, f, segment_of(f.batch, row), row);
            attend(keys, row, h0, std::min(each, s.heads - h0), scratch);
        }
    });
}

void run(const ops::StoreWindow& s, const Frame& f) noexcept {
    const ops::CacheSpec& spec = f.plan.caches[static_cast<size_t>(s.window_cache)];
    for (const ops::Segment& segment : f.batch.segments) {
        const ops::CacheView& ring = segment.caches[s.window_cache];
        const int64_t skip = std::max<int64_t>(0, segment.rows - spec.ring_rows);
        for (int64_t i = skip; i < segment.rows; ++i)
            f.kernels.encode_kv(spec.format, f.row(s.kv, segment.first_row + i), s.width, spec.rope,
                                ring.row(segment.position + i));
    }
}

int64_t attention_scratch(const ops::Attention& s) {
    return kMostHeads * (s.width + kTile + 3) + kTile * (s.width + kKeyPad);
}

}  // namespace thermocline::cpu
