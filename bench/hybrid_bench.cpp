// What placement, streaming and `auto` come to with the emulated card: predicted and measured time of a token at
// several resident shares, prompts of several lengths in every mode of --offload-experts, and how busy streaming keeps
// the link. Either its kernels are computed, which is slow, and its link is as fast as it is told to be; or, with
// --machine, card, CPU and link are as fast as a machine file says and compute nothing (paced_machine.h). Nothing here
// needs a GPU.
#include "bench/paced_machine.h"
#include "cuda/emulation/device.h"
#include "memory/packed_weights.h"
#include "scheduler/cost_model.h"
#include "scheduler/cpu_executor.h"
#include "scheduler/gpu_executor.h"
#include "scheduler/gpus.h"
#include "scheduler/residency_replay.h"
#include "src/base/error.h"
#include "src/base/log.h"
#include "src/model/registry.h"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <map>
#include <memory>
#include <optional>
#include <random>
#include <string>
#include <vector>

using namespace thermocline;
using namespace thermocline::scheduler;

namespace {

struct Flags {
    std::string model = "models/demo", isa = "auto", log = "error";
    double gb_per_s = 0, latency_us = 0, resident = 0.25;
    std::vector<int64_t> lengths = {1, 8, 64, 256, 1024};
    std::vector<double> shares = {0, 0.25, 0.5, 1};
    int64_t chunk = 512, repeats = 3, tokens = 24;
    std::string residency = "static";
    PacedFlags paced;
};

struct Loaded {
    explicit Loaded(const Flags& flags) : model(model::load_model(flags.model, {})) {
        packed.emplace(std::vector<ops::Plan*>{&model->trunk}, nullptr, std::vector<memory::Slice>{{{}, {0}}});
    }
    std::unique_ptr<model::Model> model;
    std::optional<memory::PackedWeights> packed;
    cpu::Workers workers{std::span<const int>()};
};

cuda::emulation::Config card(const Flags& flags) {
    return {.link = {.gb_per_s = flags.gb_per_s, .latency_us = flags.latency_us}};
}

std::vector<int32_t> some_tokens(int64_t count, int64_t vocab) {
    std::mt19937 random(3);
    std::vector<int32_t> tokens(static_cast<size_t>(count));
    for (int32_t& token : tokens) token = static_cast<int32_t>(random() % static_cast<uint32_t>(vocab));
    return tokens;
}

/// Seconds of every pass over the tokens, in chunks.
std::vector<double> feed(Executor& executor, memory::SequenceCache& sequence, std::span<const int32_t> tokens,
                         size_t chunk) {
    std::vector<double> seconds;
    if (!sequence.reserve(sequence.position() + std::ssize(tokens))) fail("no room for the caches");
    for (size_t first = 0; first < tokens.size(); first += chunk) {
        const Part part{&sequence, tokens.subspan(first, std::min(chunk, tokens.size() - first)), 1};
        const auto began = std::chrono::steady_clock::now();
        executor.forward({&part, 1});
        seconds.push_back(std::chrono::duration<double>(std::chrono::steady_clock::now() - began).count());
    }
    return seconds;
}

double median(std::vector<double> values) {
    std::nth_element(values.begin(), values.begin() + std::ssize(values) / 2, values.end());
    return values[values.size() / 2];
}

/// A model, and what plays it: the demo model computed, or a paced machine.
class Subject {
public:
    explicit Subject(const Flags& flags) : flags_(flags) {
        if (flags.paced.machine.empty()) {
            loaded_.emplace(flags);
            return;
        }
        paced_.emplace(flags.paced);
        std::printf("%s\n", paced_->text().c_str());
    }
    const ops::Plan& plan() const { return paced_ ? paced_->plan() : loaded_->model->trunk; }
    std::unique_ptr<cuda::Device> open() const { return paced_ ? paced_->open() : cuda::emulation::open(card(flags_)); }
    const cpu::KernelTable& kernels() const {
        return paced_ ? paced_->kernels() : cpu::select_kernels(flags_.isa.c_str());
    }
    std::span<std::byte> memory() { return paced_ ? paced_->memory() : loaded_->packed->memory(); }
    /// That what was streamed keeps the link busy.
    double link_seconds(const ResidencyCounters& counters) const {
        return paced_ ? static_cast<double>(counters.streamed) * paced_->link_seconds() : counters.link_seconds;
    }
    cpu::Workers workers{std::span<const int>()};

private:
    const Flags& flags_;
    std::optional<Loaded> loaded_;
    std::optional<PacedMachine> paced_;
};

/// With the device and the Gpus that it needs.
struct OnCard {
    OnCard(Subject& subject, const Flags& flags, const std::string& offload, ExecutorLimits limits)
        : gpus({.memory_bytes = budget_for(subject.plan(), limits, flags.resident),
                .offload_experts = offload,
                .residency = flags.residency},
               subject.open()) {
        gpus.reserve(subject.plan(), "bench", limits, 1, false);
        executor = gpus.new_executor(subject.plan(), subject.workers, subject.kernels(), limits, subject.memory());
    }
    static int64_t budget_for(const ops::Plan& plan, const ExecutorLimits& limits, double share) {
        const auto slots = static_cast<int64_t>(std::lround(share * static_cast<double>(expert_count(plan))));
        const GpuMemoryPlan all = plan_gpu_memory(plan, nullptr,
                                                  {.budget_bytes = int64_t{1} << 40,
                                                   .context = limits.max_tokens,
                                                   .prefill_chunk = limits.max_rows,
                                                   .least_prefill_chunk = limits.max_rows,
                                                   .outputs = limits.max_outputs,
                                                   .most_expert_slots = slots},
                                                  {.runtime_bytes = 0, .library_bytes = 0, .safety_per_mille = 0});
        const int64_t bytes = all.executor_bytes();
        return bytes + bytes * 16 / 984;  // safety
    }
    Gpus gpus;
    std::unique_ptr<Executor> executor;
};

/// Prompts in every mode; what `auto` loses against the better of the others.
void compare_modes(const Flags& flags) {
    Subject subject(flags);
    const int64_t longest = *std::max_element(flags.lengths.begin(), flags.lengths.end());
    const ExecutorLimits limits{
        .max_rows = std::min(flags.chunk, longest), .max_outputs = 1, .max_tokens = longest + 1, .max_parts = 1};
    const std::vector<std::string> modes = {"cpu", "stream", "auto"};
    std::vector<std::unique_ptr<OnCard>> cards;
    for (const std::string& mode : modes) cards.push_back(std::make_unique<OnCard>(subject, flags, mode, limits));
    std::printf("%s\n", dynamic_cast<GpuExecutor&>(*cards.back()->executor).speed().text().c_str());
    std::printf("%8s %10s %10s %10s  %s\n", "tokens", "cpu ms", "stream ms", "auto ms",
                "auto / best; auto / cpu (no experts on the card)");
    const std::vector<int32_t> tokens = some_tokens(longest, subject.plan().vocab);
    for (const int64_t length : flags.lengths) {
        std::vector<std::vector<double>> seconds(modes.size());
        for (int64_t round = 0; round <= flags.repeats; ++round)  // the first warms up
            for (size_t i = 0; i < modes.size(); ++i) {
                const auto sequence = cards[i]->executor->new_sequence();
                double sum = 0;
                for (const double one :
                     feed(*cards[i]->executor, *sequence, std::span(tokens).first(static_cast<size_t>(length)),
                          static_cast<size_t>(limits.max_rows)))
                    sum += one;
                if (round > 0) seconds[i].push_back(sum);
            }
        std::vector<double> ms;
        for (const std::vector<double>& one : seconds) ms.push_back(1e3 * median(one));
        std::printf("%8lld %10.2f %10.2f %10.2f  %.3f; %.3f\n", static_cast<long long>(length), ms[0], ms[1], ms[2],
                    ms[2] / std::min(ms[0], ms[1]), ms[2] / ms[0]);
        std::fflush(stdout);
    }
}

/// The share of the time of passes whose experts are streamed in which the link is busy.
void measure_overlap(const Flags& flags) {
    Subject subject(flags);
    const int64_t longest = flags.lengths.back();
    const ExecutorLimits limits{
        .max_rows = std::min(flags.chunk, longest), .max_outputs = 1, .max_tokens = longest + 1, .max_parts = 1};
    const OnCard card(subject, flags, "stream", limits);
    const std::vector<int32_t> tokens = some_tokens(longest, subject.plan().vocab);
    std::printf("%s\n", dynamic_cast<GpuExecutor&>(*card.executor).speed().text().c_str());
    ResidencyCounters before;
    for (int64_t round = 0; round <= flags.repeats; ++round) {
        const auto sequence = card.executor->new_sequence();
        double sum = 0;
        for (const double one : feed(*card.executor, *sequence, tokens, static_cast<size_t>(limits.max_rows)))
            sum += one;
        const ResidencyCounters now = card.executor->residency();
        const double busy = subject.link_seconds(now) - subject.link_seconds(before),
                     phase = now.phase_seconds - before.phase_seconds;
        std::printf(
            "%lld tokens: %lld experts streamed, %lld of them ahead, %lld in vain; link busy %.1f ms of %.1f ms from "
            "the first to the last: %.1f %%; passes %.1f ms\n",
            static_cast<long long>(longest), static_cast<long long>(now.streamed - before.streamed),
            static_cast<long long>(now.ahead - before.ahead), static_cast<long long>(now.in_vain - before.in_vain),
            1e3 * busy, 1e3 * phase, 100.0 * busy / phase, 1e3 * sum);
        std::fflush(stdout);
        before = now;
    }
}

/// Time of a token by the cost model, with what is measured at the start and the hit rate of a replayed trace, and as
/// it is.
class Prediction {
public:
    Prediction(Loaded& loaded, const Flags& flags)
        : loaded_(loaded),
          flags_(flags),
          plan_(loaded.model->trunk),
          tokens_(some_tokens(16 + flags.tokens, plan_.vocab)) {}

