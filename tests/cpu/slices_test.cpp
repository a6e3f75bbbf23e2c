// How chunks of experts are shared out among workers: everything once, and what is brought near lands where it is read.
#include "cpu/slices.h"

#include <atomic>
#include <gtest/gtest.h>
#include <map>
#include <mutex>
#include <set>
#include <tuple>
#include <vector>

namespace thermocline::cpu {
namespace {

quant::Matrix cut(int64_t rows, int64_t slices) {
    quant::Matrix w;
    w.rows = rows;
    w.layout = quant::Layout::kStrips;
    w.slice_strips = rows / quant::kStripRows / slices;
    return w;
}

std::vector<int> any_cpus(int count) { return std::vector<int>(static_cast<size_t>(count), 0); }

TEST(Slices, RunsCoverEveryChunkOnceInEitherOrder) {
    for (const bool chunks_first : {false, true})
        for (const int64_t times : {1, 3, 6}) {
            std::multiset<std::pair<int64_t, int64_t>> seen;
            for (int64_t at = 0; at < times * 7; at += 4)
                for_runs(times, 7, chunks_first, at, std::min(at + 4, times * 7),
                         [&](int64_t thing, int64_t begin, int64_t end) {
                             EXPECT_LT(begin, end);
                             for (; begin < end; ++begin) seen.insert({thing, begin});
                         });
            EXPECT_EQ(std::ssize(seen), times * 7);
            EXPECT_EQ(std::ssize(std::set(seen.begin(), seen.end())), times * 7);
        }
}

/// With chunks first, a worker's own chunks of one thing are nearly those that it gets of any number of things.
TEST(Slices, OwnChunksDoNotDependOnHowManyThingsThereAre) {
    for (const int nodes : {1, 2}) {
        std::vector<int> places;
        for (int worker = 0; worker < 4; ++worker) places.push_back(worker * nodes / 4);
        Workers workers(any_cpus(4), places);
        const Slices slices(cut(32 * 24, nodes), 32);
        std::map<std::pair<int64_t, int64_t>, int> owner;
        for (int worker = 0; worker < 4; ++worker)
            own_slices(workers, worker, slices, [&](int64_t slice, int64_t begin, int64_t end) {
                for (; begin < end; ++begin) EXPECT_TRUE(owner.insert({{slice, begin}, worker}).second);
            });
        EXPECT_EQ(std::ssize(owner), 24);
        for (const int64_t times : {1, 2, 5}) {
            // The static parts, without anybody's help: those of split() are pieces of them.
            for (int worker = 0; worker < 4; ++worker) {
                const int64_t node = nodes == 1 ? 0 : worker / 2, items = slices.chunks_of(node) * times;
                const Workers::Part part = workers.part_in_node(worker, items, 1);
                for_runs(times, slices.chunks_of(node), true, part.begin, part.end,
                         [&](int64_t, int64_t begin, int64_t end) {
                             for (; begin < end; ++begin) EXPECT_EQ((owner[{node, begin}]), worker) << times;
                         });
            }
        }
    }
}

TEST(Slices, SplitCoversEverything) {
    for (const int nodes : {1, 2}) {
        Workers workers(any_cpus(4), nodes == 1 ? std::vector<int>() : std::vector<int>{0, 0, 1, 1});
        for (const int64_t cuts : {1, 2}) {
            const Slices slices(cut(32 * 10, cuts), 32);
            std::mutex mutex;
            std::multiset<std::tuple<int64_t, int64_t>> seen;
            split_slices(workers, slices, 3, 2, [&](int64_t slice, int64_t begin, int64_t end, int) {
                const std::lock_guard lock(mutex);
                for (; begin < end; ++begin) seen.insert({slice, begin});
            });
            EXPECT_EQ(std::ssize(seen), 30);
            EXPECT_EQ(std::ssize(std::set(seen.begin(), seen.end())), 30);
        }
    }
}

}  // namespace
}  // namespace thermocline::cpu
