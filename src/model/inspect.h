// What a checkpoint contains, without loading it as a model: for `thermocline inspect`. Reads headers, all of a sample
// of scales, and nothing else. Works on architectures that the engine does not know.
#pragma once

#include "src/model/names.h"
#include "src/model/weights.h"

#include <cstdint>
#include <string>
#include <vector>

namespace thermocline::model {

struct Report {
    /// All tensors of one format.
    struct FormatLine {
        std::string format;
        int64_t tensors = 0;
        int64_t bytes = 0;
    };
    /// All matrices whose names differ in numbers only and that are quantised alike.
    struct MatrixLine {
        std::string name;    // "layers.*.ffn.experts.*.w1"
        std::string scheme;  // "MXFP4, F8_E8M0 scales", "BF16", "Q4_K"
        int64_t count = 0;
        int64_t bytes = 0;  // with scales
    };

    std::string path;
    std::string container;      // "safetensors", "gguf", "converted"
    Checkpoint::Source source;  // of a converted model
    std::string naming;         // "official", "HF transformers", "GGUF"
    std::string architecture;   // as the config says
    std::string model_type;
    int64_t files = 0;
    int64_t tensors = 0;
    int64_t bytes = 0;  // of all tensors
    int64_t layers = 0;
    int64_t mtp_layers = 0;
    std::vector<int64_t> experts;      // routed experts of each layer, 0 where there is no router
    std::vector<FormatLine> formats;   // most bytes first
    std::vector<MatrixLine> matrices;  // by name
    std::vector<std::string> warnings;
    std::vector<std::string> problems;  // what would make loading fail
};

/// Never throws for what the tensors contain: that becomes `problems`.
Report inspect(const Checkpoint& checkpoint);

std::string report_text(const Report& report);
Json report_json(const Report& report);

}  // namespace thermocline::model
