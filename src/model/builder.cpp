#include "src/model/builder.h"

#include "src/base/error.h"

#include <utility>

namespace thermocline::model {

namespace {

/// "layers.3.attn.wq_a" -> "attn.wq_a": the role that names a slot.
std::string role(const std::string& weight) {
    if (weight.rfind("layers.", 0) != 0 && weight.rfind("mtp.", 0) != 0) return weight;
    return weight.substr(weight.find('.', weight.find('.') + 1) + 1);
}

int32_t narrow(int64_t value) { return static_cast<int32_t>(value); }  // config fields are bounded far below 2^31

}  // namespace

Builder::Builder(MatrixFinder& finder, const LoadOptions& options, std::string plan_name, int64_t vocab)
    : finder_(finder), options_(options) {
    plan_.name = std::move(plan_name);
    plan_.vocab = vocab;
}

Builder::Slot Builder::slot(const std::string& name, int64_t cols, ops::Rows rows) {
    const auto [it, is_new] = slots_.try_emplace({name, cols, rows}, static_cast<Slot>(plan_.slots.size()));
    if (is_new) plan_.slots.push_back({name, cols, rows});
    return it->second;
}

ops::MatrixId Builder::matrix(const std::string& name, int64_t rows, int64_t cols) {
    plan_.matrices.push_back({name, finder_.matrix(name, rows, cols)});
    return narrow(static_cast<int64_t>(plan_.matrices.size()) - 1);
}

ops::VectorId Builder::vector(const std::string& name, const Shape& shape) {
    plan_.vectors.push_back({name, finder_.vector(name, shape), shape});
    return narrow(static_cast<int64_t>(plan_.vectors.size()) - 1);
}

ops::InputRounding Builder::rounding(const quant::Matrix& matrix, bool trained) const {
    const bool fp8 = matrix.format == quant::Format::kE4M3;
    if (options_.activations == Activations::kInt8 && !fp8) return ops::InputRounding::kInt8;
    const bool trained_format = !finder_.from_gguf() && (fp8 || matrix.format == quant::Format::kE2M1Pair);
    if (trained && trained_format && options_.activations != Activations::kBf16) return ops::InputRounding::kE4M3;
    return options_.activations == Activations::kBf16Rounded ? ops::InputRounding::kBF16 : ops::InputRounding::kExact;
}

Builder::Slot Builder::embed(const std::string& weight, int64_t width, int32_t copies) {
    const Slot out = slot("embed." + std::to_string(copies), width * copies);
    plan_.steps.push_back(ops::Embed{matrix(weight, plan_.vocab, width), out, copies});
    return out;
}

Builder::Slot Builder::linear(Slot x, const std::string& weight, int64_t out_rows, LinearForm form) {
    const int64_t in_cols = cols(x) / form.groups / form.fold;
    const ops::MatrixId id = matrix(weight, out_rows, in_cols);
    const ops::Rows rows = plan_.slots[static_cast<size_t>(x)].rows;
    const Slot out = form.out != ops::kNone ? form.out : slot(role(weight), out_rows * form.fold, rows);
    const quant::Matrix& w = plan_.matrices.back().matrix;
    plan_.steps.push_back(ops::Linear{x, id, out, form.groups, form.fold, rounding(w, form.trained_rounding)});
    return out;
}

Builder::Slot Builder::norm(Slot x, const std::string& weight, int64_t width, float eps, Slot out) {
    if (out == ops::kNone) out = x;
    const ops::VectorId w = weight.empty() ? ops::kNone : vector(weight, {width});
    plan_.steps.push_back(ops::RmsNorm{x, out, w, narrow(width), eps});
    return out;
}

void Builder::rope(Slot x, int64_t width, ops::RopeId rope, bool inverse) {
    plan_.steps.push_back(ops::Rope{x, narrow(width), rope, inverse});
}

void Builder::round_kv(Slot x, int64_t width, int64_t rope, quant::KvFormat format, bool hadamard) {
    if (format == quant::KvFormat::kF32 && !hadamard) return;
    plan_.steps.push_back(ops::RoundKv{x, narrow(width), narrow(rope), format, hadamard});
}

void Builder::add(Slot x, Slot y) { plan_.steps.push_back(ops::Add{x, y, narrow(cols(x) / cols(y))}); }

Builder::Slot Builder::swiglu(Slot gate, Slot up, float limit, const std::string& name) {
    const Slot out = slot(name, cols(gate));
    plan_.steps.push_back(ops::SwiGlu{gate, up, out, limit});
    return out;
}

Builder::Slot Builder::take_rows(Slot x) {
    const Slot out = slot(plan_.slots[static_cast<size_t>(x)].name, cols(x), ops::Rows::kOutputs);
    plan_.steps.push_back(ops::TakeRows{x, out});
    return out;
}

Builder::Site Builder::hyper_in(Slot streams, const std::string& weights, int64_t width, int32_t iterations, float eps,
                                float norm_eps) {
    const int64_t n = cols(streams) / width, mixes = n * (2 + n);
    const Slot mix = linear(streams, weights + "_fn", mixes, {.out = slot("hyper.mix", mixes)});
    const Site site{slot("x", width), slot(role(weights) + ".post_comb", n + n * n)};
    plan_.steps.push_back(ops::HyperIn{streams, mix, vector(weights + "_base", {mixes}),
                                       vector(weights + "_scale", {3}), site.x, site.post_comb, narrow(n), iterations,
                                       eps, norm_eps});
    return site;
}

void Builder::hyper_out(Slot y, Slot streams, const Site& site) {
    const bool exact = options_.kv_cache == KvCacheDtype::kF32 || options_.kv_cache == KvCacheDtype::kFp8F32;
    plan_.steps.push_back(ops::HyperOut{y, site.post_comb, streams, narrow(cols(streams) / cols(y)), !exact});
}

Builder::Slot Builder::hyper_head(Slot streams, const std::string& weights, int64_t width, float eps, float norm_eps) {
    const int64_t n = cols(streams) / width;
    const Slot mix = linear(streams, weights + "_fn", n);
    const Slot x = slot("x", width, ops::Rows::kOutputs);
    plan_.steps.push_back(ops::HyperHead{streams, mix, vector(weights + "_base", {n}), vector(weights + "_scale", {1}),
                                         x, narrow(n), eps, norm_eps});
    return x;
}

ops::RopeId Builder::add_rope(std::vector<float> frequencies) {
    plan_.ropes.push_back({std::move(frequencies)});
    return narrow(static_cast<int64_t>(plan_.ropes.size()) - 1);
}

ops::CacheId Builder::add_cache(ops::CacheSpec spec) {
    plan_.caches.push_back(std::move(spec));
    return narrow(static_cast<int64_t>(plan_.caches.size()) - 1);
}

ops::CacheId Builder::compress(Slot x, const std::string& weights, const Pooling& p) {
    const int64_t wide = (p.overlap ? 2 : 1) * p.width;
    const int64_t span = int64_t{p.overlap ? 2 : 1} * p.ratio;
    const Slot values = linear(x, weights + ".wkv", wide);
    const Slot scores = linear(x, weights + ".wgate", wide);
    const ops::CacheId state = add_cache({.name = weights + ".state",
                                          .kind = ops::CacheSpec::Kind::kRing,
                                          .format = quant::KvFormat::kF32,
                                          .width = 2 * wide,
                                          .ring_rows = span + options_.spare_rows,
                                          .ratio = p.ratio,
                                          .history = p.overlap ? p.ratio : 0});
    const ops::CacheId entries = add_cache({.name = weights + ".entries",
                                            .kind = ops::CacheSpec::Kind::kEntries,
                                            .format = p.format,
                                            .width = p.width,
                                            .rope = p.rope_dims,
                                            .ratio = p.ratio});
    plan_.steps.push_back(ops::Compress{values, scores, vector(weights + ".ape", {p.ratio, wide}),
                                        vector(weights + ".norm.weight", {p.width}), p.rope, state, entries, p.ratio,
                                        narrow(p.width), p.overlap, p.hadamard, p.eps});
    return entries;
}

Builder::Slot Builder::select(const ops::SelectEntries& step) {
    ops::SelectEntries filled = step;
    filled.selection = slot("attn.selection", 1 + step.top_k);
    plan_.steps.push_back(filled);
    return filled.selection;
}

Builder::Slot Builder::attention(ops::Attention step, const std::string& sinks) {
    step.sinks = vector(sinks, {step.heads});
    step.out = slot("attn.out", int64_t{step.heads} * step.width);
    plan_.steps.push_back(step);
    return step.out;
}

void Builder::store_window(Slot kv, ops::CacheId ring) {
    plan_.steps.push_back(ops::StoreWindow{kv, ring, narrow(cols(kv))});
}

Builder::Routing Builder::route(Slot x, const std::string& weights, int32_t top_k, bool by_token, float scale,
                                bool normalise) {
    const int64_t count = finder_.expert_count(weights);
    if (count < top_k) fail(weights, ".weight: ", count, " experts, expected at least num_experts_per_tok = ", top_k);
    const Slot logits = linear(x, weights, count, {.out = slot("ffn.gate", count)});
    const Routing routing{slot("ffn.ids", top_k), slot("ffn.weights", top_k), count, top_k};
    ops::TableId table = ops::kNone;
    if (by_token) {
        table = narrow(static_cast<int64_t>(plan_.tables.size()));
        const Shape shape = {plan_.vocab, top_k};
        plan_.tables.push_back({weights + ".tid2eid", finder_.table(weights + ".tid2eid", shape, count), shape});
    }
    const ops::VectorId bias = by_token ? ops::kNone : vector(weights + ".bias", {count});
    plan_.steps.push_back(
        ops::Route{logits, bias, table, routing.ids, routing.weights, narrow(count), top_k, scale, normalise});
    return routing;
}

void Builder::foretell(int32_t from, int32_t router) {
    if (std::get<ops::Route>(plan_.steps[static_cast<size_t>(router) + 1]).table == ops::kNone)
        plan_.foretold.push_back({from - 1, router});
}

Builder::Slot Builder::experts(Slot x, const Routing& routing, const std::string& weights, int64_t intermediate,
                               float limit) {
    const int64_t hidden = cols(x);
    plan_.experts.push_back({weights, hidden, intermediate,
                             finder_.experts(weights, "w1", routing.experts, intermediate, hidden),
                             finder_.experts(weights, "w2", routing.experts, hidden, intermediate),
                             finder_.experts(weights, "w3", routing.experts, intermediate, hidden)});
    const Slot out = slot("ffn.out", hidden);
    plan_.steps.push_back(ops::Experts{x, routing.ids, routing.weights,
                                       narrow(static_cast<int64_t>(plan_.experts.size()) - 1), out, routing.top_k,
                                       limit, rounding(plan_.experts.back().w1.front(), true)});
    return out;
}

Builder::Slot Builder::mlp(Slot x, const std::string& weights, int64_t intermediate, float limit) {
    const int64_t hidden = cols(x);
    const Slot gate = linear(x, weights + ".w1", intermediate);
    const Slot up = linear(x, weights + ".w3", intermediate);
    return linear(swiglu(gate, up, limit, role(weights) + ".h"), weights + ".w2", hidden);
}

ops::Plan Builder::finish(Slot streams, Slot logits) {
    plan_.streams = streams;
    plan_.logits = logits;
    ops::verify(plan_);
    return std::move(plan_);
}

}  // namespace thermocline::model
