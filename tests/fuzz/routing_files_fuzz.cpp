// Traces of routing, profiles and placements: the input is given to the readers of all three. What one takes holds what
// its users rely on, and is read again as it was written.
#include "scheduler/placement_file.h"
#include "scheduler/routing_profile.h"
#include "src/base/check.h"
#include "src/base/error.h"

#include <cstddef>
#include <cstdint>
#include <string_view>

using namespace thermocline;
using namespace thermocline::scheduler;

namespace {

const std::vector<RoutedLayer> kLayers = {{4, 2}, {4, 2}};

void check_trace(std::string_view text) {
    const RoutingTrace trace = parse_routing_trace(text, "trace");
    CHECK(trace.rows() > 0);
    for (const RoutedPass& pass : trace.passes) {
        CHECK(pass.ids.size() == trace.layers.size());
        for (size_t i = 0; i < trace.layers.size(); ++i) {
            CHECK(std::ssize(pass.ids[i]) == pass.rows * trace.layers[i].top_k);
            for (const int32_t id : pass.ids[i]) CHECK(id >= 0 && id < trace.layers[i].experts);
        }
    }
}

void check_profile(std::string_view text) {
    RoutingProfile profile = parse_routing_profile(text, "profile");
    const std::string written = dump_json(to_json(profile));
    CHECK(dump_json(to_json(parse_routing_profile(written, "again"))) == written);
    merge(profile, RoutingProfile(profile));
    CHECK(shares_of(profile.layers, profile.chosen()).size() == profile.layers.size());
}

void check_placement(std::string_view text) {
    const PlacedExperts placed = parse_placement(text, "placement", "m", kLayers);
    check_pins(placed.resident, kLayers, 8);
    CHECK(placed.shares.empty() || placed.shares.size() == kLayers.size());
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    const std::string_view text(reinterpret_cast<const char*>(data), size);
    for (void (*check)(std::string_view) : {check_trace, check_profile, check_placement}) {
        try {
            check(text);
        } catch (const Error&) {
        }
    }
    return 0;
}
