// From a checkpoint to plans: one row per architecture. A loaded model owns its files and plans.
#pragma once

#include "src/model/weights.h"
#include "src/ops/plan.h"
#include "src/quant/kv_row.h"

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

namespace thermocline::model {

enum class Activations : uint8_t { kModel, kBf16, kBf16Rounded, kInt8 };
enum class LoadFormat : uint8_t { kAuto, kDummy, kOutline };
enum class KvCacheDtype : uint8_t { kF32, kBf16, kFp8F32, kFp8 };

struct LoadOptions {
    LoadFormat format =
        LoadFormat::kAuto;     ///< kDummy: random weights for a config, nothing is read but that;
                               ///< kOutline: plans of the sizes of these, without weights, not to be played
    uint64_t seed = 0;         ///< of dummy weights
    int64_t dummy_vocab = 0;   ///< rows of embedding and head of dummy weights; 0: vocab_size of the config
    bool defer_codes = false;  ///< leave codes of dummy weights to engine::pack_weights, which must follow
    KvCacheDtype kv_cache = KvCacheDtype::kBf16;
    Activations activations = Activations::kModel;
    int32_t layers = 0;       ///< keep the first N layers; 0: all
    int32_t spare_rows = 16;  ///< tokens that can be rolled back at any time
};

struct Model {
    Checkpoint checkpoint;
    std::string architecture;  // "deepseek_v4"
    ops::Plan trunk;
    std::optional<ops::Plan> mtp;  // first MTP layer, if the files hold one
    int64_t vocab = 0;
    int64_t max_context = 0;  // max_position_embeddings
    int32_t bos_id = -1, eos_id = -1;
    int64_t weight_bytes = 0;  // of everything the plans read
    int64_t parameters = 0;    // numbers in it
    std::vector<std::string> warnings;
};

/// Opens (or makes), validates and binds MODEL. Throws Error.
std::unique_ptr<Model> load_model(const std::string& path, const LoadOptions& options);

}  // namespace thermocline::model
