#include "src/engine/pack.h"

#include "src/base/error.h"
#include "src/base/log.h"

#include <chrono>
#include <vector>

namespace thermocline::engine {

std::unique_ptr<memory::PackedWeights> pack_weights(model::Model& model, int threads) {
    using Clock = std::chrono::steady_clock;
    using Source = memory::PackedWeights::Source;
    if (model.checkpoint.container == "converted") {
        log::info("weights: {:.2f} GB mapped, packed when they were converted from {}",
                  static_cast<double>(model.weight_bytes) * 1e-9, printable(model.checkpoint.source.path));
        return nullptr;
    }
    const auto start = Clock::now();
    auto last = start;
    const auto progress = [&](int64_t done, int64_t all) {
        if (Clock::now() - last < std::chrono::seconds(3)) return;
        last = Clock::now();
        log::info("packing weights: {} of {} MiB", done >> 20, all >> 20);
    };
    std::vector<ops::Plan*> plans = {&model.trunk};
    if (model.mtp) plans.push_back(&*model.mtp);
    auto packed = std::make_unique<memory::PackedWeights>(
        plans, model.checkpoint.container == "dummy" ? Source::kMemory : Source::kFiles, threads, progress);
    const double seconds = std::chrono::duration<double>(Clock::now() - start).count();
    log::info("weights: {:.2f} GB packed in {:.2f} s, {:.2f} GB read where they lie",
              static_cast<double>(packed->bytes()) * 1e-9, seconds,
              static_cast<double>(packed->unpacked_bytes()) * 1e-9);
    return packed;
}

}  // namespace thermocline::engine