    void compare() {
        record_trace();
        for (const bool balances : {false, true}) {
            const ExpertSpeed speed = play(0.25, balances).speed;
            if (!balances) std::printf("%s\n", speed.text().c_str());
            TokenWork work = token_work(plan_, std::ssize(tokens_) - 1);
            Rates rates;
            rates.gpu_expert = work.expert_bytes / speed.card_expert;
            rates.gpu_dense = work.shared_bytes / work.layers / speed.card_rest;
            rates.dram = work.expert_bytes / speed.cpu_expert;
            rates.handoff = speed.cpu_rest;
            rates.balanced = balances;
            const double experts_of_none = decode_time(work, rates, 0).experts;
            const double dense = play(0, balances).seconds - experts_of_none;
            std::printf("%s; dense %.2f ms a token, experts %.2f ms with none resident\n",
                        balances ? "balanced (R2)" : "not balanced", 1e3 * dense, 1e3 * experts_of_none);
            std::printf("%9s %9s %9s %12s %12s %7s   %s\n", "resident", "hits", "replayed", "predicted ms",
                        "measured ms", "ratio", "experts alone");
            for (const double share : flags_.shares) {
                const Played played = play(share, balances);
                const double replayed = replay(trace_, resident(share), kStatic).hit_rate();
                const double experts = decode_time(work, rates, replayed).experts;
                std::printf("%9.2f %9.3f %9.3f %12.2f %12.2f %7.3f   %.2f and %.2f ms\n", share, played.hit_rate,
                            replayed, 1e3 * (dense + experts), 1e3 * played.seconds, (dense + experts) / played.seconds,
                            1e3 * experts, 1e3 * (played.seconds - dense));
                std::fflush(stdout);
            }
        }
    }

private:
    static constexpr ResidencyRules kStatic{.policy = ResidencyRules::Policy::kStatic};
    struct Played {
        double seconds, hit_rate;
        ExpertSpeed speed;
    };
    ExecutorLimits limits() const {
        return {.max_rows = 32, .max_outputs = 1, .max_tokens = std::ssize(tokens_) + 1, .max_parts = 1};
    }
    std::vector<ExpertName> resident(double share) const {
        return spread_experts(expert_counts(plan_),
                              static_cast<int64_t>(std::lround(share * static_cast<double>(expert_count(plan_)))));
    }

