// Every step of the CPU backend against the oracle, with the inputs the engine really has: the tiny model's plans are
// played step by step, the oracle gets the CPU's slots and cache rows before each step, and what the step left behind
// is compared. Whatever breaks is named by its step.
#include "cpu/run.h"
#include "tests/model/engine_fixture.h"
#include "tests/model/tiny_model.h"
#include "tests/oracle.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <gtest/gtest.h>
#include <set>

namespace thermocline {
namespace {

using model::KvCacheDtype;

/// The slots that a step writes. Route is free to use its logits as scratch.
struct Written {
    std::vector<ops::Slot> operator()(const ops::Embed& s) const { return {s.out}; }
    std::vector<ops::Slot> operator()(const ops::Linear& s) const { return {s.out}; }
    std::vector<ops::Slot> operator()(const ops::RmsNorm& s) const { return {s.out}; }
    std::vector<ops::Slot> operator()(const ops::Rope& s) const { return {s.x}; }
    std::vector<ops::Slot> operator()(const ops::HyperIn& s) const { return {s.x, s.post_comb}; }
    std::vector<ops::Slot> operator()(const ops::HyperOut& s) const { return {s.streams}; }
    std::vector<ops::Slot> operator()(const ops::HyperHead& s) const { return {s.x}; }
    std::vector<ops::Slot> operator()(const ops::RoundKv& s) const { return {s.x}; }
    std::vector<ops::Slot> operator()(const ops::Compress&) const { return {}; }
    std::vector<ops::Slot> operator()(const ops::SelectEntries& s) const { return {s.selection}; }
    std::vector<ops::Slot> operator()(const ops::Attention& s) const { return {s.out}; }
    std::vector<ops::Slot> operator()(const ops::StoreWindow&) const { return {}; }
    std::vector<ops::Slot> operator()(const ops::Route& s) const { return {s.ids, s.weights}; }
    std::vector<ops::Slot> operator()(const ops::Experts& s) const { return {s.out}; }
    std::vector<ops::Slot> operator()(const ops::SwiGlu& s) const { return {s.out}; }
    std::vector<ops::Slot> operator()(const ops::Add& s) const { return {s.x}; }
    std::vector<ops::Slot> operator()(const ops::TakeRows& s) const { return {s.out}; }
};

/// Slots that hold int32.
std::set<ops::Slot> integer_slots(const ops::Plan& plan) {
    std::set<ops::Slot> slots;
    for (const ops::Step& step : plan.steps) {
        if (const auto* s = std::get_if<ops::SelectEntries>(&step)) slots.insert(s->selection);
        if (const auto* r = std::get_if<ops::Route>(&step)) slots.insert(r->ids);
    }
    return slots;
}

/// Buffers and caches of one plan, as the executor lays them out, for playing single steps.
class Stage {
public:
    Stage(const ops::Plan& plan, const cpu::KernelTable& kernels, int64_t max_rows)
        : plan_(plan), kernels_(kernels), workers_(std::span<const int>()), integers_(integer_slots(plan)) {
        for (const ops::SlotSpec& slot : plan.slots) storage_.emplace_back(static_cast<size_t>(slot.cols * max_rows));
        for (const ops::RopeTable& rope : plan.ropes)
            rotations_.emplace_back(static_cast<size_t>(rope.dims() * max_rows));
        for (auto& slot : storage_) slots_.push_back(slot.data());
        for (auto& rope : rotations_) rotation_pointers_.push_back(rope.data());
        const cpu::ScratchSize size = cpu::scratch_size(plan, max_rows, 1024);
        shared_.resize(static_cast<size_t>(size.shared));
        per_worker_.resize(static_cast<size_t>(size.per_worker));
    }

    void begin(const ops::Batch& batch) {
        for (size_t i = 0; i < plan_.ropes.size(); ++i) cpu::rotations(plan_.ropes[i], batch, rotations_[i].data());
    }
    void run(const ops::Step& step, const ops::Batch& batch) {
        const cpu::Frame frame{plan_,   batch,       slots_.data(), rotation_pointers_.data(),
                               shared_, per_worker_, workers_,      kernels_};
        std::visit([&](const auto& one) { cpu::run(one, frame); }, step);
    }
    std::vector<float>& slot(ops::Slot id) { return storage_[static_cast<size_t>(id)]; }

