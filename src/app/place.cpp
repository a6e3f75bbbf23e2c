// `place`: which experts should lie on the card, from a routing profile, for a machine and a budget.
#include "scheduler/placement_file.h"
#include "scheduler/printed.h"
#include "scheduler/routing_profile.h"
#include "src/app/commands.h"
#include "src/app/planning.h"
#include "src/base/error.h"
#include "src/base/file.h"
#include "src/base/json.h"

#include <charconv>
#include <cstdio>
#include <memory>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

namespace thermocline::app {

namespace {

using scheduler::printed;

struct PlaceFlags {
    PlanningFlags planning;
    std::string profile, out;
    std::vector<std::string> pins;
    bool json = false;
};

/// "3:17": expert 17 of layer 3.
scheduler::ExpertName pin_of(const std::string& text) {
    scheduler::ExpertName pin{-1, -1};
    const char* end = text.data() + text.size();
    const auto [colon, bad_layer] = std::from_chars(text.data(), end, pin.set);
    if (bad_layer == std::errc() && colon != end && *colon == ':') {
        const auto [rest, bad_expert] = std::from_chars(colon + 1, end, pin.expert);
        if (bad_expert == std::errc() && rest == end) return pin;
    }
    fail("--pin is ", printable(text), ", expected LAYER:EXPERT, such as 3:17");
}

scheduler::RoutingProfile profile_for(const PlaceFlags& flags, const Planned& planned) {
    scheduler::RoutingProfile profile = scheduler::read_routing_profile(flags.profile);
    const auto layers = scheduler::routed_layers(planned.model->trunk);
    const bool same_shape = planned.is_config && profile.layers == layers;  // a config is the shape of many models
    scheduler::check_model(flags.profile, profile.model, profile.layers,
                           same_shape ? profile.model : planned.model_name, layers);
    return profile;
}

/// What one card holds of the layers of the model.
struct CardRoom {
    scheduler::LayerRange layers;
    scheduler::ExpertTiers tiers;
};

std::vector<CardRoom> rooms_of(const Planned& planned) {
    std::vector<CardRoom> rooms;
    if (!planned.split) return {{{0, planned.model->trunk.experts.size()}, planned.forecast.tiers}};
    for (size_t i = 0; i < planned.split->cards.size(); ++i)
        rooms.push_back({planned.split->cards[i].layers, planned.split->tiers[i]});
    return rooms;
}

/// The best resident set of every card, put together; nothing is resident where `fill` is false.
scheduler::Placement solve(const PlaceFlags& flags, const Planned& planned, const scheduler::RoutingProfile& profile,
                           const std::vector<scheduler::ExpertName>& pins, bool fill) {
    const scheduler::TokenWork work = scheduler::token_work(planned.model->trunk, flags.planning.context - 1);
    const auto counts = profile.chosen();
    scheduler::Placement whole;
    const std::vector<CardRoom> rooms = rooms_of(planned);
    for (size_t i = 0; i < rooms.size(); ++i) {
        const scheduler::LayerRange range = rooms[i].layers;
        const auto part = [&](const auto& all) {
            return std::decay_t<decltype(all)>(all.begin() + static_cast<std::ptrdiff_t>(range.first),
                                               all.begin() + static_cast<std::ptrdiff_t>(range.last));
        };
        const auto layers = part(profile.layers);
        const auto of_layers = part(counts);
        const scheduler::Rates rates =
            scheduler::rates_of(planned.machine, &planned.machine.gpus[planned.split ? i : flags.planning.card],
                                scheduler::Outlook::kTarget);
        const std::vector<double> seconds = scheduler::layer_seconds(work, rates, true);
        scheduler::Placement one = scheduler::place_experts(
            {layers, of_layers, seconds, fill ? rooms[i].tiers.resident() : 0,
             fill ? scheduler::experts_within(pins, range) : std::vector<scheduler::ExpertName>()});
        for (const scheduler::ExpertName& name : one.resident)
            whole.resident.push_back(scheduler::in_whole(name, range));
        for (auto& layer : one.layers) whole.layers.push_back(layer);
        for (auto& shares : one.shares) whole.shares.push_back(std::move(shares));
        whole.seconds += one.seconds;
        whole.hit += one.hit * static_cast<double>(range.count()) / static_cast<double>(profile.layers.size());
    }
    return whole;
}

std::string table(const scheduler::Placement& placement, const scheduler::Placement& nothing,
                  const scheduler::RoutingProfile& profile, const std::vector<CardRoom>& rooms) {
    const bool split = rooms.size() > 1;
    std::string text = printed("%6s%s %9s %9s %10s %12s %12s\n", "layer", split ? "  card" : "", "experts", "resident",
                               "hit rate", "experts us", "without us");
    size_t card = 0;
    for (size_t i = 0; i < placement.layers.size(); ++i) {
        const scheduler::Placement::Layer& layer = placement.layers[i];
        if (i == rooms[card].layers.last) ++card;
        text += printed("%6zu%s %9lld %9lld %10.3f %12.1f %12.1f\n", i, split ? printed("%6zu", card).c_str() : "",
                        static_cast<long long>(profile.layers[i].experts), static_cast<long long>(layer.slots),
                        layer.hit, layer.seconds * 1e6, nothing.layers[i].seconds * 1e6);
    }
    return text + printed("%6s%s %9s %9zu %10.3f %12.1f %12.1f\n", "all", split ? "      " : "", "",
                          placement.resident.size(), placement.hit, placement.seconds * 1e6, nothing.seconds * 1e6);
}

void place(const PlaceFlags& flags) {
    std::vector<scheduler::ExpertName> pins;
    for (const std::string& text : flags.pins) pins.push_back(pin_of(text));
    const Planned planned = plan_ahead(flags.planning, [&](const Planned& so_far) {
        const scheduler::RoutingProfile profile = profile_for(flags, so_far);
        return scheduler::shares_of(profile.layers, profile.chosen());
    });
    if (!planned.split && !planned.forecast.gpu)
        fail(printable(planned.machine_name), " has no card to place experts on");
    if (!planned.refusal().empty()) fail(planned.refusal());
    const scheduler::RoutingProfile profile = profile_for(flags, planned);
    const std::vector<CardRoom> rooms = rooms_of(planned);
    const scheduler::ExpertTiers tiers = planned.split ? planned.split->all() : planned.forecast.tiers;
    scheduler::check_pins(pins, profile.layers, tiers.resident());
    const int64_t slots = tiers.resident();
    const scheduler::Placement placement = solve(flags, planned, profile, pins, true),
                               nothing = solve(flags, planned, profile, pins, false);
    Json json = scheduler::placement_json(placement, profile.model, profile.layers);
    json["machine"] = planned.machine_name;
    json["slots"] = slots;
    json["card_only"] = tiers.core;
    if (planned.split)
        for (const CardRoom& room : rooms) json["layers_of_cards"].push_back(room.layers.count());
    else
        json["card"] = flags.planning.card;
    if (!flags.out.empty()) write_text(flags.out, dump_json(json) + "\n");
    if (flags.json) {
        std::printf("%s\n", dump_json(json).c_str());
        return;
    }
    std::printf("%s on %s: room for %lld of %lld experts%s, routing of %lld tokens\n\n%s",
                printable(profile.model).c_str(), printable(planned.machine_name).c_str(),
                static_cast<long long>(slots), static_cast<long long>(tiers.experts),
                rooms.size() > 1 ? printed(" on %zu cards", rooms.size()).c_str() : "",
                static_cast<long long>(profile.rows()), table(placement, nothing, profile, rooms).c_str());
    std::printf(
        "\nExpected time of the experts of a token, computed, not measured, if routing stays as it was recorded; an "
        "adaptive\nresidency starts from these experts and follows what is chosen.\n");
    if (tiers.core > 0)
        std::printf(
            "The likeliest %lld of them lie on the card alone and stay there: host memory has no room for them.\n",
            static_cast<long long>(tiers.core));
    std::printf("%s", scheduler::cards_text(planned.cards, planned.machine, flags.planning.card).c_str());
    if (std::ssize(placement.resident) < slots)
        std::printf("%lld slots gain nothing more and are left to any experts.\n",
                    static_cast<long long>(slots - std::ssize(placement.resident)));
}

}  // namespace

void add_place(CLI::App& root) {
    auto flags = std::make_shared<PlaceFlags>();
    CLI::App& command = *root.add_subcommand(
        "place",
        "which experts should lie on the card, or cards, from a routing profile, for any machine file and budget");
    flags->planning.declare(command);
    command.add_option("--profile", flags->profile, "file that `profile` wrote")->required();
    command.add_option("--pin", flags->pins, "LAYER:EXPERT to keep on the card whatever it gains")
        ->multi_option_policy(CLI::MultiOptionPolicy::TakeAll);
    command.add_option("-o,--output", flags->out, "write the placement here, for --placement of run and serve");
    command.add_flag("--json", flags->json, "print the placement as one JSON document");
    command.callback([flags] { place(*flags); });
}

}  // namespace thermocline::app
