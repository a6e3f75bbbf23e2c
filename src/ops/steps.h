// The vocabulary of the engine: one plain struct per operation. A model file writes a list of them (ops/plan.h), the
// scheduler plays the list, cpu/ and cuda/ have one overload per struct, tests/oracle one in double.
//
// Slots are activation buffers of 4-byte numbers, row-major [rows, cols]: float32 unless the comment says int32.
// A row is a token of the batch, or, in slots declared Rows::kOutputs, a row whose logits are wanted. `T` is the
// number of rows of the slot. Section numbers are those of shared/design/deepseek-v4.md.
#pragma once

#include "src/quant/kv_row.h"

#include <cstdint>
#include <variant>

namespace thermocline::ops {

using Slot = int32_t;       // index into Plan::slots
using MatrixId = int32_t;   // index into Plan::matrices
using VectorId = int32_t;   // index into Plan::vectors (float32)
using TableId = int32_t;    // index into Plan::tables (int32)
using ExpertsId = int32_t;  // index into Plan::experts
using RopeId = int32_t;     // index into Plan::ropes
using CacheId = int32_t;    // index into Plan::caches
inline constexpr int32_t kNone = -1;

/// What happens to the input of a matrix before it is multiplied.
enum class InputRounding : uint8_t {
    kExact,  ///< none, or fixed point with 22 bits of the largest of 32 columns (quant::FixedGroup)
    kE4M3,   ///< e4m3 in groups of 128 with a power-of-two scale, as the model was trained (2.11)
    kInt8,   ///< int8 in groups of 32 with a float scale for packed matrices with integer codes, kExact for others
    kBF16,   ///< to the nearest bf16 for packed matrices that quant::has_bf16_numbers(), kExact for others
};

/// out[t, c * D + i] = table[token[t], i] for c < copies (2.1).
struct Embed {
    static constexpr const char* kName = "Embed";
    MatrixId table;  // [vocab, D]
    Slot out;        // [T, copies * D]
    int32_t copies;
};

/// out = W in, for `fold` vectors per row and `groups` independent blocks of W (grouped output projection, 2.5):
/// out[t, f, g, n] = sum_k W[g * N + n, k] * in[t, f, g, k], N = W.rows / groups, K = W.cols.
struct Linear {
    static constexpr const char* kName = "Linear";
    Slot in;  // [T, fold * groups * K]
    MatrixId weight;
    Slot out;  // [T, fold * W.rows]
    int32_t groups = 1;
    int32_t fold = 1;
    InputRounding rounding = InputRounding::kExact;
};

/// out = in * rsqrt(mean(in^2) + eps) [* weight], separately for every run of `width` channels (2.3). May be in place.
struct RmsNorm {
    static constexpr const char* kName = "RmsNorm";
    Slot in;          // [T, m * width]
    Slot out;         // [T, m * width]
    VectorId weight;  // [width] or kNone
    int32_t width;
    float eps;
};

/// Rotates interleaved pairs of the last `rope.dims` channels of every run of `width`, in place (2.4).
struct Rope {
    static constexpr const char* kName = "Rope";
    Slot x;  // [T, heads * width]
    int32_t width;
    RopeId rope;
    bool inverse;
};

/// Hyper-connections, reading side (2.2): collapses n streams to one vector and computes how to write back.
struct HyperIn {
    static constexpr const char* kName = "HyperIn";
    Slot streams;    // [T, n * D]
    Slot mix;        // [T, n * (2 + n)] fn * streams, before the norm factor
    VectorId base;   // [n * (2 + n)]
    VectorId scale;  // [3]
    Slot x;          // [T, D] out
    Slot post_comb;  // [T, n + n * n] out: post[n], then A row by row
    int32_t n;
    int32_t sinkhorn_iterations;
    float hyper_eps;
    float norm_eps;
};

/// Hyper-connections, writing side: streams[k] = post[k] * y + sum_j A[j][k] * streams[j], in place (2.2).
struct HyperOut {
    static constexpr const char* kName = "HyperOut";
    Slot y;          // [T, D]
    Slot post_comb;  // [T, n + n * n]
    Slot streams;    // [T, n * D] in and out
    int32_t n;
    bool round_bf16;  // streams are bf16 between sub-layers (every mode but f32 KV)
};

/// Final collapse of the streams (2.2, hc_head).
struct HyperHead {
    static constexpr const char* kName = "HyperHead";
    Slot streams;    // [T, n * D]
    Slot mix;        // [T, n]
    VectorId base;   // [n]
    VectorId scale;  // [1]
    Slot x;          // [T, D] out
    int32_t n;
    float hyper_eps;
    float norm_eps;
};

/// Puts the vectors of this batch into the precision of the cache they will live in, so that a key reads the same
/// from the batch and from the cache (3.1, points 1 and 4). With `hadamard`, each run of `width` is first transformed.
struct RoundKv {
    static constexpr const char* kName = "RoundKv";
    Slot x;  // [T, m * width] in place
    int32_t width;
    int32_t rope;  // last channels that stay bf16 in KvFormat::kFp8
    quant::KvFormat format;
    bool hadamard;
};

/// Compressor (2.6): pools windows of `ratio` tokens into cache entries. Reads rows of this batch from the slots and
/// older ones from `state`; appends every entry that the batch completes; then stores the batch's rows in `state`.
struct Compress {
    static constexpr const char* kName = "Compress";
    Slot values;    // [T, o * width], o = 2 if overlap else 1
    Slot scores;    // [T, o * width] without ape
    VectorId ape;   // [ratio, o * width]
    VectorId norm;  // [width]
    RopeId rope;
    CacheId state;    // ring of float32 rows: values, then scores + ape [2 * o * width]
    CacheId entries;  // one row per completed window [width]
    int32_t ratio;
    int32_t width;
    bool overlap;   // ratio-4 form: 8 slots, previous window's first half of the channels
    bool hadamard;  // index keys in their trained FP4 form
    float eps;
};

/// Lightning indexer (2.7): picks the entries that a row may attend to besides its window.
struct SelectEntries {
    static constexpr const char* kName = "SelectEntries";
    Slot q;          // [T, heads * width]
    Slot gates;      // [T, heads] weights_proj x, unscaled
    CacheId keys;    // [entries, width]
    Slot selection;  // int32 [T, 1 + top_k] out: count, then ascending entry indices
    int32_t heads;
    int32_t width;
    int32_t ratio;
    int32_t top_k;
};

/// Shared-KV attention over the sliding window and compressed entries with one softmax and a sink (2.5).
/// Window keys of this batch come from `kv`, older ones from `window_cache`. V = K.
struct Attention {
    static constexpr const char* kName = "Attention";
    Slot q;                // [T, heads * width]
    Slot kv;               // [T, width] window keys of this batch, already rounded to the cache's precision
    CacheId window_cache;  // ring of keys [width]
    CacheId entries;       // compressed entries [width] or kNone
    Slot selection;        // int32 [T, 1 + top_k]; kNone: every visible entry
    VectorId sinks;        // [heads]
    Slot out;              // [T, heads * width]
    int32_t heads;
    int32_t width;
    int32_t window;
    int32_t ratio;  // 0: window only
    float scale;
};

/// Writes the batch's last window keys into the ring; after Attention, which still needs the rows they replace.
struct StoreWindow {
    static constexpr const char* kName = "StoreWindow";
    Slot kv;  // [T, width]
    CacheId window_cache;
    int32_t width;
};

/// Router (2.8): sqrt(softplus(logits)); top-k of score + bias, or ids from the token table; weights from the
/// unbiased scores, divided by their sum when `normalise`, times `scale`.
struct Route {
    static constexpr const char* kName = "Route";
    Slot logits;    // [T, experts]
    VectorId bias;  // [experts] or kNone
    TableId table;  // int32 [vocab, top_k] (hash layers) or kNone
    Slot ids;       // int32 [T, top_k] out
    Slot weights;   // [T, top_k] out
    int32_t experts;
    int32_t top_k;
    float scale;
    bool normalise;
};

/// Routed experts (2.8): out = sum over the row's experts of w2 (weight * swiglu(w1 x, w3 x)).
struct Experts {
    static constexpr const char* kName = "Experts";
    Slot x;        // [T, D]
    Slot ids;      // int32 [T, top_k]; -1: left to another device
    Slot weights;  // [T, top_k]
    ExpertsId experts;
    Slot out;  // [T, D]
    int32_t top_k;
    float limit;  // clamp of the pre-activations; infinity: none
    InputRounding rounding;
};

/// out = silu(min(gate, limit)) * clamp(up, -limit, limit) (2.8).
struct SwiGlu {
    static constexpr const char* kName = "SwiGlu";
    Slot gate;  // [T, I]
    Slot up;    // [T, I]
    Slot out;   // [T, I]
    float limit;
};

/// x[t, r, i] += y[t, i] for r < repeat.
struct Add {
    static constexpr const char* kName = "Add";
    Slot x;  // [T, repeat * D] in place
    Slot y;  // [T, D]
    int32_t repeat;
};

/// out[i] = in[output_rows[i]]: keeps only the rows whose logits are wanted.
struct TakeRows {
    static constexpr const char* kName = "TakeRows";
    Slot in;   // Rows::kTokens
    Slot out;  // Rows::kOutputs
};

using Step = std::variant<Embed, Linear, RmsNorm, Rope, HyperIn, HyperOut, HyperHead, RoundKv, Compress, SelectEntries,
                          Attention, StoreWindow, Route, Experts, SwiGlu, Add, TakeRows>;

}  // namespace thermocline::ops
