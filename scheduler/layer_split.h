// Which layers of a model lie on which of several cards, that play them in turn (hybrid-engine.md 6, pipeline split):
// one token is no faster computed for that, but more experts lie on a card, and cards may be of any sizes. Solved for
// the least expected time of a token. Pure; plan, place and the loader ask here.
#pragma once

#include "scheduler/cost_model.h"
#include "scheduler/gpu_memory.h"
#include "scheduler/placement.h"
#include "src/ops/layers.h"
#include "src/ops/plan.h"

#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

namespace thermocline::scheduler {

/// Layers [first, last) of ops::layer_starts().
struct LayerRange {
    size_t first = 0, last = 0;
    size_t count() const { return last - first; }
    bool operator==(const LayerRange&) const = default;
};

/// Ranges of the cards in their order, one at least for each, with the least sum of seconds(card, range), where
/// infinity stands for what does not fit; of equal sums the most even one. Empty: nothing fits.
std::vector<LayerRange> split_layers(size_t layers, size_t cards,
                                     const std::function<double(size_t card, LayerRange range)>& seconds);

struct SplitCard {
    int64_t budget_bytes = 0;
    GpuMemoryReserve reserve = {};
    Rates rates = {};
};

struct SplitQuestion {
    const ops::Plan& plan;
    std::vector<SplitCard> cards;
    GpuMemoryWishes wishes;  // of every card, but for the budget; least_expert_slots > 0: all experts lie on cards
    /// The share of tokens that each expert is expected in, [layers][experts]; empty: by planning curves.
    std::vector<std::vector<double>> shares = {};
};

/// The embedding is host memory's, the head the last card's. What is minimised: dense weights and KV at the rate of
/// the card, and the experts with the best resident set of each card (placement.h), or by its planned hit rate. Empty:
/// no split fits. Throws Error if there are more cards than layers.
std::vector<LayerRange> split_over_cards(const SplitQuestion& question);

/// The rates that cards count with where no machine file says any: all alike, those of hybrid-engine.md 1.6, W1.
Rates assumed_rates();

/// What one card plays, and where its memory goes.
struct CardPart {
    LayerRange layers;
    ops::PlanPart part;
    GpuMemoryPlan memory;
};
/// Prompt chunks are as long as the card with the least room needs. Where `ranges` is empty the even split, so that
/// the cards say themselves what does not fit.
std::vector<CardPart> parts_of(const SplitQuestion& question, std::span<const LayerRange> ranges);

/// The layers that cards can share: ops::layer_starts(). Throws Error with the reason if the plan cannot be cut behind
/// every layer with routed experts.
size_t layers_to_split(const ops::Plan& plan);

/// Of numbers of layers, in order. Throws Error unless they are one for each card, none 0, and as many as there are.
std::vector<LayerRange> ranges_of(std::span<const int64_t> counts, size_t layers, size_t cards);

/// Those of [first, first + layers) as names of that part alone; and back.
std::vector<ExpertName> experts_within(std::span<const ExpertName> names, LayerRange layers);
ExpertName in_whole(ExpertName name, LayerRange layers);

}  // namespace thermocline::scheduler
