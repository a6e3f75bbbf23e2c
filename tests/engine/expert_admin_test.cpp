// Orders of whoever runs a server: what reaches the engine thread, and what is refused.
#include "src/engine/expert_admin.h"

#include "scheduler/placement_file.h"
#include "scheduler/routing_profile.h"
#include "src/base/error.h"
#include "src/base/file.h"

#include <filesystem>
#include <gtest/gtest.h>

namespace thermocline::engine {
namespace {

using Names = ExpertAdmin::Names;

class ExpertAdminTest : public ::testing::Test {
protected:
    ~ExpertAdminTest() override { std::filesystem::remove_all(folder_); }

    static std::filesystem::path new_folder() {
        const auto folder = std::filesystem::path(testing::TempDir()) / "expert_admin";
        std::filesystem::remove_all(folder);
        std::filesystem::create_directories(folder);
        return folder;
    }
    template <typename Work>
    static std::string refusal(Work work) {
        try {
            work();
        } catch (const Error& error) {
            return error.what();
        }
        return "(no error)";
    }
    void write_profile(const std::string& model) const {
        const scheduler::RoutingTrace trace{
            model, kLayers, {{.decode = true, .kind = "", .ids = {{3, 1, 3, 2}, {0, 2, 2, 3}}, .rows = 2}}};
        write_text(folder_ / "p.json", dump_json(to_json(scheduler::profile_of(trace))));
    }

