// What Executor::record_routing leaves: the experts of every layer for every row, and the logits as they are without.
#include "tests/model/engine_fixture.h"

#include <algorithm>
#include <cstring>
#include <gtest/gtest.h>
#include <set>

namespace thermocline {
namespace {

TEST(RoutingRecord, HoldsTheExpertsOfEveryLayerAndRow) {
    const auto model = model::load_model(THERMOCLINE_SOURCE_DIR "/models/demo", {});
    Engine engine(*model);
    const std::vector<int32_t> tokens = {5, 600, 7, 1234, 9};
    const Logits plain = engine.feed(*engine.new_sequence(), tokens, 5);
    scheduler::RoutingRecord record;
    engine.trunk.record_routing(&record);
    const Logits recorded = engine.feed(*engine.new_sequence(), tokens, 5);
    for (size_t t = 0; t < tokens.size(); ++t) EXPECT_EQ(recorded[t], plain[t]);

    size_t layer = 0;
    std::set<int32_t> learned;
    for (const ops::Step& step : model->trunk.steps) {
        const auto* route = std::get_if<ops::Route>(&step);
        if (route == nullptr) continue;
        ASSERT_LT(layer, record.ids.size());
        const std::vector<int32_t>& ids = record.ids[layer++];
        const auto top_k = static_cast<size_t>(route->top_k);
        ASSERT_EQ(ids.size(), tokens.size() * top_k);
        for (size_t t = 0; t < tokens.size(); ++t) {
            const std::vector<int32_t> row(ids.begin() + static_cast<long>(t * top_k),
                                           ids.begin() + static_cast<long>((t + 1) * top_k));
            EXPECT_EQ(std::set<int32_t>(row.begin(), row.end()).size(), top_k);
            EXPECT_TRUE(*std::min_element(row.begin(), row.end()) >= 0 &&
                        *std::max_element(row.begin(), row.end()) < route->experts);
            if (route->table == ops::kNone) {
                learned.insert(row.begin(), row.end());
                continue;
            }
            // Layers that route by hash say beforehand what they choose.
            const std::vector<int32_t>& table = model->trunk.tables[static_cast<size_t>(route->table)].values;
            EXPECT_EQ(std::memcmp(row.data(), table.data() + static_cast<size_t>(tokens[t]) * top_k, 4 * top_k), 0);
        }
    }
    EXPECT_EQ(layer, record.ids.size());
    EXPECT_GT(learned.size(), 4u);

    // What is foretold changes nothing, is exact by token and much better than chance (a quarter) by score.
    record.wants_foretold = true;
    EXPECT_EQ(engine.feed(*engine.new_sequence(), tokens, 5), plain);
    ASSERT_EQ(record.foretold.size(), record.ids.size());
    EXPECT_EQ(record.foretold[0], record.ids[0]);
    EXPECT_EQ(record.foretold[1], record.ids[1]);
    for (size_t i = 2; i < record.ids.size(); ++i) {
        int right = 0;
        for (size_t at = 0; at < record.ids[i].size(); ++at) {
            const auto row = record.foretold[i].begin() + static_cast<long>(at / 4 * 4);
            right += std::find(row, row + 4, record.ids[i][at]) != row + 4;
        }
        EXPECT_GE(right, 8) << i;  // of 20
        EXPECT_LT(right, 20) << i;
    }

    engine.trunk.record_routing(nullptr);
    record.ids.clear();
    engine.feed(*engine.new_sequence(), tokens, 5);
    EXPECT_TRUE(record.ids.empty());
}

}  // namespace
}  // namespace thermocline
