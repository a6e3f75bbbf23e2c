// DeepSeek-V4 (shared/design/deepseek-v4.md): reads the config, writes the plans of the trunk and of the MTP layer.
#pragma once

#include "src/base/json.h"
#include "src/model/dummy.h"
#include "src/model/matrices.h"
#include "src/model/registry.h"

#include <cstdint>
#include <string>
#include <vector>

namespace thermocline::model::deepseek_v4 {

/// What one layer attends to besides its sliding window (section 1.2). Read from the config for every layer; nothing
/// follows from a layer's index.
enum class Context : uint8_t {
    kWindow,  ///< nothing
    kSparse,  ///< CSA: overlapping windows, the indexer chooses entries
    kHeavy,   ///< HCA: every completed window
};

struct LayerShape {
    Context context = Context::kWindow;
    int32_t ratio = 0;             // tokens per compressed entry; 0 for kWindow
    bool routed_by_token = false;  // expert ids come from the token table
};

struct RopeShape {
    double theta = 10000.0;
    bool yarn = false;
    double factor = 1.0;
    double original_context = 65536.0;
    double beta_fast = 32.0, beta_slow = 1.0;
};

/// config.json, checked (section 1.1). Field comments give the reference's names.
struct Shape {
    int64_t vocab;                // vocab_size
    int64_t hidden;               // dim: D
    int32_t heads;                // n_heads: H
    int64_t head_dim;             // d, queries and the one key = value head
    int64_t rope_dim;             // dr, the last channels
    int64_t q_rank;               // q_lora_rank
    int32_t groups;               // o_groups
    int64_t group_rank;           // o_lora_rank
    int32_t window;               // sliding_window, the current token included
    int32_t index_heads;          // index_n_heads
    int64_t index_dim;            // index_head_dim
    int32_t index_top_k;          // index_topk
    int32_t streams;              // hc_mult
    int32_t sinkhorn_iterations;  // hc_sinkhorn_iters
    float hyper_eps;              // hc_eps
    float norm_eps;               // rms_norm_eps
    int32_t top_k;                // num_experts_per_tok
    int64_t intermediate;         // moe_intermediate_size
    int64_t shared_experts;       // n_shared_experts
    float routed_scale;           // routed_scaling_factor
    bool normalise_weights;       // norm_topk_prob
    float swiglu_limit;
    int64_t max_context;             // max_position_embeddings
    RopeShape window_rope;           // layers that only see their window, and the MTP layer
    RopeShape context_rope;          // layers with compressed context, everything in them
    std::vector<LayerShape> layers;  // trunk
    LayerShape mtp;
};

/// Throws Error naming the field. Accepts DeepSeek's flat config.json and the nested one that HF transformers writes.
Shape read_shape(const Json& config);

/// Radians per position for every pair of `dims` channels (section 2.4, appendix B).
std::vector<float> rope_frequencies(const RopeShape& rope, int64_t dims);

/// Binds all weights and writes `model.trunk` and, if the files hold one, `model.mtp`.
void build(MatrixFinder& finder, const LoadOptions& options, Model& model);

/// The tensors of the first `layers` layers (0: all, and the MTP layer if the config has one) as the official
/// checkpoint holds them. Throws Error naming the field that does not allow them.
std::vector<DummyTensor> dummy_tensors(const Json& config, int32_t layers);

}  // namespace thermocline::model::deepseek_v4
