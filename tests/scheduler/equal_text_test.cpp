// The text of a model does not depend on where its experts are computed: random cases, each with its own placement,
// policy, room on the card, ring, link, faults, orders, prompts and chunks, on the emulated device, some with the
// layers split over two.
//
// What is compared: greedy text of the demo model with float32 caches and unrounded activations, so that card and CPU
// differ by the order of sums alone (hybrid-engine.md 7.3); with bf16 or fp8 a number between two codes may become
// either. Every logit must be the CPU's within kTolerance, and the most likely token the same wherever the CPU's leads
// by more than kMargin (7.2); after a closer race the text goes on with the CPU's token.
//
// In three of four cases all routers choose by tables of token ids, as the model's first two do: nothing can race, and
// all is compared. In the others they choose by score. There the experts must be the same too, but where the CPU's
// scores are nearly equal: the card may have chosen any whose score is less than kRace below the least of the CPU's
// choices. What follows in such a text is not compared. Texts are so short that every compressed entry is looked at:
// the index has nothing to choose, so nothing to race for.
//
// THERMOCLINE_CASES: how many (7 by default); THERMOCLINE_FIRST_CASE: number of the first, to repeat one (40, from
// where on many move and stream).
#include "cuda/emulation/device.h"
#include "memory/packed_weights.h"
#include "scheduler/cpu_executor.h"
#include "scheduler/gpu_executor.h"
#include "scheduler/gpu_layout.h"
#include "scheduler/gpus.h"
#include "scheduler/placement_file.h"
#include "scheduler/split_executor.h"
#include "src/base/error.h"
#include "src/base/file.h"
#include "src/base/log.h"
#include "src/model/registry.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <gtest/gtest.h>
#include <numeric>
#include <random>
#include <set>

namespace thermocline::scheduler {
namespace {

constexpr double kTolerance = 1e-3, kMargin = 1e-2, kRace = 1e-4;
constexpr int64_t kMostTokens = 131;  // SelectEntries keeps the best 32 of one entry for 4 tokens
constexpr ExecutorLimits kLimits = {.max_rows = 64, .max_outputs = 4, .max_tokens = kMostTokens, .max_parts = 2};

int64_t number_from(const char* variable, int64_t otherwise) {
    const char* text = std::getenv(variable);
    return text == nullptr ? otherwise : std::atoll(text);
}

/// The demo model, as it is and with tables for all its routers.
struct Demo {
    Demo() {
        model::LoadOptions options;
        options.kv_cache = model::KvCacheDtype::kF32;
        options.activations = model::Activations::kBf16;
        model = model::load_model(THERMOCLINE_SOURCE_DIR "/models/demo", options);
        by_table = model->trunk;
        std::mt19937 random(7);
        for (ops::Step& step : by_table.steps)
            if (auto* route = std::get_if<ops::Route>(&step); route != nullptr && route->table == ops::kNone) {
                route->table = static_cast<ops::TableId>(by_table.tables.size());
                by_table.tables.push_back({"table", {}, {by_table.vocab, route->top_k}});
                std::vector<int32_t> ids(static_cast<size_t>(route->experts));
                std::iota(ids.begin(), ids.end(), 0);
                for (int64_t token = 0; token < by_table.vocab; ++token) {
                    std::shuffle(ids.begin(), ids.end(), random);
                    std::vector<int32_t>& values = by_table.tables.back().values;
                    values.insert(values.end(), ids.begin(), ids.begin() + route->top_k);
                }
            }
        ops::verify(by_table);
    }
    void pack(std::span<const quant::Matrix* const> card_only = {}) {
        packed.emplace(std::vector<ops::Plan*>{&model->trunk, &by_table}, nullptr,
                       std::vector<memory::Slice>{{{}, {0}}}, std::function<void(int64_t, int64_t)>(), card_only);
    }
    std::unique_ptr<model::Model> model;
    std::optional<memory::PackedWeights> packed;
    ops::Plan by_table;
};

/// What a case is made of; all drawn from its number.
struct Case {
    explicit Case(int64_t number) : random(static_cast<uint32_t>(number * 2654435761 + 1)) {}

