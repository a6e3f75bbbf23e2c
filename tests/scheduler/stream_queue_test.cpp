#include "scheduler/stream_queue.h"

#include <algorithm>
#include <gtest/gtest.h>
#include <random>

namespace thermocline::scheduler {
namespace {

/// Plays a queue against the clock: how long both sides together take.
struct Played {
    double seconds = 0;
    size_t by_link = 0, by_cpu = 0;
};
Played play(const std::vector<StreamQueue::Item>& items, const StreamCosts& costs) {
    StreamQueue queue;
    queue.fill(items, costs);
    Played played;
    std::vector<double> arrivals, ends;  // on the card
    double cpu = 0, link = 0, card = 0;
    const auto on_their_way = [&] { return std::ranges::count_if(arrivals, [&](double at) { return at > cpu; }); };
    const auto card_busy = [&] {
        double busy = 0;
        for (size_t i = 0; i < ends.size(); ++i)
            if (ends[i] > cpu) busy += costs.card(queue.all()[i].pairs);
        return busy;
    };
    while (!queue.left().empty()) {
        for (int64_t waiting = on_their_way(); queue.link_wants(waiting, card_busy()); ++waiting) {
            const size_t turn = queue.take_for_link();
            link = std::max(link, cpu) + costs.link;
            arrivals.push_back(link);
            card = std::max(card, link) + costs.card(queue.all()[turn].pairs);
            ends.push_back(card);
            ++played.by_link;
        }
        const int64_t waiting = on_their_way();
        const auto now = queue.take_for_cpu(waiting, card_busy());
        for (const StreamQueue::Item& item : now) cpu += costs.cpu(item.pairs);
        played.by_cpu += now.size();
        if (!now.empty() || queue.left().empty()) continue;
        // The CPU waits for the next to come, or to be done.
        EXPECT_TRUE(waiting > 0 || card > cpu) << "neither side goes on";
        if (waiting == 0 && card <= cpu) break;
        cpu = *std::ranges::find_if(waiting > 0 ? arrivals : ends, [&](double at) { return at > cpu; });
    }
    played.seconds = std::max({cpu, link, card});
    return played;
}

std::vector<StreamQueue::Item> random_items(std::mt19937& random, int32_t count, int32_t most) {
    std::vector<StreamQueue::Item> items;
    for (int32_t e = 0; e < count; ++e) {
        const double u = static_cast<double>(random() % 1000 + 1) / 1000;
        items.push_back({e, static_cast<int32_t>(u * u * u * most) + 1});
    }
    return items;
}

TEST(StreamQueue, TheHottestComeAndTheColdestStay) {
    StreamQueue queue;
    queue.fill(std::vector<StreamQueue::Item>{{0, 5}, {1, 90}, {2, 1}, {3, 90}, {4, 40}}, {10, 1, 1});
    EXPECT_TRUE(queue.link_wants(0));
    EXPECT_EQ(queue.all()[queue.take_for_link()].expert, 1);
    const auto cold = queue.take_for_cpu(1);
    ASSERT_EQ(cold.size(), 2u);  // six units of work, the next would be forty more
    EXPECT_EQ(cold[0].expert, 0);
    EXPECT_EQ(cold[1].expert, 2);
    EXPECT_EQ(queue.left().size(), 2u);
    EXPECT_TRUE(queue.take_for_cpu(1).empty());  // the link has the rest in thirty
}

TEST(StreamQueue, FewRowsAreNotWorthATransfer) {
    const std::vector<StreamQueue::Item> items = {{0, 1}, {1, 1}, {2, 2}};
    EXPECT_EQ(play(items, {239, 36, 5}).by_link, 0u);
    EXPECT_EQ(play(items, {239, 36, 5, false}).by_cpu, 0u);  // unless the CPU has no part in it
    EXPECT_EQ(play(items, {239, 36, 5, false}).by_link, 3u);
}

/// Never much slower than either side alone, and near what both can do together at best.
TEST(StreamQueue, NeverSlowerThanEitherSideAlone) {
    std::mt19937 random(5);
    for (int i = 0; i < 400; ++i) {
        const auto items = random_items(random, static_cast<int32_t>(random() % 250 + 1), 1 << random() % 11);
        StreamCosts costs{239, 20.0 + static_cast<double>(random() % 300), static_cast<double>(random() % 12) + 0.3};
        double all_cpu = 0;
        for (const StreamQueue::Item& item : items) all_cpu += costs.cpu(item.pairs);
        const double all_link = costs.link * static_cast<double>(items.size());
        const Played both = play(items, costs);
        EXPECT_EQ(both.by_link + both.by_cpu, items.size());
        EXPECT_LE(both.seconds, 1.0001 * std::min(all_cpu, all_link)) << i;
        // The best division by a cut through the sorted list.
        StreamQueue sorted;
        sorted.fill(items, costs);
        double best = all_cpu, cpu = all_cpu;
        for (size_t cut = 0; cut < items.size(); ++cut) {
            cpu -= costs.cpu(sorted.all()[cut].pairs);
            best = std::min(best, std::max(cpu, costs.link * static_cast<double>(cut + 1)));
        }
        EXPECT_LE(both.seconds, 1.05 * best + 2 * costs.link) << i;
    }
}

/// A card may be slower than its link, or than the CPU.
TEST(StreamQueue, ASlowCardGetsLittle) {
    std::mt19937 random(6);
    size_t sent = 0;
    for (int i = 0; i < 400; ++i) {
        const auto items = random_items(random, static_cast<int32_t>(random() % 100 + 1), 1 << random() % 9);
        StreamCosts costs{20, 20.0 + static_cast<double>(random() % 60), static_cast<double>(random() % 12) + 0.3};
        costs.card_expert = static_cast<double>(random() % 300);
        costs.card_pair = static_cast<double>(random() % 60);
        double all_cpu = 0, longest = 0;
        for (const StreamQueue::Item& item : items) {
            all_cpu += costs.cpu(item.pairs);
            longest = std::max(longest, costs.card(item.pairs));
        }
        const Played both = play(items, costs);
        EXPECT_EQ(both.by_link + both.by_cpu, items.size());
        EXPECT_LE(both.seconds, 1.0001 * all_cpu + costs.link) << i;
        sent += both.by_link;
    }
    EXPECT_GT(sent, 100u);
    const std::vector<StreamQueue::Item> items = {{0, 10}, {1, 20}, {2, 30}};
    EXPECT_EQ(play(items, {1, 30, 1, true, 1000, 1}).by_link, 0u);
}

}  // namespace
}  // namespace thermocline::scheduler
