// `bench`: speed of a model, every figure beside the limit that was measured in the same run (cli.md).
#include "cpu/worker_watch.h"
#include "scheduler/bandwidth.h"
#include "scheduler/gpus.h"
#include "scheduler/machine_speed.h"
#include "scheduler/printed.h"
#include "scheduler/topology.h"
#include "src/app/bench_roofline.h"
#include "src/app/bench_run.h"
#include "src/app/bench_table.h"
#include "src/app/commands.h"
#include "src/app/progress.h"
#include "src/app/settings.h"
#include "src/base/error.h"
#include "src/base/log.h"
#include "src/engine/pack.h"
#include "src/engine/vocabulary.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdio>
#include <map>
#include <memory>
#include <utility>

namespace thermocline::app {

namespace {

constexpr int64_t kMaxBatch = 512;

struct BenchFlags {
    ModelFlags model;
    std::vector<int64_t> prompts{512}, outputs{128}, depths{0}, batches{1}, threads;
    int64_t repetitions = 5;
    std::string format = "md";
    std::string routing = "model";
    bool profile_steps = false;
};

/// A flag with numbers separated by commas; a repeated flag replaces the list.
CLI::Option* add_list(CLI::App& command, const std::string& name, std::vector<int64_t>& list, int64_t low, int64_t high,
                      const std::string& description) {
    const auto parse = [name, &list, low, high](const std::string& text) {
        list.clear();
        for (size_t at = 0; at <= text.size();) {
            const size_t end = std::min(text.find(',', at), text.size());
            int64_t number = 0;
            const auto [stop, error] = std::from_chars(text.data() + at, text.data() + end, number);
            if (error != std::errc() || stop != text.data() + end || number < low || number > high)
                throw CLI::ValidationError(name, "'" + text + "', expected numbers from " + std::to_string(low) +
                                                     " to " + std::to_string(high) + ", separated by commas");
            list.push_back(number);
            at = end + 1;
        }
    };
    return command.add_option_function<std::string>(name, parse, description)->type_name("N[,N...]");
}

std::vector<BenchTest> tests_of(const BenchFlags& flags) {
    std::vector<BenchTest> tests;
    for (const int64_t depth : flags.depths)
        for (const int64_t batch : flags.batches) {
            for (const int64_t tokens : flags.prompts)
                if (tokens > 0) tests.push_back({true, tokens, depth, batch});
            for (const int64_t tokens : flags.outputs)
                if (tokens > 0) tests.push_back({false, tokens, depth, batch});
        }
    if (tests.empty()) fail("-p and -n are 0: nothing to measure");
    return tests;
}

/// Names of the weight formats, most bytes first, "E2M1+E4M3+BF16".
std::string formats_of(const ops::Plan& plan) {
    std::map<std::string, int64_t> bytes;
    const auto count = [&](const quant::Matrix& matrix) {
        bytes[std::string(quant::traits(matrix.format).name)] += matrix.bytes();
    };
    for (const ops::NamedMatrix& named : plan.matrices) count(named.matrix);
    for (const ops::ExpertSet& set : plan.experts)
        for (const auto* matrices : {&set.w1, &set.w2, &set.w3})
            std::for_each(matrices->begin(), matrices->end(), count);
    std::vector<std::pair<std::string, int64_t>> order(bytes.begin(), bytes.end());
    std::stable_sort(order.begin(), order.end(), [](const auto& a, const auto& b) { return a.second > b.second; });
    std::string text;
    for (size_t i = 0; i < std::min<size_t>(order.size(), 3); ++i) text += (i ? "+" : "") + order[i].first;
    return text;
}

/// What the machine can do at most, in the terms of a row; 0: not known.
struct Limit {
    double read_gb_per_s, gflops;
};

Json share_of(double part, double whole) { return whole > 0.0 ? Json(part / whole) : Json(); }

Json row_of(const BenchTest& test, const std::vector<BenchSample>& samples, const Limit& limit) {
    const auto tokens = static_cast<double>(test.tokens * test.batch), runs = static_cast<double>(samples.size());
    double rates = 0.0, squares = 0.0, seconds = 0.0;
    ops::Cost cost;
    for (const BenchSample& sample : samples) {
        const double rate = tokens / sample.seconds;
        rates += rate;
        squares += rate * rate;
        seconds += sample.seconds;
        cost += sample.cost;
    }
    const double mean = rates / runs;
    const double variance = runs > 1 ? std::max(0.0, squares - runs * mean * mean) / (runs - 1) : 0.0;
    const double gb_per_s = static_cast<double>(cost.bytes) / seconds * 1e-9;
    const double gflops = static_cast<double>(cost.flops) / seconds * 1e-9;
    return {{"tokens_per_s", mean},
            {"stddev", std::sqrt(variance)},
            {"bytes_per_token", std::llround(static_cast<double>(cost.bytes) / (tokens * runs))},
            {"gb_per_s", gb_per_s},
            {"bandwidth_gb_per_s", limit.read_gb_per_s > 0.0 ? Json(limit.read_gb_per_s) : Json()},
            {"fraction_of_bandwidth", share_of(gb_per_s, limit.read_gb_per_s)},
            {"gflops", gflops},
            {"fraction_of_peak", share_of(gflops, limit.gflops)}};
}

/// All tests with one number of threads.
class Bench {
public:
    Bench(const BenchFlags& flags, const model::Model& model, const RoutedTokens& routed, BenchTable& table,
          Progress& progress)
        : flags_(flags),
          model_(model),
          routed_(routed),
          kernels_(cpu::select_kernels(flags.model.isa.c_str())),
          table_(table),
          progress_(progress),
          tests_(tests_of(flags)) {
        for (const BenchTest& test : tests_) {
            max_tokens_ = std::max(max_tokens_, test.depth + test.tokens);
            max_batch_ = std::max(max_batch_, test.batch);
        }
        const int64_t most = flags.model.max_model_len > 0 ? flags.model.context(model.max_context) : model.max_context;
        if (max_tokens_ > most)
            fail("-d, -p and -n ask for sequences of ", max_tokens_, " tokens, expected at most ", most,
                 flags.model.max_model_len > 0 ? " (--max-model-len)" : " (max_position_embeddings)");
    }