    int64_t draw(int64_t low, int64_t high) { return std::uniform_int_distribution<int64_t>(low, high)(random); }
    bool chance(int percent) { return draw(1, 100) <= percent; }

    cuda::emulation::Config card() {
        cuda::emulation::Config config;
        if (chance(50)) config.link = {.gb_per_s = 0.05 * static_cast<double>(draw(1, 60)), .latency_us = 20};
        if (chance(25)) config.faults = {.delay_copy = draw(1, 200), .delay_ms = draw(1, 12)};
        if (chance(10)) config.faults.lose_flag = draw(34, 200);  // measuring at the start raises 31
        return config;
    }
    std::vector<ExpertName> some_experts(const ops::Plan& plan, int64_t count) {
        std::vector<ExpertName> names = spread_experts(expert_counts(plan), expert_count(plan));
        std::shuffle(names.begin(), names.end(), random);
        names.resize(static_cast<size_t>(count));
        return names;
    }
    /// As somebody might ask for on the command line.
    GpuWishes wishes(const ops::Plan& plan, const std::string& path) {
        GpuWishes wishes;
        const char* policies[] = {"adaptive", "static", "lru"};
        wishes.residency = policies[draw(0, 2)];
        const int64_t experts = expert_count(plan), slots = chance(10) ? experts : draw(0, experts - 1);
        wishes.memory_bytes = budget_for(plan, slots);
        wishes.offload_experts = slots >= 8 && chance(60) ? "stream" : slots == 0 && chance(50) ? "cpu" : "auto";
        if (!chance(50)) return wishes;
        const int64_t ring = slots < 8 ? 0 : std::max<int64_t>(4, slots / 8);
        write_text(path, dump_json(placement_json({.resident = some_experts(plan, draw(0, slots - ring))}, "demo",
                                                  routed_layers(plan))));
        wishes.placement = path;
        return wishes;
    }
    /// As no flag asks for: small rings, scores that change fast, few slots for a layer.
    ResidencyRules rules() {
        using Policy = ResidencyRules::Policy;
        using Streaming = ResidencyRules::Streaming;
        ResidencyRules rules;
        rules.policy = chance(60) ? Policy::kAdaptive : chance(70) ? Policy::kLru : Policy::kStatic;
        rules.half_life = static_cast<double>(draw(4, 16));
        rules.margin = chance(50) ? 0.0 : 0.2;
        rules.least_per_set = draw(0, 2);
        rules.balances = chance(25);
        rules.ring = draw(1, 5);
        rules.streaming = chance(75) ? Streaming::kAll : chance(70) ? Streaming::kShared : Streaming::kNone;
        return rules;
    }
    ExpertOrders orders(const ops::Plan& plan, int64_t slots, std::set<ExpertName>& pinned) {
        ExpertOrders orders;
        for (auto name = pinned.begin(); name != pinned.end();)
            if (chance(50)) {
                orders.released.push_back(*name);
                name = pinned.erase(name);
            } else {
                ++name;
            }
        for (const ExpertName& name : some_experts(plan, draw(0, 3)))
            if (std::ssize(pinned) < slots && pinned.insert(name).second) orders.pinned.push_back(name);
        if (chance(50)) orders.wanted = some_experts(plan, draw(1, slots));
        if (chance(30))
            for (const int64_t experts : expert_counts(plan))
                for (auto& shares = orders.shares.emplace_back(); std::ssize(shares) < experts;)
                    shares.push_back(static_cast<double>(draw(0, 100)) * 0.01);
        return orders;
    }
    /// Few different tokens, so that experts come again, or any.
    std::vector<int32_t> prompt(int64_t vocab) {
        std::vector<int32_t> kinds(static_cast<size_t>(chance(70) ? draw(2, 12) : 400));
        for (int32_t& token : kinds) token = static_cast<int32_t>(draw(0, vocab - 1));
        std::vector<int32_t> tokens(static_cast<size_t>(chance(10)   ? draw(1, 4)
                                                        : chance(10) ? draw(53, 90)
                                                        : chance(60) ? draw(33, 52)
                                                                     : draw(5, 32)));
        for (int32_t& token : tokens) token = kinds[static_cast<size_t>(draw(0, std::ssize(kinds) - 1))];
        return tokens;
    }

