// From tensor names to matrices: finds the tensors of one linear layer under any of the published naming schemes
// (official, HF transformers, GGUF), recognises how they are quantised from the tensors that are present
// (weight-formats.md section 10), checks scales, and returns views that the kernels multiply with as they lie.
// Not safe for several threads at once: it remembers what was used.
#pragma once

#include "src/model/linear.h"
#include "src/model/names.h"
#include "src/model/weights.h"

#include <optional>
#include <string>
#include <unordered_set>
#include <vector>

namespace thermocline::model {

class MatrixFinder {
public:
    /// Recognises the naming scheme and checks a sample of NVFP4 tensors. The directory must outlive the finder and all
    /// matrices. Throws Error if the file is one that must not be believed (swizzled or reciprocal NVFP4 scales).
    explicit MatrixFinder(const Checkpoint& checkpoint);

    Naming naming() const { return naming_; }

    /// Whether the weights come from a GGUF file, converted or not: no model was trained to round the inputs of those.
    bool from_gguf() const { return checkpoint_->source_container() == "gguf"; }

    /// The matrix of linear `name` (official name without suffix, e.g. "layers.0.attn.wq_b", "head", "embed") with
    /// exactly the shape [rows, cols]. Throws Error naming the tensor, what was found and what was expected.
    quant::Matrix matrix(const std::string& name, int64_t rows, int64_t cols);

    /// All routed experts of one projection ("layers.0.ffn.experts", "w1"): `experts` matrices [rows, cols].
    std::vector<quant::Matrix> experts(const std::string& prefix, const std::string& projection, int64_t experts,
                                       int64_t rows, int64_t cols);

    /// Number of routed experts of a layer ("layers.0.ffn.gate") as the tensors say it: rows of gate.weight, checked
    /// against gate.bias and against the experts that are there. REAP-pruned layers differ.
    int64_t expert_count(const std::string& gate_name);

    /// A small parameter (norm, bias, sink, hc_*, ape) as float32 values; any plain float format or GGUF block, exact
    /// shape up to dimensions of 1. `name` is the official tensor name with its last component
    /// ("layers.0.attn_norm.weight", "layers.0.hc_attn_fn", "layers.0.attn.attn_sink", "layers.0.ffn.gate.bias").
    /// Refuses NaN and infinity.
    std::vector<float> vector(const std::string& name, const Shape& shape);

    /// Integer table (tid2eid): any integer format, as int32; every value must be in [0, limit).
    std::vector<int32_t> table(const std::string& name, const Shape& shape, int64_t limit);

    /// Whether the checkpoint holds this parameter or linear (official name, with or without ".weight").
    bool has(const std::string& name) const;

    /// Names of the tensors that nothing asked for (reported once at INFO).
    std::vector<std::string> unused() const;
    /// Their bytes.
    int64_t unused_bytes() const;
    /// Warnings that inspection of scales produced (undetermined swizzle etc.), one line each.
    const std::vector<std::string>& warnings() const { return warnings_; }

private:
    const TensorEntry* find_tensor(const std::string& official) const;
    const TensorEntry& tensor(const std::string& official, const Shape& shape);
    /// First spelling of a linear under which anything is there; the module name is empty if nothing is.
    LinearTensors find_linear(const std::string& official) const;
    void use(const TensorEntry& entry) { used_.insert(&entry); }
    void use(const LinearTensors& tensors);
    std::optional<quant::Matrix> half_of_eh_proj(const std::string& name, int64_t rows, int64_t cols);
    /// The tensors of a linear whose weight is one tensor for all experts, without suffix or with ".weight".
    LinearTensors find_stacked(const std::string& official) const;
    std::vector<quant::Matrix> stacked_experts(const LinearTensors& stack, int64_t experts, int64_t first_row,
                                               int64_t stack_rows, int64_t rows, int64_t cols);
    /// The NVFP4 second-level factors of a GGUF tensor: one, or one per expert; all 1 if the file has none.
    std::vector<float> gguf_factors(const std::string& module, int64_t count, const quant::Matrix& example);
    void check_expert_ids(const std::string& prefix, int64_t count) const;

    const Checkpoint* checkpoint_;
    Naming naming_;
    NameTable names_;
    bool ue8m0_;  // the config says that one-byte integer scales are exponents
    std::vector<std::string> warnings_;
    std::unordered_set<const TensorEntry*> used_;
};

}  // namespace thermocline::model