    /// What the tests ask of an executor.
    scheduler::ExecutorLimits limits(bool on_card) const {
        return BenchRun::limits_for(max_tokens_, max_batch_, on_card);
    }
    int64_t sequences() const { return max_batch_; }

    /// With a card, whose memory is read with so many GB/s (0: not known), only once. `packed`: null: the weights are
    /// mapped.
    void with_workers(const scheduler::WorkerPlaces& places, scheduler::Gpus& gpus, double card_gb_per_s,
                      scheduler::ExecutorLimits limits, memory::PackedWeights* packed) {
        cpu::Workers workers(places.cpus, places.slices);
        const cpu::WorkerWatch watch(workers, flags_.model.worker_patience());
        const auto executor = gpus.new_executor(model_.trunk, workers, kernels_, limits, packed);
        scheduler::BandwidthProbe probe(workers);
        // Of the fastest unit that multiplies: bf16 where the tier has such a matmul, int8 for int8 inputs.
        const auto limit_now = [&] {
            const auto peak = [&](cpu::Unit unit, bool used) {
                return used ? scheduler::measure_peak(workers, kernels_, unit) : 0.0;
            };
            return Limit{probe.read(),
                         std::max({peak(cpu::Unit::kF32, true), peak(cpu::Unit::kBF16, kernels_.matmul_bf16 != nullptr),
                                   peak(cpu::Unit::kI8, flags_.model.activations == "int8")})};
        };
        BenchRun run(model_, routed_, *executor, !gpus.any(), flags_.model.seed);
        for (const BenchTest& test : tests_) {
            run.prepare(test);
            // On both sides of the test: what some machines can do changes from second to second.
            const Limit before = limit_now();
            const scheduler::ResidencyCounters counted = executor->residency();
            std::vector<BenchSample> samples;
            for (int64_t i = 0; i < flags_.repetitions; ++i, progress_.update(++done_))
                samples.push_back(run.run(test));
            const Limit after = limit_now();
            const Limit limit{std::max(before.read_gb_per_s, after.read_gb_per_s),
                              std::max(before.gflops, after.gflops)};
            // Experts that are read from the file are no part of the roofline.
            const bool has_roofline = !test.prompt && test.batch == 1 && gpus.tiers().file == 0;
            const Bandwidths measured{has_roofline ? card_gb_per_s : 0.0, limit.read_gb_per_s};
            const Json row = gpus.any() ? row_with_card(test, samples, counted, executor->residency(), measured)
                                        : row_of(test, samples, limit);
            add_row(test, workers.count(), row, *executor, gpus);
            if (flags_.profile_steps) add_profile(test, workers.count(), run.profile(test), limit);
        }
    }