    void record_trace() {
        CpuExecutor cpu(plan_, loaded_.workers, cpu::select_kernels(flags_.isa.c_str()), limits());
        RoutingRecord record;
        cpu.record_routing(&record);
        trace_ = {"bench", routed_layers(plan_), {}};
        const auto sequence = cpu.new_sequence();
        feed(cpu, *sequence, std::span(tokens_).first(16), 16);
        for (size_t i = 16; i < tokens_.size(); ++i) {
            feed(cpu, *sequence, std::span(tokens_).subspan(i, 1), 1);
            trace_.passes.push_back(part_of(record, trace_.layers, 0, 1, true, ""));
        }
    }

    Played play(double share, bool balances) {
        const auto device = cuda::emulation::open(card(flags_));
        ResidencyRules rules = kStatic;
        rules.balances = balances;
        rules.ring = 2;
        rules.streaming = ResidencyRules::Streaming::kShared;  // so that experts are measured in any case
        GpuExecutor executor(plan_, *device, loaded_.workers, cpu::select_kernels(flags_.isa.c_str()), limits(), 1,
                             resident(share), rules);
        executor.set_patience(std::chrono::minutes(2), std::chrono::minutes(2));
        const auto sequence = executor.new_sequence();
        feed(executor, *sequence, std::span(tokens_).first(16), 16);
        const ResidencyCounters before = executor.residency();
        std::vector<double> seconds = feed(executor, *sequence, std::span(tokens_).subspan(16), 1);
        seconds.erase(seconds.begin());  // records the graph
        const ResidencyCounters after = executor.residency();
        return {median(seconds),
                static_cast<double>(after.hits - before.hits) / static_cast<double>(after.choices - before.choices),
                executor.speed()};
    }