    /// The least with room for `slots` experts.
    static int64_t budget_for(const ops::Plan& plan, int64_t slots) {
        const auto plan_with = [&](int64_t bytes) {
            return plan_gpu_memory(plan, nullptr,
                                   {.budget_bytes = bytes,
                                    .context = kLimits.max_tokens,
                                    .sequences = 2,
                                    .prefill_chunk = kLimits.max_rows,
                                    .least_prefill_chunk = kLimits.max_rows,
                                    .outputs = kLimits.max_outputs},
                                   {.runtime_bytes = 0, .library_bytes = 0});
        };
        int64_t low = 1, high = int64_t{1} << 30;
        while (low < high) {
            const int64_t middle = low + (high - low) / 2;
            const GpuMemoryPlan found = plan_with(middle);
            if (found.refusal.empty() && found.expert_slots >= slots)
                high = middle;
            else
                low = middle + 1;
        }
        return high;
    }

    std::mt19937 random;
};

/// Over all cases.
struct Sums {
    int64_t tokens = 0, close_races = 0, router_races = 0, retries = 0;
    int64_t moved = 0, streamed = 0, adopted = 0, on_card = 0, cases_moved = 0, cases_streamed = 0, cases_core = 0,
            cases_split = 0;
    double largest = 0, widest_race = 0;
};

class Compared {
public:
    Compared(Demo& demo, CpuExecutor& by_score, CpuExecutor& by_table, int64_t number, Sums& sums)
        : case_(number),
          cpu_(case_.chance(25) ? by_score : by_table),
          plan_(cpu_.plan()),
          sums_(sums),
          workers_(std::span<const int>()) {
        const cuda::emulation::Config config = case_.card();
        may_fail_ = config.faults.lose_flag > 0;
        auto device = cuda::emulation::open(config);
        if (case_.chance(50)) {
            device_ = std::move(device);
            card_ = std::make_unique<GpuExecutor>(plan_, *device_, workers_, cpu::select_kernels("auto"), kLimits, 2,
                                                  case_.some_experts(plan_, case_.draw(1, 60)), case_.rules());
        } else {
            const auto path = std::filesystem::path(testing::TempDir()) /
                              ("equal_text_placement_" + std::to_string(number) + ".json");
            GpuWishes wishes = case_.wishes(plan_, path.string());
            wishes.worker_cache_bytes = number % 2 * 20'000;  // of either kind
            std::vector<std::unique_ptr<cuda::Device>> devices;
            devices.push_back(std::move(device));
            if (number % 3 == 1) {  // the layers split over two cards, without another draw
                devices.push_back(cuda::emulation::open({.index = 1, .link = config.link}));
                split(number, wishes);
            } else {
                short_host(number, wishes);
            }
            sums_.cases_split += devices.size() > 1;
            gpus_.emplace(wishes, std::move(devices));
            ExecutorLimits limits = kLimits;
            const bool by_score_too = &cpu_ == &by_score;
            const ops::Plan& own = !own_ ? plan_ : by_score_too ? own_->model->trunk : own_->by_table;
            gpus_->reserve(own, "demo", limits, 2, true);
            if (own_) own_->pack(gpus_->card_only(own));
            sums_.cases_core += gpus_->tiers().core > 0;
            card_ = gpus_->new_executor(own, workers_, cpu::select_kernels("auto"), limits,
                                        own_ ? &*own_->packed : &*demo.packed);
            std::filesystem::remove(path);
        }
        here_.wants_ranks = true;
        card_->record_routing(&there_);
        cpu_.record_routing(&here_);
    }
    ~Compared() { cpu_.record_routing(nullptr); }

