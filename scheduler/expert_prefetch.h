// Prefetch that cannot hurt (hybrid-engine.md 4.7): what a layer's router will choose is known before its attention,
// exactly where it goes by token and mostly where its gate reads what attention reads; experts so foretold that the
// card has not are brought into the caches of the CPU while it waits for its job, or asked for ahead where they lie in
// a file (expert_reader.h). In passes that decode only; nothing that is computed depends on it. Now and then such
// passes are played in turn with and without it, and it is left out while it gains nothing. Used by the engine thread.
#pragma once

#include "scheduler/residency.h"
#include "scheduler/residency_trial.h"
#include "scheduler/topology.h"
#include "src/ops/plan.h"

#include <chrono>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace thermocline::scheduler {

inline constexpr int64_t kPrefetchRows = 32;  // of a pass; more choose most experts anyway

struct PrefetchRules {
    int64_t worker_bytes = 0;  ///< of its caches that every worker may fill; 0: none
    bool reads_file = false;   ///< some experts lie in mapped files and in no memory: those chosen are asked for
    bool foretells = true;     ///< those foretold are brought near, or asked for, as long as that gains
    int32_t wrong_by = 0;      ///< for tests: added to what is foretold
    bool any() const { return foretells && (worker_bytes > 0 || reads_file); }
    /// It costs little, so it is tried soon; and it stays only if it gains.
    TrialRules trial = {.first = 16, .pairs = 12, .clearly = 0.01, .least_gain = 0.02};
};

/// Half of what a core has of L2 and L3.
int64_t half_of_caches(const Machine& machine);

class ExpertPrefetch {
public:
    /// `plan` must outlive it.
    ExpertPrefetch(const ops::Plan& plan, const PrefetchRules& rules);

    /// What the plan says of the layer of one Experts step, in order.
    struct Layer {
        const ops::Experts* step;
        const ops::NamedTable* table = nullptr;         // its router goes by token
        const ops::Foretelling* foretelling = nullptr;  // neither: nothing is known
    };
    const std::vector<Layer>& layers() const { return layers_; }
    /// Of the caches of each worker.
    int64_t worker_bytes() const { return rules_.worker_bytes; }

    /// Of a pass that decodes so many rows; `undisturbed`: no other trial goes on. Returns whether it takes part.
    bool begin_pass(std::span<const int32_t> tokens, bool undisturbed);
    /// After it.
    void end_pass(std::chrono::duration<double> took);
    /// Whether it takes part in the pass at hand.
    bool used() const { return used_; }

    /// Whether it is known what a layer will choose. `early`: what its gate foretold, [rows * top_k], -1 where nothing
    /// has come yet; a card may write there meanwhile. Null: only what goes by token.
    bool known(size_t layer, const int32_t* early);
    /// The experts that it will choose if known(), each once, likely ones first.
    std::span<const int32_t> expected(size_t layer);
    void warmed(int64_t bytes) { counters_.warmed_bytes += bytes; }
    /// What the rows of the pass have chosen in a layer.
    void note(size_t layer, std::span<const int32_t> chosen);

    const Prefetched& counters() const { return counters_; }

private:
    const PrefetchRules rules_;
    const ops::Plan& plan_;
    std::vector<Layer> layers_;
    std::vector<std::vector<int32_t>> heard_;  // of each layer, [rows * top_k] foretold in this pass; empty: nothing
    std::vector<int32_t> experts_;
    std::vector<char> is_in_;  // [experts of a layer]
    std::span<const int32_t> tokens_;
    ResidencyTrial trial_;
    bool used_ = false, tried_ = false;
    Prefetched counters_;
};

}  // namespace thermocline::scheduler
