#include "src/engine/expert_admin.h"

#include "scheduler/placement_file.h"
#include "scheduler/routing_profile.h"
#include "src/base/error.h"
#include "src/base/log.h"

#include <algorithm>
#include <utility>

namespace thermocline::engine {

ExpertAdmin::ExpertAdmin(std::filesystem::path folder, std::string model, scheduler::RoutingWatch& routing,
                         int64_t slots, std::vector<scheduler::ExpertName> core)
    : folder_(std::move(folder)),
      model_(std::move(model)),
      routing_(routing),
      slots_(slots),
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
    if (slots_ == 0) fail("no experts can be exchanged: there is no card, or none or all of them lie on it");
}

ExpertAdmin::Names ExpertAdmin::pin(const Names& pinned, const Names& released) {
    check_card();
    const std::lock_guard lock(mutex_);
    std::set<scheduler::ExpertName> pins = pins_;
    for (const scheduler::ExpertName& name : released)
        if (pins.erase(name) == 0) fail("expert ", name.set, ":", name.expert, " is not pinned");
    pins.insert(pinned.begin(), pinned.end());
    const Names names(pins.begin(), pins.end());
    scheduler::check_pins(names, routing_.layers(), slots_ + std::ssize(core_));
    pins_ = std::move(pins);
    if (!orders_) orders_.emplace();
    return names;
}

ExpertAdmin::Names ExpertAdmin::others(Names names) const {
    std::erase_if(names, [&](const scheduler::ExpertName& name) { return core_.contains(name); });
    return names;
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
    auto wanted = others(scheduler::likeliest_experts(shares, slots_ + std::ssize(core_)));
    wanted.resize(std::min(wanted.size(), static_cast<size_t>(slots_)));
    return expect({.shares = std::move(shares), .wanted = std::move(wanted)});
}

int64_t ExpertAdmin::use_placement(const std::string& name) {
    check_card();
    scheduler::PlacedExperts placed = scheduler::read_placement(file(name).string(), model_, routing_.layers());
    placed.resident = others(scheduler::likeliest_first(std::move(placed.resident), placed.shares));
    if (!core_.empty() && std::ssize(placed.resident) <= slots_ + std::ssize(core_))  // made for another core
        placed.resident.resize(std::min(placed.resident.size(), static_cast<size_t>(slots_)));
    if (std::ssize(placed.resident) > slots_)
        fail(printable(name), " places ", placed.resident.size(), " experts, but the card has room for ", slots_);
    return expect({.shares = std::move(placed.shares), .wanted = std::move(placed.resident)});
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
