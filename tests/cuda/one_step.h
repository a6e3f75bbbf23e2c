// One step of any shape on a card against the oracle: slots and caches hold random numbers, several
// sequences share the batch.
#pragma once

#include "memory/sequence_cache.h"
#include "tests/cuda/stage.h"
#include "tests/oracle.h"

#include <algorithm>
#include <cmath>
#include <memory>
#include <random>

namespace thermocline {

class OneStep {
public:
    ops::Plan plan;

    ops::Slot slot(int64_t cols, ops::Rows rows = ops::Rows::kTokens) {
        plan.slots.push_back({"slot " + std::to_string(plan.slots.size()), cols, rows});
        return static_cast<ops::Slot>(plan.slots.size() - 1);
    }
    ops::VectorId vector(int64_t count) {
        std::vector<float> values(static_cast<size_t>(count));
        for (float& x : values) x = number();
        plan.vectors.push_back({"vector", values});
        return static_cast<ops::VectorId>(plan.vectors.size() - 1);
    }
    ops::RopeId rope(int32_t dims) {
        ops::RopeTable table;
        for (int32_t i = 0; i < dims; i += 2)
            table.frequencies.push_back(std::pow(10000.0f, -static_cast<float>(i) / static_cast<float>(dims)));
        plan.ropes.push_back(table);
        return static_cast<ops::RopeId>(plan.ropes.size() - 1);
    }
    ops::CacheId ring(quant::KvFormat format, int64_t width, int64_t rope, int64_t rows) {
        plan.caches.push_back({"ring", ops::CacheSpec::Kind::kRing, format, width, rope, rows});
        return static_cast<ops::CacheId>(plan.caches.size() - 1);
    }
    ops::CacheId entries(quant::KvFormat format, int64_t width, int64_t rope, int32_t ratio) {
        plan.caches.push_back({"entries", ops::CacheSpec::Kind::kEntries, format, width, rope, 0, ratio});
        return static_cast<ops::CacheId>(plan.caches.size() - 1);
    }
    float number() { return normal_(random_); }

    /// `lengths[i]`: tokens that sequence i has seen, and rows that it has in the batch.
    void begin(const std::vector<std::pair<int64_t, int64_t>>& lengths) {
        stage = std::make_unique<CudaStage>(plan);
        std::vector<std::vector<int32_t>> parts;
        for (const auto& [position, rows] : lengths) {
            states_.push_back(std::make_unique<oracle::OracleState>(plan));
            states_.back()->position = position;
            sequences_.push_back(states_.back().get());
            caches_.push_back(std::make_unique<memory::SequenceCache>(plan.caches, position + rows, stage->pages()));
            ASSERT_TRUE(caches_.back()->reserve(position + rows));
            fill_caches(*caches_.back(), *states_.back());
            parts.emplace_back();
            for (int64_t i = 0; i < rows; ++i) parts.back().push_back(static_cast<int32_t>(random_() % 32));
        }
        batch_ = std::make_unique<oracle::OracleBatch>(sequences_, parts, 1);
        for (size_t i = 0; i < lengths.size(); ++i) batch_->segments[i].caches = caches_[i]->views();
        stage->begin(batch_->view());
        for (size_t i = 0; i < plan.slots.size(); ++i)
            for (float& x : stage->slot(static_cast<ops::Slot>(i))) x = number();
    }
    ops::Batch batch() const { return batch_->view(); }
    int64_t rows() const { return batch().rows(); }

    /// Plays the step on both sides and compares what it wrote into these slots, and all caches. A share of
    /// `wrong_share` of the numbers may be off by more than `tolerance` times their size (at least 1).
    void check(const ops::Step& step, const std::vector<ops::Slot>& floats, const std::vector<ops::Slot>& integers,
               double tolerance, double wrong_share = 0) {
        for (const ops::Slot id : integers) std::ranges::fill(stage->slot(id), 0.0f);
        oracle::OracleSlots expected = oracle::make_slots(plan, batch());
        for (size_t i = 0; i < expected.size(); ++i)
            for (size_t j = 0; j < expected[i].size(); ++j) {
                const float x = stage->slot(static_cast<ops::Slot>(i))[j];
                expected[i][j] = std::count(inputs.begin(), inputs.end(), static_cast<ops::Slot>(i)) > 0
                                     ? std::bit_cast<int32_t>(x)
                                     : double{x};
            }
        oracle::oracle_step(plan, step, batch(), sequences_, expected);
        stage->run(step, batch());
        for (const ops::Slot id : floats) compare(id, expected, tolerance, [](float x) { return double{x}; });
        for (const ops::Slot id : integers) compare(id, expected, 0, [](float x) { return std::bit_cast<int32_t>(x); });
        compare_caches(tolerance);
        EXPECT_LE(static_cast<double>(wrong_), wrong_share * static_cast<double>(numbers_))
            << wrong_ << " of " << numbers_ << ", first: " << first_wrong_;
    }

