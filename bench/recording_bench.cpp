// What recording of routing costs a pass (RoutingWatch, as every server has one): the same model plays three passes in
// turn, without any, with counts only, and with a trace that is written, so that what a machine does besides comes upon
// all of them alike; medians of the ratios of neighbours.
#include "memory/sequence_cache.h"
#include "scheduler/cpu_executor.h"
#include "scheduler/routing.h"
#include "scheduler/routing_watch.h"
#include "src/base/error.h"
#include "src/base/log.h"
#include "src/engine/pack.h"
#include "src/model/registry.h"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <array>
#include <chrono>
#include <cstdio>
#include <filesystem>
#include <numeric>
#include <random>
#include <string>
#include <vector>

using namespace thermocline;
using namespace thermocline::scheduler;

namespace {

using Clock = std::chrono::steady_clock;

struct Flags {
    std::string model = "models/demo", trace = "/tmp/recording_bench.jsonl";
    int32_t layers = 0;
    int64_t context = 1024;
    std::vector<int64_t> rows = {1, 256}, rounds = {3000, 60};
    std::vector<int> cpus = {0};
};

double seconds_since(Clock::time_point began) { return std::chrono::duration<double>(Clock::now() - began).count(); }

double median(std::vector<double> values) {
    std::nth_element(values.begin(), values.begin() + std::ssize(values) / 2, values.end());
    return values[values.size() / 2];
}

class Subject {
public:
    explicit Subject(const Flags& flags)
        : context_(flags.context),
          model_(load(flags)),
          packed_(engine::pack_weights(*model_, {{{}, {0, 1}}})),
          workers_(flags.cpus),
          executor_(model_->trunk, workers_, cpu::select_kernels("auto"),
                    {.max_rows = *std::max_element(flags.rows.begin(), flags.rows.end()),
                     .max_outputs = 1,
                     .max_tokens = context_,
                     .max_parts = 1}),
          counts_("bench", routed_layers(model_->trunk)),
          writes_("bench", routed_layers(model_->trunk)) {
        writes_.write_to(flags.trace);
    }

    void measure(int64_t rows, int64_t rounds) {
        constexpr size_t kWays = 3;
        const std::array<RoutingWatch*, kWays> watches = {nullptr, &counts_, &writes_};
        std::array<std::vector<double>, kWays> seconds, ratios;
        std::array<double, kWays> told = {}, all = {};
        std::array<size_t, kWays> order = {0, 1, 2};
        for (int64_t round = 0; round < rounds; ++round) {
            std::shuffle(order.begin(), order.end(), random_);
            std::array<double, kWays> now = {};
            for (const size_t way : order) {
                double telling = 0;
                now[way] = pass(rows, watches[way], telling);
                told[way] += telling;
                all[way] += now[way];
            }
            if (round < rounds / 20) continue;  // warms up
            for (size_t way = 0; way < kWays; ++way) {
                seconds[way].push_back(now[way]);
                ratios[way].push_back(now[way] / now[0] - 1);
            }
        }
        std::printf("%5lld rows: %9.1f us a pass", static_cast<long long>(rows), 1e6 * median(seconds[0]));
        for (const size_t way : {size_t{1}, size_t{2}})
            std::printf("; %s %+.2f %% (%.2f %% by its own clock)", way == 1 ? "counted" : "written",
                        1e2 * median(ratios[way]), 1e2 * told[way] / all[way]);
        std::printf("\n");
        std::fflush(stdout);
    }

private:
    static std::unique_ptr<model::Model> load(const Flags& flags) {
        if (std::filesystem::is_directory(flags.model)) return model::load_model(flags.model, {});
        return model::load_model(flags.model,
                                 {.format = model::LoadFormat::kDummy, .defer_codes = true, .layers = flags.layers});
    }

    /// Seconds with all that recording does, and of these what comes after the pass.
    double pass(int64_t rows, RoutingWatch* watch, double& telling) {
        if (!sequence_ || sequence_->position() + rows > context_) {
            sequence_ = executor_.new_sequence();
            if (!sequence_->reserve(context_)) fail("no room for the caches");
        }
        tokens_.resize(static_cast<size_t>(rows));
        for (int32_t& token : tokens_)
            token = static_cast<int32_t>(random_() % static_cast<uint32_t>(model_->trunk.vocab));
        const Part part{sequence_.get(), tokens_, 1};
        executor_.record_routing(watch != nullptr ? watch->record() : nullptr);
        const auto began = Clock::now();
        executor_.forward({&part, 1});
        const auto played = Clock::now();
        if (watch != nullptr) watch->passed({&part, 1}, executor_.residency());
        telling = watch != nullptr ? seconds_since(played) : 0.0;
        return seconds_since(began);
    }

    const int64_t context_;
    std::unique_ptr<model::Model> model_;
    std::unique_ptr<memory::PackedWeights> packed_;
    cpu::Workers workers_;
    CpuExecutor executor_;
    RoutingWatch counts_, writes_;
    std::unique_ptr<memory::SequenceCache> sequence_;
    std::vector<int32_t> tokens_;
    std::mt19937 random_{7};
};

}  // namespace

int main(int argc, char** argv) {
    CLI::App app("what recording of routing costs a pass");
    Flags flags;
    app.add_option("--model", flags.model, "a folder, or a config of configs/models with random weights")
        ->capture_default_str();
    app.add_option("--layers", flags.layers, "of a config; 0: all")->capture_default_str();
    app.add_option("--context", flags.context, "after so many tokens a new sequence begins")
        ->check(CLI::PositiveNumber)
        ->capture_default_str();
    app.add_option("--rows", flags.rows, "of a pass")->check(CLI::PositiveNumber)->capture_default_str();
    app.add_option("--rounds", flags.rounds, "of three passes, for each number of rows")
        ->check(CLI::PositiveNumber)
        ->capture_default_str();
    app.add_option("--cpus", flags.cpus, "that the workers are pinned to")->capture_default_str();
    app.add_option("--trace", flags.trace, "file that is written")->capture_default_str();
    CLI11_PARSE(app, argc, argv);
    try {
        log::start("error");
        if (flags.rows.size() != flags.rounds.size()) fail("--rows and --rounds must be as many");
        if (std::ranges::max(flags.rows) > flags.context) fail("--rows must not exceed --context");
        Subject subject(flags);
        for (size_t i = 0; i < flags.rows.size(); ++i) subject.measure(flags.rows[i], flags.rounds[i]);
    } catch (const Error& error) {
        std::fprintf(stderr, "error: %s\n", error.what());
        return 1;
    }
    return 0;
}