    void run() {
        const int64_t sequences = case_.chance(30) ? 2 : 1;
        for (int64_t i = 0; i < sequences; ++i) texts_.emplace_back(case_.prompt(plan_.vocab), *card_, cpu_);
        const int64_t generated = case_.chance(15) ? case_.draw(8, 16) : case_.draw(1, 4);
        while (!failed_ && std::ranges::any_of(texts_, [&](const Text& text) { return text.generated < generated; }))
            pass(generated);
        for (const Text& text : texts_) sums_.router_races += text.raced;
        const ResidencyCounters counters = card_->residency();
        sums_.moved += counters.changes;
        sums_.streamed += counters.streamed;
        sums_.adopted += counters.adopted;
        sums_.on_card += counters.card_reads;
        sums_.cases_moved += counters.changes > 0;
        sums_.cases_streamed += counters.streamed > 0;
    }

private:
    /// In some cases host memory has no room for all experts, and the weights of those on the card alone are nowhere
    /// else: drawn apart, so that cases stay what they were.
    void short_host(int64_t number, GpuWishes& wishes) {
        std::mt19937 random(static_cast<uint32_t>(number + 77));
        const GpuMemoryPlan card = plan_gpu_memory(plan_, nullptr,
                                                   {.budget_bytes = wishes.memory_bytes,
                                                    .context = kLimits.max_tokens,
                                                    .sequences = 2,
                                                    .prefill_chunk = kLimits.max_rows,
                                                    .least_prefill_chunk = kLimits.max_rows,
                                                    .outputs = kLimits.max_outputs},
                                                   {.runtime_bytes = 0, .library_bytes = 0});
        const bool streams = wishes.offload_experts == "stream" && card.expert_slots < card.experts;
        const int64_t most = card.expert_slots - (streams ? kLeastStreamed : 0);
        if (wishes.offload_experts == "cpu" || most < 1 || random() % 2 == 0) return;
        const auto core = static_cast<int64_t>(random() % static_cast<uint64_t>(most)) + 1;
        const HostMemoryPlan host =
            plan_host_memory(plan_, nullptr, {.budget_bytes = 1, .is_asked = true, .on_card = true});
        wishes.host_bytes = host.budget_for(card.experts - core);
        own_.emplace();
    }

    /// Two cards with some of the layers and room for some of their experts each; in every other case that may, host
    /// memory has no room for all.
    void split(int64_t number, GpuWishes& wishes) {
        const auto layers = std::ssize(plan_.experts), cut = 1 + number / 3 % (layers - 1);
        wishes.layer_split = {cut, layers - cut};
        wishes.placement.clear();  // for one card
        for (const LayerRange range : {LayerRange{0, static_cast<size_t>(cut)},
                                       LayerRange{static_cast<size_t>(cut), static_cast<size_t>(layers)}}) {
            const ops::Plan part = ops::layers_of(plan_, range.first, range.last).plan;
            const int64_t slots = 8 + (number * 5 + std::ssize(wishes.card_memory) * 11) % (expert_count(part) - 7);
            wishes.card_memory.push_back(Case::budget_for(part, slots));
        }
        if (wishes.offload_experts != "auto" || number % 2 == 0) return;
        const HostMemoryPlan host =
            plan_host_memory(plan_, nullptr, {.budget_bytes = 1, .is_asked = true, .on_card = true});
        wishes.host_bytes = host.budget_for(expert_count(plan_) - 1 - number % 8);
        own_.emplace();
    }

    struct Text {
        Text(std::vector<int32_t> prompt, Executor& card, CpuExecutor& cpu)
            : tokens(std::move(prompt)), there(card.new_sequence()), here(cpu.new_sequence()) {
            EXPECT_TRUE(there->reserve(kLimits.max_tokens) && here->reserve(kLimits.max_tokens));
        }
        std::vector<int32_t> tokens;
        size_t fed = 0;
        int64_t generated = 0;
        bool raced = false;
        std::unique_ptr<memory::SequenceCache> there, here;
    };