    std::unique_ptr<CudaStage> stage;
    std::vector<ops::Slot> inputs;  // slots of int32 that the step reads

    /// Row `index` of a cache of a sequence, for the oracle and for the device.
    void set_row(size_t sequence, ops::CacheId cache, int64_t index, const std::vector<float>& values) {
        const ops::CacheSpec& spec = plan.caches[static_cast<size_t>(cache)];
        std::byte* row = caches_[sequence]->views()[cache].row(index);
        quant::encode_kv_row(spec.format, values.data(), spec.width, spec.rope, row);
        std::vector<float> decoded(values.size());
        quant::decode_kv_row(spec.format, row, spec.width, spec.rope, decoded.data());
        states_[sequence]->caches[static_cast<size_t>(cache)][static_cast<size_t>(index)].assign(decoded.begin(),
                                                                                                 decoded.end());
    }

private:
    void fill_caches(const memory::SequenceCache& cache, oracle::OracleState& state) {
        for (size_t i = 0; i < plan.caches.size(); ++i) {
            const ops::CacheSpec& spec = plan.caches[i];
            const bool is_ring = spec.kind == ops::CacheSpec::Kind::kRing;
            const int64_t count = is_ring ? state.position : cache.max_tokens() / spec.ratio;
            state.caches[i].resize(static_cast<size_t>(count));
            std::vector<float> values(static_cast<size_t>(spec.width));
            for (int64_t r = 0; r < count; ++r) {
                for (float& x : values) x = number();
                if (is_ring && r < count - cache.views()[i].ring_rows) {
                    state.caches[i][static_cast<size_t>(r)].assign(values.size(), std::nan(""));  // long overwritten
                    continue;
                }
                std::byte* row = cache.views()[i].row(r);
                quant::encode_kv_row(spec.format, values.data(), spec.width, spec.rope, row);
                quant::decode_kv_row(spec.format, row, spec.width, spec.rope, values.data());
                state.caches[i][static_cast<size_t>(r)].assign(values.begin(), values.end());
            }
        }
    }

    template <typename Read>
    void compare(ops::Slot id, const oracle::OracleSlots& expected, double tolerance, Read read) {
        const auto& numbers = expected[static_cast<size_t>(id)];
        for (size_t j = 0; j < numbers.size(); ++j)
            add(static_cast<double>(read(stage->slot(id)[j])), numbers[j], tolerance,
                plan.slots[static_cast<size_t>(id)].name + " [" + std::to_string(j) + "]");
    }
    void compare_caches(double tolerance) {
        for (size_t q = 0; q < states_.size(); ++q)
            for (size_t i = 0; i < plan.caches.size(); ++i) {
                const ops::CacheSpec& spec = plan.caches[i];
                const ops::CacheView& view = caches_[q]->views()[i];
                const auto& rows = states_[q]->caches[i];
                const auto count = static_cast<int64_t>(rows.size());
                std::vector<float> row(static_cast<size_t>(spec.width));
                for (int64_t r = view.ring_rows > 0 ? std::max<int64_t>(0, count - view.ring_rows) : 0; r < count;
                     ++r) {
                    quant::decode_kv_row(spec.format, view.row(r), spec.width, spec.rope, row.data());
                    for (size_t c = 0; c < row.size(); ++c)
                        add(row[c], rows[static_cast<size_t>(r)][c], tolerance,
                            "cache " + spec.name + " of sequence " + std::to_string(q) + ", row " + std::to_string(r));
                }
            }
    }
    void add(double found, double expected, double tolerance, const std::string& where) {
        ++numbers_;
        if (std::abs(found - expected) <= tolerance * std::max(1.0, std::abs(expected))) return;
        if (wrong_++ == 0)
            first_wrong_ = where + ": " + std::to_string(found) + ", expected " + std::to_string(expected);
    }

    std::mt19937 random_{1};
    std::normal_distribution<float> normal_{0.0f, 1.0f};
    std::vector<std::unique_ptr<oracle::OracleState>> states_;
    std::vector<std::unique_ptr<memory::SequenceCache>> caches_;
    oracle::OracleSequences sequences_;
    std::unique_ptr<oracle::OracleBatch> batch_;
    int64_t numbers_ = 0, wrong_ = 0;
    std::string first_wrong_;
};

}  // namespace thermocline