    /// After the last row. Profiles stand below a table for people; a document for programs keeps stdout to itself.
    void finish() {
        table_.finish();
        std::fputs(profiles_.c_str(), flags_.format == "md" ? stdout : stderr);
    }

private:
    /// `measured.card` 0: there is no roofline to compare with.
    Json row_with_card(const BenchTest& test, const std::vector<BenchSample>& samples,
                       const scheduler::ResidencyCounters& before, const scheduler::ResidencyCounters& now,
                       const Bandwidths& measured) {
        const double tokens = static_cast<double>(test.tokens * test.batch) * static_cast<double>(samples.size());
        double bytes = 0.0;
        CardToken token;
        for (const BenchSample& sample : samples) {
            bytes += static_cast<double>(sample.cost.bytes);
            token.seconds += sample.seconds / tokens;
        }
        token.cpu_seconds = (now.cpu_seconds - before.cpu_seconds) / tokens;
        token.exposed_seconds = (now.exposed_seconds - before.exposed_seconds) / tokens;
        const auto chosen = static_cast<double>(now.choices - before.choices);
        token.hit_rate = chosen > 0.0 ? static_cast<double>(now.hits - before.hits) / chosen : 0.0;
        const auto by_card = static_cast<double>(now.card_reads - before.card_reads),
                   by_cpu = static_cast<double>(now.cpu_reads - before.cpu_reads);
        token.card_share = by_card + by_cpu > 0.0 ? by_card / (by_card + by_cpu) : 0.0;
        Limit limit = {};
        if (measured.card > 0.0) {
            const auto floor = roofline(scheduler::token_work(model_.trunk, test.depth + test.tokens / 2), measured,
                                        flags_.model.offload_experts != "none", token.hit_rate);
            limit.read_gb_per_s = bytes / tokens / floor.seconds * 1e-9;
            profiles_ += heading(test) + roofline_table(token, floor, measured);
        }
        Json row = row_of(test, samples, limit);
        const double expert_bytes = static_cast<double>(now.expert_bytes) / tokens,
                     sent = static_cast<double>(now.changes - before.changes + now.streamed - before.streamed),
                     link_seconds = now.link_seconds - before.link_seconds + now.fill_seconds - before.fill_seconds;
        row.update({{"hit_rate", token.hit_rate},
                    {"card_share", token.card_share},
                    {"expert_bytes_card", std::llround(by_card * expert_bytes)},
                    {"expert_bytes_host", std::llround(by_cpu * expert_bytes)},
                    {"expert_bytes_link", std::llround(sent * expert_bytes)},
                    {"link_ms_per_token", 1e3 * link_seconds / tokens},
                    {"cpu_ms_per_token", 1e3 * token.cpu_seconds},
                    {"exposed_ms_per_token", test.prompt ? Json() : Json(1e3 * token.exposed_seconds)}});
        add_prefetch(test, tokens, before.prefetched, now.prefetched, row);
        return row;
    }

    void add_prefetch(const BenchTest& test, double tokens, const scheduler::Prefetched& before,
                      const scheduler::Prefetched& now, Json& row) {
        const auto foretold = static_cast<double>(now.foretold - before.foretold);
        const double right = foretold > 0.0 ? static_cast<double>(now.right - before.right) / foretold : 0.0,
                     warmed = static_cast<double>(now.warmed_bytes - before.warmed_bytes) / tokens;
        row.update({{"prefetch", now.on ? "on" : "off"},
                    {"prefetch_gain", now.gain},
                    {"foretold_right", foretold > 0.0 ? Json(right) : Json()},
                    {"warmed_bytes_per_token", warmed}});
        if (foretold > 0.0)
            profiles_ +=
                heading(test) +
                scheduler::printed(
                    "prefetch %s at the end, tried: without it %+.1f %% of time; %.0f %% of what gates foretold was "
                    "chosen, %.2f MB a token brought near\n",
                    now.on ? "on" : "off", 100.0 * now.gain, 100.0 * right, 1e-6 * warmed);
    }

    void add_row(const BenchTest& test, int threads, const Json& measured, const scheduler::Executor& executor,
                 const scheduler::Gpus& gpus) {
        const std::string placement =
            !gpus.any() ? "cpu"
                        : flags_.model.offload_experts + ", " + std::to_string(executor.resident().size()) + " of " +
                              std::to_string(scheduler::expert_count(model_.trunk)) + " experts on the card";
        Json row = {{"test", test.name()}, {"threads", threads}, {"depth", test.depth}, {"batch", test.batch}};
        row.update(measured);
        row.update({{"placement", placement},
                    {"model", engine::model_name(model_.checkpoint)},
                    {"format", formats_of(model_.trunk)},
                    {"isa", kernels_.name},
                    {"gpu", gpus.name()},
                    {"routing", flags_.routing}});
        table_.add(row);
    }

    static std::string heading(const BenchTest& test) {
        return "\n" + test.name() + ", depth " + std::to_string(test.depth) + ", batch " + std::to_string(test.batch) +
               ": ";
    }

    void add_profile(const BenchTest& test, int threads, const scheduler::StepProfile& profile, const Limit& limit) {
        profiles_ +=
            heading(test) + std::to_string(threads) + " threads\n" + profile_table(profile, limit.read_gb_per_s);
    }