    /// The next chunk of every text that is not done, together on the card, one after the other on the CPU.
    void pass(int64_t generated) {
        std::vector<Part> parts;
        std::vector<Text*> of;
        int64_t room = kLimits.max_rows;
        for (Text& text : texts_) {
            const int64_t left = std::ssize(text.tokens) - static_cast<int64_t>(text.fed);
            if (text.generated >= generated || room == 0) continue;
            const int64_t count = std::min({left, room, case_.chance(60) ? kLimits.max_rows : case_.draw(1, 40)});
            parts.push_back({text.there.get(), std::span(text.tokens).subspan(text.fed, static_cast<size_t>(count)),
                             count == left ? 1 : 0});
            of.push_back(&text);
            room -= count;
        }
        if (card_->movable_slots() > 0 && case_.chance(15)) {
            int64_t slots = card_->movable_slots();  // of whichever card it may be
            for (const SlotRange& range : card_->slot_ranges()) slots = std::min(slots, range.slots);
            if (slots > 0) card_->order(case_.orders(plan_, slots, pinned_));
        }
        play(parts);
        if (failed_) return;
        int64_t row = 0;
        int32_t output = 0;
        for (size_t i = 0; i < parts.size() && !failed_; ++i) {
            Part alone = parts[i];
            alone.sequence = of[i]->here.get();
            cpu_.forward({&alone, 1});
            compare_routing(*of[i], row, std::ssize(alone.tokens));
            row += std::ssize(alone.tokens);
            of[i]->fed += alone.tokens.size();
            if (alone.outputs > 0) of[i]->tokens.push_back(compare_logits(*of[i], output++)), ++of[i]->generated;
        }
    }

    void set_patience(std::chrono::milliseconds patience) {
        if (auto* one = dynamic_cast<GpuExecutor*>(card_.get())) return one->set_patience(patience, patience);
        dynamic_cast<SplitExecutor&>(*card_).set_patience(patience, patience);
    }

    /// A pass in which a flag is lost is played again from the state before it. What is slow, and what never comes,
    /// look the same: the patience grows.
    void play(std::span<const Part> parts) {
        if (!may_fail_) {
            set_patience(std::chrono::minutes(2));
            return card_->forward(parts);
        }
        std::vector<std::vector<std::byte>> before;
        for (const Part& part : parts) before.push_back(part.sequence->snapshot());
        for (int64_t patience = 1000; patience <= 64'000; patience *= 2) {
            set_patience(std::chrono::milliseconds(patience));
            try {
                return card_->forward(parts);
            } catch (const Error&) {
                ++sums_.retries;
            }
            for (size_t i = 0; i < parts.size(); ++i) parts[i].sequence->restore(before[i]);
        }
        ADD_FAILURE() << "a pass fails again and again";
        failed_ = true;
    }

    void compare_routing(Text& text, int64_t first, int64_t rows) {
        if (text.raced) return;
        for (int64_t t = 0; t < rows; ++t)
            for (size_t layer = 0; layer < here_.ids.size(); ++layer) {
                const int64_t top_k = std::ssize(here_.ids[layer]) / rows;
                const std::span<const int32_t> own(here_.ids[layer].data() + t * top_k, static_cast<size_t>(top_k)),
                    other(there_.ids[layer].data() + (first + t) * top_k, static_cast<size_t>(top_k));
                if (std::ranges::is_permutation(own, other)) continue;
                // The earliest layer of the earliest row tells; behind it everything may differ.
                text.raced = true;
                const int64_t experts = std::ssize(here_.ranks[layer]) / rows;
                const std::span<const float> ranks(here_.ranks[layer].data() + t * experts,
                                                   static_cast<size_t>(experts));
                const auto least = [&](std::span<const int32_t> ids) {
                    float rank = INFINITY;
                    for (const int32_t id : ids) rank = std::min(rank, ranks[static_cast<size_t>(id)]);
                    return rank;
                };
                EXPECT_EQ(std::set(other.begin(), other.end()).size(), other.size());
                const double below = double{least(own)} - least(other);
                EXPECT_LT(below, kRace) << "layer " << layer << ", row " << t << " from " << text.fed;
                sums_.widest_race = std::max(sums_.widest_race, below);
                failed_ |= !(below < kRace);
                return;
            }
    }