    Loaded& loaded_;
    const Flags& flags_;
    const ops::Plan& plan_;
    std::vector<int32_t> tokens_;
    RoutingTrace trace_;
};

}  // namespace

int main(int argc, char** argv) {
    CLI::App app("placement, streaming and auto on the emulated card");
    Flags flags;
    app.add_option("--model", flags.model)->capture_default_str();
    app.add_option("--isa", flags.isa, "of the CPU's kernels")->capture_default_str();
    app.add_option("--link", flags.gb_per_s, "GB/s of the card's link; 0: no time of its own")->capture_default_str();
    app.add_option("--latency", flags.latency_us, "of every copy, us")->capture_default_str();
    app.add_option("--resident", flags.resident, "share of the experts that have slots: modes, overlap")
        ->capture_default_str();
    app.add_option("--lengths", flags.lengths, "of prompts; overlap takes the last")->capture_default_str();
    app.add_option("--shares", flags.shares, "resident ones: predict")->capture_default_str();
    app.add_option("--chunk", flags.chunk)->capture_default_str();
    app.add_option("--repeats", flags.repeats, "after one that warms up")->capture_default_str();
    app.add_option("--tokens", flags.tokens, "decoded: predict")->capture_default_str();
    app.add_option("--residency", flags.residency, "adaptive, static, lru: modes, overlap")->capture_default_str();
    app.add_option("--machine", flags.paced.machine, "file: nothing is computed, all takes its time there");
    flags.paced.model = "configs/models/deepseek-v4-flash.json";
    app.add_option("--config", flags.paced.model, "of the model, with --machine")->capture_default_str();
    app.add_option("--layers", flags.paced.layers, "of it")->capture_default_str();
    app.add_option("--slower", flags.paced.slower, "all of its times")->capture_default_str();
    app.add_option("--skew", flags.paced.skew, "of its routing: the r-th most popular expert has weight 1 / r^SKEW")
        ->capture_default_str();
    app.add_option("--log", flags.log)->capture_default_str();
    app.require_subcommand(1);
    const std::map<std::string, void (*)(const Flags&)> kinds = {
        {"modes", compare_modes}, {"overlap", measure_overlap}, {"predict", [](const Flags& f) {
                                                                     Loaded loaded(f);
                                                                     Prediction(loaded, f).compare();
                                                                 }}};
    for (const auto& [name, run] : kinds) app.add_subcommand(name)->fallthrough();
    CLI11_PARSE(app, argc, argv);
    try {
        log::start(flags.log);
        kinds.at(app.get_subcommands().front()->get_name())(flags);
    } catch (const Error& error) {
        std::fprintf(stderr, "error: %s\n", error.what());
        return 1;
    }
    return 0;
}