    const BenchFlags& flags_;
    const model::Model& model_;
    const RoutedTokens& routed_;
    const cpu::KernelTable& kernels_;
    BenchTable& table_;
    Progress& progress_;
    std::vector<BenchTest> tests_;
    std::string profiles_;
    int64_t max_tokens_ = 0, max_batch_ = 1, done_ = 0;
};

void bench(BenchFlags flags) {
    log::start(flags.model.log_level);
    if (flags.threads.empty()) flags.threads = {flags.model.threads};
    const auto slices = scheduler::weight_slices(scheduler::detect_machine(), flags.model.numa_mode());
    std::vector<scheduler::WorkerPlaces> all_places;
    for (const int64_t threads : flags.threads)
        all_places.push_back(scheduler::worker_places(slices, static_cast<int>(threads)));
    tests_of(flags);  // throws before the weights are loaded
    scheduler::Gpus gpus(flags.model.gpu_wishes());
    if (gpus.any() && flags.threads.size() > 1)
        fail("bench --gpus takes one number of threads (-t): what lies on the card is settled once");

    const auto model = model::load_model(flags.model.path(), flags.model.load_options());
    const RoutedTokens routed =
        Routing(flags.routing).apply(model->trunk, engine::model_name(model->checkpoint), flags.model.seed);
    BenchTable table(flags.format);
    Progress progress("bench:", std::ssize(tests_of(flags)) * std::ssize(all_places) * flags.repetitions,
                      "repetitions");
    Bench bench(flags, *model, routed, table, progress);
    scheduler::ExecutorLimits limits = bench.limits(gpus.any());
    const double card_gb_per_s = gpus.any() ? gpus.memory_read_gb_per_s() : 0.0;  // while there is room to measure
    gpus.reserve(model->trunk, engine::model_name(model->checkpoint), limits, bench.sequences(),
                 !flags.model.weights_in_place,
                 {.draft = model->mtp ? &*model->mtp : nullptr,
                  .mapped = flags.model.weights_in_place || engine::is_mapped(*model),
                  .kv_bytes = bench.sequences() * memory::sequence_bytes(model->trunk.caches, limits.max_tokens)});
    const auto packed =
        flags.model.weights_in_place ? nullptr : engine::pack_weights(*model, slices, gpus.card_only(model->trunk));
    for (const scheduler::WorkerPlaces& places : all_places)
        bench.with_workers(places, gpus, card_gb_per_s, limits, packed.get());
    bench.finish();
}

}  // namespace

void add_bench(CLI::App& root) {
    auto flags = std::make_shared<BenchFlags>();
    CLI::App& command = *root.add_subcommand("bench", "speed of a model, beside the limits of this machine");
    flags->model.declare(command, ModelFlags::Positional::kOptional);
    const char* group = "Tests: one row a combination";
    const auto list = [&](const char* name, std::vector<int64_t>& numbers, int64_t low, int64_t high,
                          const char* text) { add_list(command, name, numbers, low, high, text)->group(group); };
    constexpr int64_t kTokens = int64_t{1} << 24;
    list("-p,--prompt", flags->prompts, 0, kTokens, "tokens of a prompt (test ppN); 0: none; default 512");
    list("-n,--generate", flags->outputs, 0, kTokens, "tokens generated one by one (test tgN); 0: none; default 128");
    list("-d,--depth", flags->depths, 0, kTokens, "tokens in the cache before, mostly copies of others; default 0");
    list("-b,--batch", flags->batches, 1, kMaxBatch, "sequences at once; default 1");
    list("-t", flags->threads, 1, 1 << 16, "CPU workers; default: --threads");
    command
        .add_option("--routing", flags->routing,
                    "which experts tokens go to. model: those that the weights choose; uniform, zipf[:S]: drawn, all "
                    "alike, or in each layer with weights 1, 2^-S, 3^-S, ... in an order of its own, S 1 by default; "
                    "FILE: a trace of score --record-routing")
        ->check(CLI::Validator([](const std::string& text) { return Routing::fault(text); }, ""))
        ->group(group)
        ->capture_default_str();
    command
        .add_option("-r,--repetitions", flags->repetitions,
                    "of every test, after one of its prompts or one token that does not count; the "
                    "mean is reported")
        ->check(CLI::Range(int64_t{1}, int64_t{100000}))
        ->group(group)
        ->capture_default_str();
    command.add_option("-o,--output", flags->format, "md, json, jsonl or csv")
        ->check(CLI::IsMember({"md", "json", "jsonl", "csv"}))
        ->group("Output")
        ->capture_default_str();
    command
        .add_flag("--profile-steps", flags->profile_steps,
                  "one more repetition of every test, timed operator by operator (to stderr unless -o md)")
        ->group("Output");
    command.callback([flags] { bench(*flags); });
}

}  // namespace thermocline::app