    /// The CPU's next token.
    int32_t compare_logits(const Text& text, int32_t output) {
        const std::span<const float> here(cpu_.logits(0), static_cast<size_t>(plan_.vocab)),
            there(card_->logits(output), static_cast<size_t>(plan_.vocab));
        double largest = 0;
        for (size_t i = 0; i < here.size(); ++i) {
            const double apart = std::abs(double{here[i]} - there[i]);
            largest = apart <= largest ? largest : apart;  // NaN stays
        }
        const auto best = std::max_element(here.begin(), here.end()) - here.begin();
        const auto found = std::max_element(there.begin(), there.end()) - there.begin();
        double second = -INFINITY;
        for (int64_t i = 0; i < std::ssize(here); ++i)
            if (i != best) second = std::max(second, double{here[static_cast<size_t>(i)]});
        if (text.raced) return static_cast<int32_t>(best);
        ++sums_.tokens;
        sums_.largest = std::max(sums_.largest, largest);
        sums_.close_races += found != best;
        const bool close = here[static_cast<size_t>(best)] - second <= kMargin;
        if (!(largest <= kTolerance) || (found != best && !close)) {
            ADD_FAILURE() << "logits differ by " << largest << "; token " << found << ", the CPU's is " << best;
            failed_ = true;
        }
        return static_cast<int32_t>(best);
    }

    Case case_;
    CpuExecutor& cpu_;
    const ops::Plan& plan_;
    Sums& sums_;
    bool may_fail_ = false;
    cpu::Workers workers_;
    std::unique_ptr<cuda::Device> device_;
    std::optional<Demo> own_;  // with weights of the card alone; nothing: those of all cases
    std::optional<Gpus> gpus_;
    std::unique_ptr<Executor> card_;
    RoutingRecord here_, there_;
    std::vector<Text> texts_;
    std::set<ExpertName> pinned_;
    bool failed_ = false;
};

TEST(EqualText, WhereverExpertsAreComputed) {
    log::start("error");
    const int64_t first = number_from("THERMOCLINE_FIRST_CASE", 40), count = number_from("THERMOCLINE_CASES", 7);
    Demo demo;
    demo.pack();
    cpu::Workers workers{std::span<const int>()};
    CpuExecutor by_score(demo.model->trunk, workers, cpu::select_kernels("auto"), kLimits),
        by_table(demo.by_table, workers, cpu::select_kernels("auto"), kLimits);
    Sums sums;
    const auto n = [](int64_t number) { return static_cast<long long>(number); };
    const auto start = std::chrono::steady_clock::now();
    int64_t played = 0;
    for (; played < count && !HasFailure(); ++played) {
        if (played % 50 == 0 && played > 0) std::printf("%lld cases\n", n(played)), std::fflush(stdout);
        SCOPED_TRACE("case " + std::to_string(first + played));
        Compared(demo, by_score, by_table, first + played, sums).run();
    }
    const std::chrono::duration<double> took = std::chrono::steady_clock::now() - start;
    std::printf(
        "%lld cases in %.1f s: %lld tokens compared, logits at most %.1e apart, %lld tokens after a close race; %lld "
        "texts with a race of a router, at most %.1e apart; %lld passes played again; %lld experts moved in %lld "
        "cases, %lld streamed in %lld, of which %lld stayed, %lld computed by the card; in %lld cases some on the card "
        "alone; %lld cases with two cards\n",
        n(played), took.count(), n(sums.tokens), sums.largest, n(sums.close_races), n(sums.router_races),
        sums.widest_race, n(sums.retries), n(sums.moved), n(sums.cases_moved), n(sums.streamed), n(sums.cases_streamed),
        n(sums.adopted), n(sums.on_card), n(sums.cases_core), n(sums.cases_split));
    EXPECT_LE(sums.close_races, 2 + sums.tokens / 100);
    EXPECT_LE(sums.router_races, 2 + count / 4);
    if (count < 7) return;
    EXPECT_GT(sums.moved, 0);
    EXPECT_GT(sums.streamed, 0);
    EXPECT_GT(sums.adopted, 0);
    if (count < 50) return;  // else enough of each must have been tried
    EXPECT_GT(sums.moved, count);
    EXPECT_GT(sums.cases_moved, count / 6);
    EXPECT_GT(sums.streamed, 2 * count);
    EXPECT_GT(sums.cases_core, count / 8);
    EXPECT_GT(sums.cases_streamed, count / 8);
    EXPECT_GT(sums.cases_split, count / 12);
}

}  // namespace
}  // namespace thermocline::scheduler
