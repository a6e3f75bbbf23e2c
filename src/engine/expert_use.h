// How the routed experts of a running model are used, for those who show it.
#pragma once

#include <cstdint>
#include <vector>

namespace thermocline::engine {

struct ExpertUse {
    int64_t tokens = 0;
    std::vector<std::vector<int64_t>> chosen;   // [layers][experts]: tokens that chose each
    std::vector<std::vector<int32_t>> on_card;  // of each layer, as of some passes ago
    std::vector<int64_t> layers_of_cards = {};  // how many of these layers each card has, in order; empty: no card
    int64_t core = 0;                           // of the experts on cards, in no other memory
    // Since the start, with a card: experts that tokens chose; of these on the card; experts brought there, their
    // bytes.
    int64_t choices = 0, hits = 0, moved_experts = 0, moved_bytes = 0;
    // Experts that card and CPU read for the rows of a pass, the bytes of one, those that came over the link in
    // prompts, and of these stayed on the card; layers played; seconds that the CPU computed experts, of these not
    // hidden behind the card's, and that experts kept the link busy, by its measured speed.
    int64_t card_reads = 0, cpu_reads = 0, expert_bytes = 0, streamed_experts = 0, adopted_experts = 0,
            layers_played = 0;
    double cpu_seconds = 0, exposed_seconds = 0, link_seconds = 0;
    // Bytes of experts by path: memory of cards, host memory, the links between.
    int64_t card_bytes() const { return card_reads * expert_bytes; }
    int64_t host_bytes() const { return cpu_reads * expert_bytes; }
    int64_t link_bytes() const { return moved_bytes + streamed_experts * expert_bytes; }
    // Whether the experts on the card take part in passes that decode, and in those over prompts, and by what share of
    // such a pass one without them took longer when that was last tried; 0: not tried yet.
    bool decode_on_card = true, prompts_on_card = true;
    double decode_gain = 0, prompt_gain = 0;
    // Whether experts are brought near before they are chosen, and how much longer, as a share, a pass without took
    // when that was last tried; choices that gates foretold, of these chosen; bytes brought into the caches of the CPU.
    bool prefetch_on = false;
    double prefetch_gain = 0;
    int64_t foretold = 0, foretold_right = 0, warmed_bytes = 0;
    int64_t read_ahead_bytes = 0;  // of experts in files, asked for before they were computed
};

}  // namespace thermocline::engine
