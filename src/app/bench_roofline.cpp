#include "src/app/bench_roofline.h"

#include "scheduler/printed.h"

namespace thermocline::app {

namespace {

using scheduler::printed;

std::string term(const char* name, double floor, double measured) {
    return printed("| %s | %.3f | %.3f | %.3f |\n", name, 1e3 * floor, 1e3 * measured, 1e3 * (measured - floor));
}

}  // namespace

scheduler::DecodeTime roofline(const scheduler::TokenWork& work, const Bandwidths& measured, bool balanced,
                               double hit_rate) {
    scheduler::Rates rates;
    rates.gpu_dense = rates.gpu_expert = measured.card * 1e9;
    rates.dram = measured.host * 1e9;
    rates.balanced = balanced;
    return scheduler::decode_time(work, rates, hit_rate);
}

std::string roofline_table(const CardToken& token, const scheduler::DecodeTime& floor, const Bandwidths& measured) {
    const double exposed = floor.experts - floor.gpu_experts;
    return printed(
               "%.1f %% of the chosen experts on the card, which read %.1f %% of them; card %.1f GB/s, host %.1f "
               "GB/s\n",
               1e2 * token.hit_rate, 1e2 * token.card_share, measured.card, measured.host) +
           "\n| of a token | roofline ms | measured ms | gap ms |\n|---|---:|---:|---:|\n" +
           term("card: dense weights, caches, its experts, launches and hand-offs", floor.dense + floor.gpu_experts,
                token.seconds - token.exposed_seconds) +
           term("CPU: experts that the card does not hide", exposed, token.exposed_seconds) +
           term("all", floor.seconds, token.seconds) +
           term("(CPU: experts, hidden or not)", floor.cpu_experts, token.cpu_seconds);
}

}  // namespace thermocline::app
