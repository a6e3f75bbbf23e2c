#include "tests/step_check.h"

#include "memory/sequence_cache.h"
#include "tests/model/tiny_model.h"
#include "tests/oracle.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <gtest/gtest.h>
#include <set>

namespace thermocline {
namespace {

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

/// The slots of `stage` as the oracle has them.
oracle::OracleSlots slots_of(const ops::Plan& plan, Stage& stage, const ops::Batch& batch) {
    const std::set<ops::Slot> integers = integer_slots(plan);
    oracle::OracleSlots copy = oracle::make_slots(plan, batch);
    for (size_t i = 0; i < copy.size(); ++i) {
        const auto id = static_cast<ops::Slot>(i);
        const std::span<const float> numbers = stage.slot(id);
        for (size_t j = 0; j < copy[i].size(); ++j)
            copy[i][j] = integers.contains(id) ? std::bit_cast<int32_t>(numbers[j]) : double{numbers[j]};
    }
    return copy;
}

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

}  // namespace

void expect_steps_match(const ops::Plan& plan, Stage& stage, double tolerance, double wrong_share,
                        std::span<const int64_t> chunks) {
    Comparison comparison;
    comparison.tolerance = tolerance;
    memory::SequenceCache cache(plan.caches, Stage::kMaxTokens, stage.pages());
    oracle::OracleState state(plan);
    oracle::OracleSequences sequences = {&state};
    const std::vector<int32_t> tokens = tiny::tokens(290);
    auto next = tokens.begin();
    for (const int64_t rows : chunks) {
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
            oracle::OracleSlots expected = slots_of(plan, stage, batch);
            oracle::oracle_step(plan, plan.steps[i], batch, sequences, expected);
            stage.run(plan.steps[i], batch);
            const oracle::OracleSlots after = slots_of(plan, stage, batch);
            for (const ops::Slot slot : std::visit(Written(), plan.steps[i])) {
                const std::string here = where + ", slot " + plan.slots[static_cast<size_t>(slot)].name;
                const auto& numbers = expected[static_cast<size_t>(slot)];
                const auto& found = after[static_cast<size_t>(slot)];
                for (size_t j = 0; j < numbers.size(); ++j) comparison.add(found[j], numbers[j], here);
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

}  // namespace thermocline
