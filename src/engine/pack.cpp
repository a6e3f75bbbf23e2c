#include "src/engine/pack.h"

#include "src/base/error.h"
#include "src/base/log.h"
#include "src/model/dummy.h"

#include <chrono>
#include <iomanip>
#include <memory>
#include <optional>
#include <sstream>
#include <string>
#include <vector>

namespace thermocline::engine {
namespace {

/// Says how the weights lie, for the log, and warns if it is not how they should.
std::string placement(const memory::Arena& arena, const std::vector<memory::Slice>& slices) {
    std::ostringstream text;
    if (arena.page_bytes() > 0) text << " into reserved pages of " << (arena.page_bytes() >> 20) << " MiB";
    if (slices[0].nodes.empty()) return text.str();
    text << (slices.size() > 1 ? " over " + std::to_string(slices.size()) + " slices" : " interleaved");
    if (arena.refused()) {
        log::warn(
            "weights are not bound to NUMA nodes ({}): cores will read much from other nodes. In a container give it "
            "the capability SYS_NICE",
            arena.refused().message());
        return text.str();
    }
    const std::optional<double> share = arena.share_in_place();
    if (!share) return text.str() + ", nobody says on which NUMA nodes";
    text << ", " << std::fixed << std::setprecision(1) << 100.0 * *share << " % of pages where they belong";
    if (*share < 0.99)
        log::warn(
            "{:.1f} % of the weights lie on other NUMA nodes than wanted: free memory there "
            "(/sys/devices/system/node/node*/meminfo) and start again, or use --numa off",
            100.0 * (1.0 - *share));
    return text.str();
}

class DummySource : public memory::DeferredWeights {
public:
    explicit DummySource(const model::DummyCodes& codes) : codes_(codes) {}
    bool deferred(const std::byte* data) const override { return codes_.holds(data); }
    void make(const std::byte* data, int64_t size, std::byte* out) const override { codes_.make(data, size, out); }

private:
    const model::DummyCodes& codes_;
};

}  // namespace

bool is_mapped(const model::Model& model) { return model.checkpoint.container == "converted"; }

std::unique_ptr<memory::PackedWeights> pack_weights(model::Model& model, const std::vector<memory::Slice>& slices,
                                                    std::span<const quant::Matrix* const> card_only) {
    using Clock = std::chrono::steady_clock;
    if (is_mapped(model)) {
        log::info("weights: {:.2f} GB mapped, packed when they were converted from {}",
                  static_cast<double>(model.weight_bytes) * 1e-9, printable(model.checkpoint.source.path));
        if (slices.size() > 1)
            log::warn(
                "a converted model lies where the page cache has put it, not in slices on {} NUMA nodes: where memory "
                "allows, serve the model that it was made from",
                slices.size());
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
    std::shared_ptr<DummySource> dummy;
    if (model.checkpoint.dummy_codes) dummy = std::make_shared<DummySource>(*model.checkpoint.dummy_codes);
    auto packed = std::make_unique<memory::PackedWeights>(plans, dummy, slices, progress, card_only);
    const double seconds = std::chrono::duration<double>(Clock::now() - start).count();
    log::info(
        "weights: {:.2f} GB packed in {:.2f} s ({:.1f} GB/s){}, {:.2f} GB read where they lie, {:.2f} GB of the card "
        "alone",
        static_cast<double>(packed->bytes()) * 1e-9, seconds, static_cast<double>(packed->bytes()) * 1e-9 / seconds,
        packed->arena() ? placement(*packed->arena(), slices) : "",
        static_cast<double>(packed->unpacked_bytes()) * 1e-9, static_cast<double>(packed->card_only_bytes()) * 1e-9);
    return packed;
}

}  // namespace thermocline::engine