    oracle::OracleSlots slots(const ops::Batch& batch) const {
        oracle::OracleSlots copy = oracle::make_slots(plan_, batch);
        for (size_t i = 0; i < copy.size(); ++i)
            for (size_t j = 0; j < copy[i].size(); ++j) copy[i][j] = value(static_cast<ops::Slot>(i), j);
        return copy;
    }

    /// Number j of a slot.
    double value(ops::Slot slot, size_t j) const {
        const float& number = storage_[static_cast<size_t>(slot)][j];
        if (!integers_.contains(slot)) return number;
        int32_t integer = 0;
        std::memcpy(&integer, &number, sizeof integer);
        return integer;
    }

private:
    const ops::Plan& plan_;
    const cpu::KernelTable& kernels_;
    cpu::Workers workers_;
    std::set<ops::Slot> integers_;
    std::vector<std::vector<float>> storage_, rotations_;
    std::vector<float*> slots_;
    std::vector<const float*> rotation_pointers_;
    std::vector<float> shared_, per_worker_;
};

/// Counts numbers that differ by more than `tolerance` times their size (at least 1).
struct Comparison {
    double tolerance = 0;
    int64_t numbers = 0, wrong = 0;
    std::string first_wrong;

    void add(double found, double expected, const std::string& where) {
        ++numbers;
        const double limit = tolerance * std::max(1.0, std::abs(expected));
        if (std::abs(found - expected) <= limit) return;
        if (wrong++ == 0) first_wrong = where + ": " + std::to_string(found) + ", expected " + std::to_string(expected);
    }
};

/// Compares cache rows that `position` tokens leave and gives the oracle the CPU's.
void compare_caches(const ops::Plan& plan, const memory::SequenceCache& cache, int64_t position,
                    oracle::OracleState& state, Comparison& comparison, const std::string& where) {
    for (size_t i = 0; i < plan.caches.size(); ++i) {
        const ops::CacheSpec& spec = plan.caches[i];
        auto& rows = state.caches[i];
        const auto count = static_cast<int64_t>(rows.size());
        const bool ring = spec.kind == ops::CacheSpec::Kind::kRing;
        const int64_t oldest = ring ? std::max<int64_t>(0, std::max(count, position) - spec.ring_rows) : 0;
        std::vector<float> row(static_cast<size_t>(spec.width));
        for (int64_t r = oldest; r < count; ++r) {
            quant::decode_kv_row(spec.format, cache.views()[i].row(r), spec.width, spec.rope, row.data());
            auto& expected = rows[static_cast<size_t>(r)];
            const std::string here = where + ", cache " + spec.name + " row " + std::to_string(r);
            for (size_t c = 0; c < row.size(); ++c) comparison.add(row[c], expected[c], here);
            expected.assign(row.begin(), row.end());
        }
    }
}

void expect_steps_match(const ops::Plan& plan, const char* tier, double tolerance, double wrong_share) {
    constexpr int64_t kMaxRows = 140;
    Comparison comparison;
    comparison.tolerance = tolerance;
    Stage stage(plan, *cpu::find_kernels(tier), kMaxRows);
    memory::SequenceCache cache(plan.caches, 1024);
    oracle::OracleState state(plan);
    oracle::OracleSequences sequences = {&state};
    const std::vector<int32_t> tokens = tiny::tokens(290);
    auto next = tokens.begin();
    for (const int64_t rows : {1, 2, 4, 9, 112, 1, 140, 3, 17}) {
        const oracle::OracleBatch parts(sequences, {{next, next + rows}}, 2);
        next += rows;
        ASSERT_TRUE(cache.reserve(state.position + rows));
        std::vector<ops::Segment> segments = parts.segments;
        segments[0].caches = cache.views();
        const ops::Batch batch{parts.tokens, parts.positions, segments, parts.output_rows};
        if (plan.name != "trunk")  // an MTP plan reads streams: any numbers do
            for (size_t i = 0; i < stage.slot(plan.streams).size(); ++i)
                stage.slot(plan.streams)[i] = std::sin(static_cast<float>(i * i % 977));
        stage.begin(batch);
        for (size_t i = 0; i < plan.steps.size(); ++i) {
            const std::string where = "rows " + std::to_string(rows) + ", step " + std::to_string(i) + " (" +
                                      ops::step_name(plan.steps[i]) + ")";
            oracle::OracleSlots expected = stage.slots(batch);
            oracle::oracle_step(plan, plan.steps[i], batch, sequences, expected);
            stage.run(plan.steps[i], batch);
            for (const ops::Slot slot : std::visit(Written(), plan.steps[i])) {
                const std::string here = where + ", slot " + plan.slots[static_cast<size_t>(slot)].name;
                const auto& numbers = expected[static_cast<size_t>(slot)];
                for (size_t j = 0; j < numbers.size(); ++j) comparison.add(stage.value(slot, j), numbers[j], here);
            }
            if (std::holds_alternative<ops::Compress>(plan.steps[i]) ||
                std::holds_alternative<ops::StoreWindow>(plan.steps[i]))
                compare_caches(plan, cache, state.position, state, comparison, where);
        }
        state.position += rows;
        cache.advance(rows);
    }
    EXPECT_LE(static_cast<double>(comparison.wrong), wrong_share * static_cast<double>(comparison.numbers))
        << comparison.wrong << " of " << comparison.numbers << " numbers, first: " << comparison.first_wrong;
}

TEST(Steps, F32CachesMatchTheOracle) {
    for (const std::string& tier : available_tiers()) {
        SCOPED_TRACE(tier);
        expect_steps_match(tiny_model(KvCacheDtype::kF32).trunk, tier.c_str(), 2e-6, 0);
        expect_steps_match(*tiny_model(KvCacheDtype::kF32).mtp, tier.c_str(), 2e-6, 0);
    }
}

// A number that lies between two codes may be rounded to either.
TEST(Steps, RoundedCachesMatchTheOracle) {
    for (const std::string& tier : available_tiers()) {
        SCOPED_TRACE(tier);
        for (const KvCacheDtype format : {KvCacheDtype::kBf16, KvCacheDtype::kFp8F32, KvCacheDtype::kFp8})
            expect_steps_match(tiny_model(format).trunk, tier.c_str(), 1e-5, 1e-4);
    }
}

// In the tiny model 19 Sinkhorn rounds give nearly the same as 20; mixing matrices that are far from uniform show the
// difference.
TEST(Steps, SinkhornRoundsAreCounted) {
    ops::Plan plan = tiny_model(KvCacheDtype::kF32).trunk;
    const auto set_rounds = [&](int32_t rounds) {
        for (ops::Step& step : plan.steps)
            if (auto* s = std::get_if<ops::HyperIn>(&step)) s->sinkhorn_iterations = rounds;
    };
    for (const ops::Step& step : plan.steps)
        if (const auto* s = std::get_if<ops::HyperIn>(&step))
            for (float& scale : plan.vectors[static_cast<size_t>(s->scale)].values) scale *= 6;

    const auto mixing = [&] {  // of the first site
        oracle::OracleState state(plan);
        oracle::OracleSequences sequences = {&state};
        const oracle::OracleBatch batch(sequences, {tiny::tokens(50)}, 1);
        oracle::OracleSlots slots = oracle::make_slots(plan, batch.view());
        for (const ops::Step& step : plan.steps) {
            oracle::oracle_step(plan, step, batch.view(), sequences, slots);
            if (const auto* s = std::get_if<ops::HyperIn>(&step)) return slots[static_cast<size_t>(s->post_comb)];
        }
        return std::vector<double>();
    };
    const std::vector<double> twenty = mixing();
    set_rounds(19);
    const std::vector<double> nineteen = mixing();
    double largest = 0;
    for (size_t i = 0; i < twenty.size(); ++i) largest = std::max(largest, std::abs(twenty[i] - nineteen[i]));
    EXPECT_GT(largest, 1e-4) << "this test would not see a missing round";

    set_rounds(20);
    for (const std::string& tier : available_tiers()) {
        SCOPED_TRACE(tier);
        expect_steps_match(plan, tier.c_str(), 1e-5, 0);
    }
}

}  // namespace
}  // namespace thermocline
