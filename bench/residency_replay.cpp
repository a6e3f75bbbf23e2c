// How often a recorded trace of routing (score, profile or serve --record-routing) finds its experts on a card: every
// policy at every resident fraction, or one rule with other numbers. The first half of the trace warms up. Beside them
// two optima of foresight: of rules that bring what was just chosen, however much (the link of no machine), and of
// these with as many changes as the adaptive rule made (hits_bound.h).
#include "scheduler/residency_replay.h"

#include "scheduler/hits_bound.h"
#include "src/base/error.h"

#include <CLI/CLI.hpp>
#include <cmath>
#include <cstdio>
#include <numeric>
#include <string>
#include <vector>

using namespace thermocline;
using namespace thermocline::scheduler;

namespace {

struct Flags {
    std::string trace, phase = "decode";
    std::vector<double> fractions = {0.03, 0.06, 0.12, 0.25, 0.375, 0.5, 0.75};
    ResidencyRules rules;
    int64_t most_changes = 1 << 20;
};

void replay_all(const Flags& flags) {
    RoutingTrace trace = read_routing_trace(flags.trace);
    if (flags.phase != "all")
        std::erase_if(trace.passes, [&](const RoutedPass& pass) { return pass.decode != (flags.phase == "decode"); });
    const size_t half = trace.passes.size() / 2;
    if (half == 0) fail(printable(flags.trace), ": has no two passes of phase ", flags.phase);
    const std::vector<int64_t> sizes = expert_counts(trace.layers);
    const auto experts = static_cast<double>(std::accumulate(sizes.begin(), sizes.end(), int64_t{0}));
    std::printf("%s: %s, %zu passes, %lld rows; hit rates of the second half, changes a pass\n",
                printable(trace.model).c_str(), shape_text(trace.layers).c_str(), trace.passes.size(),
                static_cast<long long>(trace.rows()));
    std::printf("%8s %7s  %14s %14s %7s %8s %8s  %s\n", "fraction", "slots", "adaptive", "lru", "static", "optimum",
                "at equal", "adaptive / better of lru, static; / optimum; / that with as many changes");
    for (const double fraction : flags.fractions) {
        const auto slots = static_cast<int64_t>(std::lround(fraction * experts));
        const std::vector<ExpertName> start = spread_experts(sizes, slots);
        const auto play = [&](ResidencyRules::Policy policy, const std::vector<ExpertName>& resident) {
            ResidencyRules rules = flags.rules;
            rules.policy = policy;
            return replay(trace, resident, rules, half, flags.most_changes);
        };
        using Policy = ResidencyRules::Policy;
        const Replayed adaptive = play(Policy::kAdaptive, start), lru = play(Policy::kLru, start);
        const double fixed = play(Policy::kStatic, most_chosen(trace, half, slots)).hit_rate();
        const double optimum = replay_optimum(trace, start, half).hit_rate();
        const auto passes = static_cast<double>(trace.passes.size() - half);
        const double equal = most_hits(trace, slots, half, adaptive.changes) /
                             static_cast<double>(std::max<int64_t>(adaptive.choices, 1));
        std::printf("%8.3f %7lld  %7.4f %6.2f %7.4f %6.2f %7.4f %8.4f %8.4f  %.3f; %.3f; %.3f\n", fraction,
                    static_cast<long long>(slots), adaptive.hit_rate(), static_cast<double>(adaptive.changes) / passes,
                    lru.hit_rate(), static_cast<double>(lru.changes) / passes, fixed, optimum, equal,
                    adaptive.hit_rate() / std::max({lru.hit_rate(), fixed, 1e-9}),
                    adaptive.hit_rate() / std::max(optimum, 1e-9), adaptive.hit_rate() / std::max(equal, 1e-9));
        std::fflush(stdout);
    }
}

}  // namespace

int main(int argc, char** argv) {
    CLI::App app("plays a recorded trace of routing against the policies of --residency");
    Flags flags;
    app.add_option("TRACE", flags.trace, "file of score, profile or serve --record-routing")->required();
    app.add_option("--fractions", flags.fractions, "resident shares of all experts")->capture_default_str();
    app.add_option("--phase", flags.phase, "decode, prefill or all")
        ->check(CLI::IsMember({"decode", "prefill", "all"}))
        ->capture_default_str();
    app.add_option("--half-life", flags.rules.half_life, "of scores, in tokens")->capture_default_str();
    app.add_option("--margin", flags.rules.margin, "by so much a newcomer's score must be larger")
        ->capture_default_str();
    app.add_option("--least-per-set", flags.rules.least_per_set, "slots that every layer keeps")->capture_default_str();
    app.add_option("--most-changes", flags.most_changes, "experts that may come after a pass")->capture_default_str();
    CLI11_PARSE(app, argc, argv);
    try {
        replay_all(flags);
    } catch (const Error& error) {
        std::fprintf(stderr, "error: %s\n", error.what());
        return 1;
    }
    return 0;
}
