// The words a model file is written with. Each word appends one step (now and then a few) to the plan, binds the
// weights it names with the shape they must have, and returns the slot that holds its result. Slots are named by
// role and reused from layer to layer.
#pragma once

#include "src/model/matrices.h"
#include "src/model/registry.h"
#include "src/ops/plan.h"

#include <cstdint>
#include <limits>
#include <map>
#include <string>
#include <tuple>

namespace thermocline::model {

class Builder {
public:
    using Slot = ops::Slot;

    Builder(MatrixFinder& finder, const LoadOptions& options, std::string plan_name, int64_t vocab);

    /// The slot of a role; the same (name, cols, rows) is the same buffer.
    Slot slot(const std::string& name, int64_t cols, ops::Rows rows = ops::Rows::kTokens);
    int64_t cols(Slot id) const { return plan_.slots[static_cast<size_t>(id)].cols; }

    Slot embed(const std::string& weight, int64_t width, int32_t copies);

    struct LinearForm {
        int32_t groups = 1;
        int32_t fold = 1;
        bool trained_rounding = true;  ///< the input is rounded if the matrix is FP8/FP4 and the profile says so
        Slot out = ops::kNone;         ///< an existing slot instead of one named after the weight
    };
    /// W x; W is [out_rows, cols(x) / groups / fold].
    Slot linear(Slot x, const std::string& weight, int64_t out_rows, LinearForm form);
    Slot linear(Slot x, const std::string& weight, int64_t out_rows) {
        return linear(x, weight, out_rows, LinearForm{});
    }

    /// RMSNorm of every run of `width` channels; `weight` empty: none. In place unless `out` is given.
    Slot norm(Slot x, const std::string& weight, int64_t width, float eps, Slot out = ops::kNone);
    void rope(Slot x, int64_t width, ops::RopeId rope, bool inverse = false);
    void round_kv(Slot x, int64_t width, int64_t rope, quant::KvFormat format, bool hadamard);
    void add(Slot x, Slot y);
    Slot swiglu(Slot gate, Slot up, float limit, const std::string& name);
    Slot take_rows(Slot x);

    struct Site {  // one reading and writing point of the residual streams
        Slot x;
        Slot post_comb;
    };
    Site hyper_in(Slot streams, const std::string& weights, int64_t width, int32_t iterations, float eps,
                  float norm_eps);
    void hyper_out(Slot y, Slot streams, const Site& site);
    Slot hyper_head(Slot streams, const std::string& weights, int64_t width, float eps, float norm_eps);

    ops::RopeId add_rope(std::vector<float> frequencies);
    ops::CacheId add_cache(ops::CacheSpec spec);

    struct Pooling {
        int32_t ratio;
        int64_t width;
        int64_t rope_dims;
        bool overlap;
        ops::RopeId rope;
        quant::KvFormat format;
        bool hadamard;
        float eps;
    };
    /// Compressor `weights` (".wkv", ".wgate", ".ape", ".norm"): returns the cache of its entries.
    ops::CacheId compress(Slot x, const std::string& weights, const Pooling& pooling);
    Slot select(const ops::SelectEntries& step);
    Slot attention(ops::Attention step, const std::string& sinks);
    void store_window(Slot kv, ops::CacheId ring);

    struct Routing {
        Slot ids, weights;
        int64_t experts;
        int32_t top_k;
    };
    /// Router `weights` (".weight", ".bias" or ".tid2eid"); the number of experts is what the tensor says.
    Routing route(Slot x, const std::string& weights, int32_t top_k, bool by_token, float scale, bool normalise);
    /// What the next word appends.
    int32_t next_step() const { return static_cast<int32_t>(plan_.steps.size()); }
    /// Of a route() whose first step was `router`: its x held much the same when step `from` was to come, so it can be
    /// foretold from there. Nothing to foretell if it goes by token.
    void foretell(int32_t from, int32_t router);
    Slot experts(Slot x, const Routing& routing, const std::string& weights, int64_t intermediate, float limit);
    /// Dense expert (".w1", ".w3", ".w2").
    Slot mlp(Slot x, const std::string& weights, int64_t intermediate, float limit);

    /// Marks the slots the executor exposes, verifies and hands the plan out.
    ops::Plan finish(Slot streams, Slot logits);

private:
    ops::VectorId vector(const std::string& name, const Shape& shape);
    ops::MatrixId matrix(const std::string& name, int64_t rows, int64_t cols);
    ops::InputRounding rounding(const quant::Matrix& matrix, bool trained) const;

    MatrixFinder& finder_;
    const LoadOptions& options_;
    ops::Plan plan_;
    std::map<std::tuple<std::string, int64_t, ops::Rows>, Slot> slots_;
};

}  // namespace thermocline::model
