// What whoever runs a server may change while it serves: the recording of routing to a file, which experts stay on the
// card, and which ones lie there from now on, by a profile or a placement. Files are named, and lie in one folder. Any
// thread; what concerns the card is done by the engine thread before its next pass. All throw Error saying what is
// wrong; nothing has changed then.
#pragma once

#include "scheduler/executor.h"
#include "scheduler/routing_watch.h"

#include <filesystem>
#include <mutex>
#include <optional>
#include <set>
#include <string>
#include <vector>

namespace thermocline::engine {

class ExpertAdmin {
public:
    /// `slots`: Executor::slot_ranges(); `core`: Executor::core(). Throws Error if there is no such folder.
    ExpertAdmin(std::filesystem::path folder, std::string model, scheduler::RoutingWatch& routing,
                std::vector<scheduler::SlotRange> slots, std::vector<scheduler::ExpertName> core = {});
    /// With one card.
    ExpertAdmin(std::filesystem::path folder, std::string model, scheduler::RoutingWatch& routing, int64_t slots,
                std::vector<scheduler::ExpertName> core = {});

    /// From the next pass on, to a new file. Only one at a time.
    void record(const std::string& name);
    /// Returns how many tokens the file holds; 0 if nothing was recorded.
    int64_t stop_recording();

    /// Layer and expert of each, each once; what is pinned already may be asked for again. Returns all that are pinned
    /// now.
    using Names = std::vector<scheduler::ExpertName>;
    Names pin(const Names& pinned, const Names& released);

    /// Brings the likeliest experts of a profile, or those of a placement, and expects what these say from now on.
    /// Returns how many experts shall lie on the card.
    int64_t use_profile(const std::string& name);
    int64_t use_placement(const std::string& name);

    /// What has been asked for since the last time; of the engine thread.
    std::optional<scheduler::ExpertOrders> take();

private:
    std::filesystem::path file(const std::string& name) const;
    void check_card() const;
    int64_t expect(scheduler::ExpertOrders orders);
    /// Of a card, those that are not there anyway.
    Names others(const Names& names, const scheduler::SlotRange& card) const;
    int64_t core_of(const scheduler::SlotRange& card) const;

    const std::filesystem::path folder_;
    const std::string model_;
    scheduler::RoutingWatch& routing_;
    const std::vector<scheduler::SlotRange> slots_;
    const std::set<scheduler::ExpertName> core_;
    std::mutex mutex_;  // guards what follows
    std::set<scheduler::ExpertName> pins_, told_;
    std::optional<scheduler::ExpertOrders> orders_;
};

}  // namespace thermocline::engine
