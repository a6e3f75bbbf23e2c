// The layers of DeepSeek-V4 in reading order. Section numbers are those of shared/design/deepseek-v4.md.
#include "src/model/deepseek_v4.h"

#include "src/base/error.h"
#include "src/model/builder.h"

#include <bit>
#include <cmath>

namespace thermocline::model::deepseek_v4 {

namespace {

using ops::Slot;

/// How the caches of one plan are stored, and its two rotary tables.
struct Memory {
    quant::KvFormat keys;   // window keys and compressed entries
    quant::KvFormat index;  // index keys
    bool hadamard;          // index queries and keys in their trained FP4 form (3.1)
    ops::RopeId window_rope, context_rope;
};

Memory memory_of(Builder& b, const Shape& s, KvCacheDtype dtype) {
    using quant::KvFormat;
    Memory m{KvFormat::kBF16, KvFormat::kBF16, false, b.add_rope(rope_frequencies(s.window_rope, s.rope_dim)),
             b.add_rope(rope_frequencies(s.context_rope, s.rope_dim))};
    if (dtype == KvCacheDtype::kF32) m.keys = m.index = KvFormat::kF32;
    if (dtype == KvCacheDtype::kFp8 || dtype == KvCacheDtype::kFp8F32) {
        m.keys = dtype == KvCacheDtype::kFp8 ? KvFormat::kFp8 : KvFormat::kFp8F32;
        m.index = KvFormat::kFp4;
        m.hadamard = true;
        if (!std::has_single_bit(static_cast<uint64_t>(s.index_dim)) || s.index_dim % 32 != 0)
            fail("config.json: index_head_dim is ", s.index_dim,
                 ", expected a power of two of at least 32 for --kv-cache-dtype fp8");
    }
    return m;
}

/// The lightning indexer (2.7): chooses which entries of a sparse layer each token may read.
Slot choose_entries(Builder& b, const Shape& s, const LayerShape& layer, const std::string& at, const Memory& m, Slot x,
                    Slot qr) {
    const ops::CacheId keys =
        b.compress(x, at + ".compressor",
                   {layer.ratio, s.index_dim, s.rope_dim, true, m.context_rope, m.index, m.hadamard, s.norm_eps});
    const Slot q = b.linear(qr, at + ".wq_b", s.index_heads * s.index_dim);
    b.rope(q, s.index_dim, m.context_rope);
    if (m.hadamard) b.round_kv(q, s.index_dim, s.rope_dim, m.index, true);
    const Slot gates = b.linear(x, at + ".weights_proj", s.index_heads);
    return b.select({.q = q,
                     .gates = gates,
                     .keys = keys,
                     .selection = ops::kNone,
                     .heads = s.index_heads,
                     .width = static_cast<int32_t>(s.index_dim),
                     .ratio = layer.ratio,
                     .top_k = s.index_top_k});
}

/// Shared-KV attention (2.5) over the window and, by layer, compressed context (2.6).
Slot attention(Builder& b, const Shape& s, const LayerShape& layer, const std::string& at, const Memory& m,
               const LoadOptions& options, Slot x) {
    const ops::RopeId rope = layer.context == Context::kWindow ? m.window_rope : m.context_rope;
    const Slot qr = b.norm(b.linear(x, at + ".wq_a", s.q_rank), at + ".q_norm.weight", s.q_rank, s.norm_eps);
    const Slot q = b.norm(b.linear(qr, at + ".wq_b", s.heads * s.head_dim), "", s.head_dim, s.norm_eps);
    b.rope(q, s.head_dim, rope);
    const Slot kv = b.norm(b.linear(x, at + ".wkv", s.head_dim), at + ".kv_norm.weight", s.head_dim, s.norm_eps);
    b.rope(kv, s.head_dim, rope);
    b.round_kv(kv, s.head_dim, s.rope_dim, m.keys, false);

    const ops::CacheId ring = b.add_cache({.name = at + ".window",
                                           .kind = ops::CacheSpec::Kind::kRing,
                                           .format = m.keys,
                                           .width = s.head_dim,
                                           .rope = s.rope_dim,
                                           .ring_rows = s.window + options.spare_rows,
                                           .ratio = 1,
                                           .history = s.window - 1});
    ops::CacheId entries = ops::kNone;
    Slot selection = ops::kNone;
    if (layer.context != Context::kWindow)
        entries = b.compress(
            x, at + ".compressor",
            {layer.ratio, s.head_dim, s.rope_dim, layer.context == Context::kSparse, rope, m.keys, false, s.norm_eps});
    if (layer.context == Context::kSparse) selection = choose_entries(b, s, layer, at + ".indexer", m, x, qr);

    const Slot o = b.attention({.q = q,
                                .kv = kv,
                                .window_cache = ring,
                                .entries = entries,
                                .selection = selection,
                                .sinks = ops::kNone,
                                .out = ops::kNone,
                                .heads = s.heads,
                                .width = static_cast<int32_t>(s.head_dim),
                                .window = s.window,
                                .ratio = layer.ratio,
                                .scale = 1.0f / std::sqrt(static_cast<float>(s.head_dim))},
                               at + ".attn_sink");
    b.store_window(kv, ring);
    b.rope(o, s.head_dim, rope, true);
    const Slot grouped =
        b.linear(o, at + ".wo_a", s.groups * s.group_rank, {.groups = s.groups, .trained_rounding = false});
    return b.linear(grouped, at + ".wo_b", s.hidden);
}

/// Router, routed experts and the shared expert (2.8).
Slot feed_forward(Builder& b, const Shape& s, const LayerShape& layer, const std::string& at, Slot x) {
    const auto routing = b.route(x, at + ".gate", s.top_k, layer.routed_by_token, s.routed_scale, s.normalise_weights);
    const Slot y = b.experts(x, routing, at + ".experts", s.intermediate, s.swiglu_limit);
    if (s.shared_experts > 0)
        b.add(y, b.mlp(x, at + ".shared_experts", s.intermediate * s.shared_experts, s.swiglu_limit));
    return y;
}

/// One layer between the residual streams (2.2).
void block(Builder& b, const Shape& s, const LayerShape& layer, const std::string& at, const Memory& m,
           const LoadOptions& options, Slot streams) {
    const auto read = [&](const char* site, const char* norm) {
        auto in = b.hyper_in(streams, at + site, s.hidden, s.sinkhorn_iterations, s.hyper_eps, s.norm_eps);
        b.norm(in.x, at + norm, s.hidden, s.norm_eps);
        return in;
    };
    const auto attn = read(".hc_attn", ".attn_norm.weight");
    const int32_t attends = b.next_step();
    b.hyper_out(attention(b, s, layer, at + ".attn", m, options, attn.x), streams, attn);
    const auto ffn = read(".hc_ffn", ".ffn_norm.weight");
    const int32_t routes = b.next_step();
    b.hyper_out(feed_forward(b, s, layer, at + ".ffn", ffn.x), streams, ffn);
    // On the demo model the router sees in what attention reads 61 and 68 % of what it will choose (chance: 25), in its
    // own reading of the streams before attention 71 and 74 %; but this one costs a site more on a card.
    b.foretell(attends, routes);
}

/// Collapses the streams of the wanted rows and multiplies with the head (2.9). `at` is "" or "mtp.0.".
Slot output(Builder& b, const Shape& s, const std::string& at, Slot streams) {
    const Slot x = b.hyper_head(b.take_rows(streams), at + "hc_head", s.hidden, s.hyper_eps, s.norm_eps);
    b.norm(x, at + "norm.weight", s.hidden, s.norm_eps);
    return b.linear(x, "head", s.vocab);
}

ops::Plan trunk(MatrixFinder& finder, const LoadOptions& options, const Shape& s) {
    Builder b(finder, options, "trunk", s.vocab);
    const Memory m = memory_of(b, s, options.kv_cache);
    const Slot streams = b.embed("embed", s.hidden, s.streams);
    for (size_t i = 0; i < s.layers.size(); ++i)
        block(b, s, s.layers[i], "layers." + std::to_string(i), m, options, streams);
    return b.finish(streams, output(b, s, "", streams));
}

/// The MTP layer (2.10): fed with the trunk's streams of position p and token p + 1, predicts token p + 2.
ops::Plan mtp(MatrixFinder& finder, const LoadOptions& options, const Shape& s) {
    Builder b(finder, options, "mtp.0", s.vocab);
    const Memory m = memory_of(b, s, options.kv_cache);
    const Slot streams = b.slot("streams", s.hidden * s.streams);
    const Slot token = b.norm(b.embed("embed", s.hidden, 1), "mtp.0.enorm.weight", s.hidden, s.norm_eps);
    const Slot previous =
        b.norm(streams, "mtp.0.hnorm.weight", s.hidden, s.norm_eps, b.slot("previous", b.cols(streams)));
    b.linear(previous, "mtp.0.h_proj", s.hidden, {.fold = s.streams, .out = streams});
    b.add(streams, b.linear(token, "mtp.0.e_proj", s.hidden));
    block(b, s, s.mtp, "mtp.0", m, options, streams);
    return b.finish(streams, output(b, s, "mtp.0.", streams));
}

}  // namespace

void build(MatrixFinder& finder, const LoadOptions& options, Model& model) {
    Shape shape = read_shape(model.checkpoint.config);
    const bool whole = options.layers == 0 || options.layers >= static_cast<int32_t>(shape.layers.size());
    if (!whole) shape.layers.resize(static_cast<size_t>(options.layers));
    model.vocab = shape.vocab;
    model.max_context = shape.max_context;
    model.trunk = trunk(finder, options, shape);
    if (whole && finder.has("mtp.0.hnorm.weight")) model.mtp = mtp(finder, options, shape);
}

}  // namespace thermocline::model::deepseek_v4
