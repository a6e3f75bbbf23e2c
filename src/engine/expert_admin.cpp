#include "src/engine/expert_admin.h"

#include "scheduler/placement_file.h"
#include "scheduler/routing_profile.h"
#include "src/base/error.h"
#include "src/base/log.h"

#include <algorithm>
#include <iterator>
#include <limits>
#include <utility>

namespace thermocline::engine {

namespace {

/// Those of its layers.
ExpertAdmin::Names on(const scheduler::SlotRange& card, const ExpertAdmin::Names& names) {
    ExpertAdmin::Names own;
    for (const scheduler::ExpertName& name : names)
        if (name.set >= card.first && name.set < card.last) own.push_back(name);
    return own;
}

}  // namespace

ExpertAdmin::ExpertAdmin(std::filesystem::path folder, std::string model, scheduler::RoutingWatch& routing,
                         int64_t slots, std::vector<scheduler::ExpertName> core)
    : ExpertAdmin(std::move(folder), std::move(model), routing,
                  {{0, static_cast<ops::ExpertsId>(routing.layers().size()), slots}}, std::move(core)) {}

ExpertAdmin::ExpertAdmin(std::filesystem::path folder, std::string model, scheduler::RoutingWatch& routing,
                         std::vector<scheduler::SlotRange> slots, std::vector<scheduler::ExpertName> core)
    : folder_(std::move(folder)),
      model_(std::move(model)),
      routing_(routing),
      slots_(std::move(slots)),
      core_(core.begin(), core.end()) {
    if (!std::filesystem::is_directory(folder_)) fail("--admin ", printable(folder_.string()), " is no folder");
}

std::filesystem::path ExpertAdmin::file(const std::string& name) const {
    if (name.empty() || name.size() > 200 || name.front() == '.' || name.find_first_of("/\\") != std::string::npos ||
        name.find('\0') != std::string::npos)
        fail("the file is ", printable(name, 80), ", expected a plain name within the folder of --admin");
    return folder_ / name;
}

void ExpertAdmin::record(const std::string& name) {
    const std::filesystem::path path = file(name);
    if (std::filesystem::exists(path)) fail(printable(name), " exists already, expected a new name");
    routing_.write_to(path.string());
    log::info("admin: recording routing to {}", path.string());
}

int64_t ExpertAdmin::stop_recording() {
    const int64_t tokens = routing_.stop_writing();
    log::info("admin: recording ended, {} tokens", tokens);
    return tokens;
}

void ExpertAdmin::check_card() const {
    if (std::ranges::all_of(slots_, [](const scheduler::SlotRange& card) { return card.slots == 0; }))
        fail(
            "no experts can be exchanged: there is no card, none or all of them lie on it, or --deterministic keeps "
            "them where they are");
}

ExpertAdmin::Names ExpertAdmin::pin(const Names& pinned, const Names& released) {
    check_card();
    const std::lock_guard lock(mutex_);
    scheduler::check_pins(pinned, routing_.layers(), std::ssize(pinned));
    std::set<scheduler::ExpertName> pins = pins_;
    for (const scheduler::ExpertName& name : released) {
        if (std::ranges::count(pinned, name) > 0)
            fail("expert ", name.set, ":", name.expert, " is to be pinned and released: say one of them");
        if (pins.erase(name) == 0)
            fail("expert ", name.set, ":", name.expert, " is not pinned, or named twice among those to release");
    }
    pins.insert(pinned.begin(), pinned.end());
    const Names names(pins.begin(), pins.end());
    for (const scheduler::SlotRange& card : slots_)
        scheduler::check_pins(on(card, names), routing_.layers(), card.slots + core_of(card));
    pins_ = std::move(pins);
    if (!orders_) orders_.emplace();
    return names;
}

ExpertAdmin::Names ExpertAdmin::others(const Names& names, const scheduler::SlotRange& card) const {
    Names own = on(card, names);
    std::erase_if(own, [&](const scheduler::ExpertName& name) { return core_.contains(name); });
    return own;
}

int64_t ExpertAdmin::core_of(const scheduler::SlotRange& card) const {
    return std::ssize(on(card, {core_.begin(), core_.end()}));
}

int64_t ExpertAdmin::expect(scheduler::ExpertOrders orders) {
    const auto count = std::ssize(orders.wanted);
    const std::lock_guard lock(mutex_);
    orders_ = std::move(orders);
    return count;
}

int64_t ExpertAdmin::use_profile(const std::string& name) {
    check_card();
    const scheduler::RoutingProfile profile = scheduler::read_routing_profile(file(name).string());
    scheduler::check_model(name, profile.model, profile.layers, model_, routing_.layers());
    auto shares = scheduler::shares_of(profile.layers, profile.chosen());
    const Names likeliest = scheduler::likeliest_experts(shares, std::numeric_limits<int64_t>::max());
    Names wanted;
    for (const scheduler::SlotRange& card : slots_) {
        const Names own = others(likeliest, card);
        wanted.insert(wanted.end(), own.begin(), own.begin() + std::min<std::ptrdiff_t>(std::ssize(own), card.slots));
    }
    return expect({.shares = std::move(shares), .wanted = std::move(wanted)});
}

int64_t ExpertAdmin::use_placement(const std::string& name) {
    check_card();
    scheduler::PlacedExperts placed = scheduler::read_placement(file(name).string(), model_, routing_.layers());
    const Names all = scheduler::likeliest_first(std::move(placed.resident), placed.shares);
    Names wanted;
    for (const scheduler::SlotRange& card : slots_) {
        if (card.slots == 0) continue;  // nothing can be exchanged there
        Names own = others(all, card);
        const int64_t core = core_of(card);
        if (core > 0 && std::ssize(own) <= card.slots + core)  // made for another core
            own.resize(std::min(own.size(), static_cast<size_t>(card.slots)));
        if (std::ssize(own) > card.slots)
            fail(printable(name), " places ", own.size(), " experts, but the card has room for ", card.slots);
        wanted.insert(wanted.end(), own.begin(), own.end());
    }
    return expect({.shares = std::move(placed.shares), .wanted = std::move(wanted)});
}

std::optional<scheduler::ExpertOrders> ExpertAdmin::take() {
    const std::lock_guard lock(mutex_);
    std::optional<scheduler::ExpertOrders> orders = std::exchange(orders_, std::nullopt);
    if (!orders) return orders;
    std::set_difference(pins_.begin(), pins_.end(), told_.begin(), told_.end(), std::back_inserter(orders->pinned));
    std::set_difference(told_.begin(), told_.end(), pins_.begin(), pins_.end(), std::back_inserter(orders->released));
    told_ = pins_;
    return orders;
}

}  // namespace thermocline::engine