    const std::vector<scheduler::RoutedLayer> kLayers = {{4, 2}, {4, 2}};
    const std::filesystem::path folder_ = new_folder();
    scheduler::RoutingWatch routing_{"m", kLayers};
    ExpertAdmin admin_{folder_, "m", routing_, 3};
};

TEST_F(ExpertAdminTest, PinsReachTheEngineOnce) {
    EXPECT_FALSE(admin_.take());
    EXPECT_EQ(admin_.pin({{1, 3}, {0, 2}}, {}), (Names{{0, 2}, {1, 3}}));
    EXPECT_EQ(admin_.pin({{0, 0}}, {{1, 3}}), (Names{{0, 0}, {0, 2}}));
    const auto orders = admin_.take();
    ASSERT_TRUE(orders);
    EXPECT_EQ(orders->pinned, (Names{{0, 0}, {0, 2}}));
    EXPECT_TRUE(orders->released.empty());
    EXPECT_FALSE(admin_.take());
    admin_.pin({}, {{0, 2}});
    EXPECT_EQ(admin_.take()->released, (Names{{0, 2}}));
}

TEST_F(ExpertAdminTest, PinsThatCannotBeAreRefusedWhole) {
    admin_.pin({{0, 1}}, {});
    EXPECT_NE(refusal([&] {
                  admin_.pin({{0, 0}, {2, 0}}, {});
              }).find("expert 2:0 cannot be pinned: the model has 2"),
              std::string::npos);
    EXPECT_NE(refusal([&] {
                  admin_.pin({{0, 0}, {1, 0}, {1, 1}}, {});
              }).find("4 experts are pinned, but there is room"),
              std::string::npos);
    EXPECT_NE(refusal([&] { admin_.pin({}, {{0, 2}}); }).find("expert 0:2 is not pinned"), std::string::npos);
    EXPECT_NE(refusal([&] { admin_.pin({{1, 0}, {1, 0}}, {}); }).find("expert 1:0 is named twice"), std::string::npos);
    EXPECT_NE(refusal([&] {
                  admin_.pin({}, {{0, 1}, {0, 1}});
              }).find("expert 0:1 is not pinned, or named twice"),
              std::string::npos);
    EXPECT_NE(refusal([&] { admin_.pin({{0, 1}}, {{0, 1}}); }).find("to be pinned and released"), std::string::npos);
    EXPECT_EQ(admin_.pin({}, {}), (Names{{0, 1}}));
    EXPECT_EQ(admin_.pin({{0, 1}}, {}), (Names{{0, 1}})) << "what is pinned already may be asked for again";
    ExpertAdmin without(folder_, "m", routing_, 0);
    EXPECT_NE(refusal([&] { without.pin({{0, 0}}, {}); }).find("there is no card"), std::string::npos);
}

TEST_F(ExpertAdminTest, PlacesByAProfileOrAPlacementOfThisModel) {
    write_profile("m");
    EXPECT_EQ(admin_.use_profile("p.json"), 3);
    const auto orders = admin_.take();
    ASSERT_TRUE(orders);
    EXPECT_EQ(orders->wanted, (Names{{0, 3}, {1, 2}, {0, 1}}));
    EXPECT_GT(orders->shares[0][3], orders->shares[0][1]);
    write_profile("other");
    EXPECT_NE(refusal([&] { admin_.use_profile("p.json"); }).find("is of other"), std::string::npos);
    EXPECT_NE(refusal([&] { admin_.use_profile("q.json"); }).find("q.json"), std::string::npos);
    for (const char* name : {"", "../p.json", ".p", "a/b", "/etc/passwd"})
        EXPECT_NE(refusal([&] { admin_.use_profile(name); }).find("expected a plain name"), std::string::npos) << name;

    const auto place = [&](const Names& resident) {
        write_text(folder_ / "x.json", dump_json(placement_json({.resident = resident}, "m", kLayers)));
        return admin_.use_placement("x.json");
    };
    EXPECT_EQ(place({{0, 1}, {1, 1}}), 2);
    EXPECT_EQ(admin_.take()->wanted, (Names{{0, 1}, {1, 1}}));
    EXPECT_NE(refusal([&] { place({{0, 0}, {0, 1}, {0, 2}, {0, 3}}); }).find("has room for 3"), std::string::npos);
    EXPECT_FALSE(admin_.take());
}

/// Layer 0 on a card with one slot, layer 1 on one with two, of which expert 1:3 has been there for good.
TEST_F(ExpertAdminTest, OfSeveralCardsEachHasItsOwnRoom) {
    ExpertAdmin admin(folder_, "m", routing_, {{0, 1, 1}, {1, 2, 2}}, {{1, 3}});
    EXPECT_EQ(admin.pin({{0, 1}, {1, 0}, {1, 2}, {1, 3}}, {}), (Names{{0, 1}, {1, 0}, {1, 2}, {1, 3}}));
    EXPECT_NE(refusal([&] {
                  admin.pin({{0, 2}}, {});
              }).find("2 experts are pinned, but there is room for 1"),
              std::string::npos);
    EXPECT_NE(refusal([&] { admin.pin({{2, 0}}, {}); }).find("cannot be pinned"), std::string::npos);
    write_profile("m");
    EXPECT_EQ(admin.use_profile("p.json"), 3);
    EXPECT_EQ(admin.take()->wanted, (Names{{0, 3}, {1, 2}, {1, 0}}));  // the likeliest of either card
    const auto place = [&](const Names& resident) {
        write_text(folder_ / "x.json", dump_json(placement_json({.resident = resident}, "m", kLayers)));
        return admin.use_placement("x.json");
    };
    EXPECT_EQ(place({{0, 0}, {1, 1}, {1, 2}}), 3);
    EXPECT_NE(refusal([&] { place({{0, 0}, {0, 1}}); }).find("has room for 1"), std::string::npos);
}

TEST_F(ExpertAdminTest, RecordsFromNowOn) {
    scheduler::RoutingRecord& record = *routing_.record();
    const int32_t token = 0;
    const scheduler::Part part{nullptr, {&token, 1}, 1};
    const auto pass = [&](std::vector<std::vector<int32_t>> ids) {
        record.ids = std::move(ids);
        routing_.passed({&part, 1}, {});
    };
    EXPECT_EQ(admin_.stop_recording(), 0);
    pass({{0, 1}, {0, 1}});
    admin_.record("t.jsonl");
    EXPECT_NE(refusal([&] { admin_.record("u.jsonl"); }).find("being recorded already"), std::string::npos);
    pass({{2, 1}, {3, 1}});
    pass({{2, 3}, {3, 0}});
    EXPECT_EQ(admin_.stop_recording(), 2);
    pass({{0, 1}, {0, 1}});
    const scheduler::RoutingTrace trace = scheduler::read_routing_trace((folder_ / "t.jsonl").string());
    ASSERT_EQ(trace.passes.size(), 2u);
    EXPECT_EQ(trace.passes[1].ids, (std::vector<std::vector<int32_t>>{{2, 3}, {3, 0}}));
    EXPECT_NE(refusal([&] { admin_.record("t.jsonl"); }).find("exists already"), std::string::npos);
}

}  // namespace
}  // namespace thermocline::engine
