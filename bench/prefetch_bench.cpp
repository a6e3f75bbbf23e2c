// What prefetch of experts gains on this machine (scheduler/expert_prefetch.h): `caches`: time that a core computes
// missing experts of V4-Flash after a card has kept it waiting, with and without having brought them near meanwhile;
// `files`: time of a token whose experts all come from a file that is in no memory, read ahead or not.
#include "cpu/warm.h"
#include "scheduler/cpu_executor.h"
#include "src/base/error.h"
#include "src/base/log.h"
#include "src/base/pages.h"
#include "src/base/thread.h"
#include "src/engine/pack.h"
#include "src/model/registry.h"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <fcntl.h>
#include <filesystem>
#include <random>
#include <string>
#include <thread>
#include <unistd.h>
#include <vector>

using namespace thermocline;
using namespace thermocline::scheduler;

namespace {

using Clock = std::chrono::steady_clock;

struct Flags {
    std::string model = "configs/models/deepseek-v4-flash.json";
    int64_t cache_kib = 2048, repeats = 100, tokens = 24;
    std::vector<int64_t> waits_us = {0, 50, 105, 300, 1000}, missing = {1, 2};
};

double median(std::vector<double> values) {
    std::nth_element(values.begin(), values.begin() + std::ssize(values) / 2, values.end());
    return values[values.size() / 2];
}

double seconds_since(Clock::time_point began) { return std::chrono::duration<double>(Clock::now() - began).count(); }

/// A card that is busy for a while and then raises its flag, from a core of its own.
class Card {
public:
    Card() : thread_([this] { work(); }) {}
    ~Card() {
        ending_ = true;
        thread_.join();
    }
    uint64_t flag = 0;
    void begin(Clock::time_point done) {
        std::atomic_ref<uint64_t>(flag).store(0);
        done_.store(done.time_since_epoch().count());
    }
    void await() {
        while (std::atomic_ref<uint64_t>(flag).load(std::memory_order_acquire) == 0) {
        }
    }

private:
    void work() {
        pin_this_thread(1);
        while (!ending_) {
            const int64_t at = done_.load();
            if (at == 0 || Clock::now().time_since_epoch().count() < at) continue;
            done_ = 0;
            std::atomic_ref<uint64_t>(flag).store(1, std::memory_order_release);
        }
    }
    std::atomic<int64_t> done_ = 0;
    std::atomic<bool> ending_ = false;
    std::thread thread_;
};

void caches(const Flags& flags) {
    const auto model = model::load_model(
        flags.model, {.format = model::LoadFormat::kDummy, .dummy_vocab = 1024, .defer_codes = true, .layers = 1});
    const ops::Plan& plan = model->trunk;
    const auto packed = engine::pack_weights(*model, {{{}, {0, 1}}});
    cpu::Workers workers(std::vector<int>{0});
    pin_this_thread(0);
    const ops::Experts* step = nullptr;
    for (const ops::Step& one : plan.steps)
        if (const auto* experts = std::get_if<ops::Experts>(&one)) step = experts;
    const ops::ExpertSet& set = plan.experts[static_cast<size_t>(step->experts)];
    std::vector<std::vector<float>> memory;
    std::vector<float*> slots(plan.slots.size());
    for (const ops::Slot id : {step->x, step->ids, step->weights, step->out}) {
        memory.emplace_back(static_cast<size_t>(plan.slots[static_cast<size_t>(id)].cols), 0.01f);
        slots[static_cast<size_t>(id)] = memory.back().data();
    }
    const cpu::ScratchSize size = cpu::scratch_size(plan, 1, 128);
    std::vector<float> shared(static_cast<size_t>(size.shared)), own(static_cast<size_t>(size.per_worker));
    const std::vector<int32_t> tokens = {0};
    const std::vector<int64_t> positions = {0};
    const ops::Batch batch{tokens, positions, {}, {}};
    const cpu::Frame frame{plan, batch, slots.data(), nullptr, shared, own, workers, cpu::select_kernels("auto"), true};
    Card card;
    std::mt19937 random(1);
    const double expert_mb = 1e-6 * static_cast<double>(2 * set.w1[0].bytes() + set.w2[0].bytes());
    std::printf("one core, experts of %.2f MB, %lld KiB of its caches\n", expert_mb,
                static_cast<long long>(flags.cache_kib));
    std::printf("%8s %9s %12s %12s %9s %12s\n", "missing", "wait us", "without us", "with us", "gained", "brought MB");
    for (const int64_t missing : flags.missing)
        for (const int64_t wait : flags.waits_us) {
            std::vector<double> with, without, brought;
            for (int64_t i = 0; i < 2 * flags.repeats; ++i) {
                std::vector<int32_t> experts;
                while (std::ssize(experts) < missing)
                    if (const auto id = static_cast<int32_t>(random() % set.w1.size());
                        std::find(experts.begin(), experts.end(), id) == experts.end())
                        experts.push_back(id);
                auto* ids = reinterpret_cast<int32_t*>(slots[static_cast<size_t>(step->ids)]);
                std::fill_n(ids, step->top_k, -1);
                std::copy(experts.begin(), experts.end(), ids);
                card.begin(Clock::now() + std::chrono::microseconds(wait));
                int64_t bytes = 0;
                if (i % 2 == 1) bytes = cpu::warm_experts(*step, frame, experts, flags.cache_kib << 10, card.flag);
                card.await();
                const auto began = Clock::now();
                cpu::run(*step, frame);
                (i % 2 == 1 ? with : without).push_back(seconds_since(began));
                if (i % 2 == 1) brought.push_back(1e-6 * static_cast<double>(bytes));
            }
            const double a = 1e6 * median(without), b = 1e6 * median(with);
            std::printf("%8lld %9lld %12.1f %12.1f %8.1f%% %12.2f\n", static_cast<long long>(missing),
                        static_cast<long long>(wait), a, b, 100 * (a - b) / a, median(brought));
            std::fflush(stdout);
        }
}

/// Neither this process nor the page cache has the experts of the plan from here on.
void forget(const ops::Plan& plan, const std::string& folder) {
    for (const ops::ExpertSet& set : plan.experts)
        for (const auto* list : {&set.w1, &set.w2, &set.w3})
            for (const quant::Matrix& w : *list) release_pages(w.data - 4096, w.bytes() + 8192);
    for (const auto& item : std::filesystem::directory_iterator(folder)) {
        const int file = ::open(item.path().c_str(), O_RDONLY);
        if (file < 0) continue;
        (void)::posix_fadvise(file, 0, 0, POSIX_FADV_DONTNEED);
        ::close(file);
    }
}

void files(const Flags& flags) {
    const auto model = model::load_model(flags.model, {});
    if (model->checkpoint.container != "converted") fail(flags.model, " is no model that `convert` has written");
    const ops::Plan& plan = model->trunk;
    cpu::Workers workers(std::vector<int>{0, 1});
    const ExecutorLimits limits{.max_rows = 1, .max_outputs = 1, .max_tokens = flags.tokens + 8, .max_parts = 1};
    constexpr TrialRules kNeverTried = {.first = int64_t{1} << 40};
    std::mt19937 random(1);
    std::vector<int32_t> tokens;
    for (int64_t i = 0; i < flags.tokens; ++i)
        tokens.push_back(static_cast<int32_t>(random() % static_cast<uint32_t>(plan.vocab)));
    struct Way {
        const char* name;
        bool ahead, foretells;
    };
    for (const Way& way :
         {Way{"as it comes", false, false}, Way{"asked for once chosen", true, false}, Way{"foretold", true, true}}) {
        CpuExecutor executor(plan, workers, cpu::select_kernels("auto"), limits,
                             {.reads_file = way.ahead, .foretells = way.foretells, .trial = kNeverTried});
        const auto sequence = executor.new_sequence();
        if (!sequence->reserve(flags.tokens)) fail("no room for the caches");
        std::vector<double> seconds;
        for (size_t i = 0; i < tokens.size(); ++i) {
            forget(plan, flags.model);
            const Part part{sequence.get(), std::span(tokens).subspan(i, 1), 1};
            const auto began = Clock::now();
            executor.forward({&part, 1});
            if (i > 0) seconds.push_back(seconds_since(began));
        }
        const Prefetched counters = executor.residency().prefetched;
        std::printf("%-22s %8.2f ms a token", way.name, 1e3 * median(seconds));
        if (counters.foretold > 0)
            std::printf("; %.0f %% of what gates foretold was chosen",
                        100.0 * static_cast<double>(counters.right) / static_cast<double>(counters.foretold));
        std::printf("; %.2f MB asked for\n",
                    1e-6 * static_cast<double>(executor.residency().asked_bytes) / static_cast<double>(flags.tokens));
        std::fflush(stdout);
    }
}

}  // namespace

int main(int argc, char** argv) {
    CLI::App app("what prefetch of experts gains");
    Flags flags;
    app.add_option("--model", flags.model, "caches: a config of configs/models; files: a folder that `convert` wrote")
        ->capture_default_str();
    app.add_option("--cache-kib", flags.cache_kib, "that a core fills")->capture_default_str();
    app.add_option("--repeats", flags.repeats)->capture_default_str();
    app.add_option("--tokens", flags.tokens, "files")->capture_default_str();
    app.add_option("--waits", flags.waits_us, "us that the card keeps the core waiting")->capture_default_str();
    app.add_option("--missing", flags.missing, "experts of a layer that the CPU computes")->capture_default_str();
    app.require_subcommand(1);
    app.add_subcommand("caches")->fallthrough()->callback([&] { caches(flags); });
    app.add_subcommand("files")->fallthrough()->callback([&] { files(flags); });
    try {
        log::start("error");
        CLI11_PARSE(app, argc, argv);
    } catch (const Error& error) {
        std::fprintf(stderr, "error: %s\n", error.what());
        return 1;
    }
    return 0;
}
