// What the tensors of DeepSeek-V4 are called: official names, HF transformers names and GGUF names (deepseek-v4.md 4.3
// and 5), in one table. Pure lookups; safe from any thread.
#pragma once

#include "src/model/weights.h"

#include <string>
#include <vector>

namespace thermocline::model {

/// Maps official DeepSeek-V4 names ("layers.3.attn.wq_a", without ".weight") to what a checkpoint calls them.
enum class Naming { kOfficial, kHf, kGguf };

/// "official", "HF transformers", "GGUF".
const char* naming_text(Naming naming);

Naming recognise_naming(const Checkpoint& checkpoint);

class NameTable {
public:
    /// `trunk_layers`: GGUF numbers MTP layers after the trunk ones.
    NameTable(Naming naming, int64_t trunk_layers) : naming_(naming), trunk_layers_(trunk_layers) {}

    /// What a linear layer ("layers.3.attn.wq_a") may be called, best first, without ".weight" or other suffixes.
    /// GGUF keeps the experts of a layer in one tensor: "layers.3.ffn.experts.w1"; "ffn.experts.w13" is gate and up.
    std::vector<std::string> modules(const std::string& official) const;

    /// What a parameter ("norm.weight", "layers.3.hc_attn_fn", "layers.3.ffn.gate.bias") may be called, complete.
    std::vector<std::string> tensors(const std::string& official) const;

private:
    Naming naming_;
    int64_t trunk_layers_;
};

}  // namespace thermocline::model
