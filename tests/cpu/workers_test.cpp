#include "cpu/workers.h"

#include "cpu/slices.h"
#include "cpu/worker_watch.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <future>
#include <gtest/gtest.h>
#include <numeric>
#include <thread>
#include <vector>

namespace thermocline::cpu {
namespace {

/// More workers than this machine has CPUs is legal: CPU ids that do not exist are not pinned.
std::vector<int> cpus(int count) {
    std::vector<int> list(static_cast<size_t>(count));
    std::iota(list.begin(), list.end(), 0);
    return list;
}

TEST(Workers, EachRunsEveryWorkerOnce) {
    for (const int count : {1, 2, 5, 16}) {
        Workers workers(cpus(count));
        ASSERT_EQ(workers.count(), count);
        std::vector<int> calls(static_cast<size_t>(count));  // no atomics: each() must order the writes
        for (int job = 0; job < 100; ++job) {
            workers.each([&](int worker) { ++calls[static_cast<size_t>(worker)]; });
        }
        EXPECT_EQ(calls, std::vector<int>(static_cast<size_t>(count), 100));
    }
}

TEST(Workers, AnEmptyListIsOneWorker) {
    Workers workers({});
    EXPECT_EQ(workers.count(), 1);
    int calls = 0;
    workers.each([&](int worker) { calls += 1 + worker; });
    EXPECT_EQ(calls, 1);
}

TEST(Workers, TheCallerIsWorkerZero) {
    Workers workers(cpus(3));
    std::thread::id ids[3];
    workers.each([&](int worker) { ids[worker] = std::this_thread::get_id(); });
    EXPECT_EQ(ids[0], std::this_thread::get_id());
    EXPECT_NE(ids[1], ids[0]);
    EXPECT_NE(ids[2], ids[1]);
}

TEST(Workers, ParallelSum) {
    std::vector<int64_t> numbers(100001);
    std::iota(numbers.begin(), numbers.end(), 0);
    for (const int count : {1, 2, 3, 8}) {
        Workers workers(cpus(count));
        std::vector<int64_t> sums(static_cast<size_t>(count));
        workers.split(static_cast<int64_t>(numbers.size()), 1, [&](int64_t begin, int64_t end, int worker) {
            int64_t& sum = sums[static_cast<size_t>(worker)];
            sum = std::accumulate(numbers.begin() + begin, numbers.begin() + end, sum);
        });
        EXPECT_EQ(std::accumulate(sums.begin(), sums.end(), int64_t{0}), int64_t{100000} * 100001 / 2);
    }
}

TEST(Workers, SplitCoversEveryItemOnceAndRespectsTheGrain) {
    Workers workers(cpus(4));
    for (const int64_t items : {0, 1, 3, 4, 5, 32, 63, 64, 65, 1000}) {
        for (const int64_t grain : {1, 7, 16, 2000}) {
            std::vector<int> seen(static_cast<size_t>(items));
            std::atomic<int> pieces = 0;
            const int64_t parts = std::clamp<int64_t>((items + grain - 1) / grain, 1, workers.count());
            workers.split(items, grain, [&](int64_t begin, int64_t end, int) {
                ++pieces;
                EXPECT_GE(end - begin, std::min(items / parts, grain));
                for (int64_t i = begin; i < end; ++i) ++seen[static_cast<size_t>(i)];
            });
            EXPECT_EQ(std::count(seen.begin(), seen.end(), 1), items);
            EXPECT_LE(pieces, std::max<int64_t>(1, (items + grain - 1) / grain));
        }
    }
}

TEST(Workers, ThePartOfASlowWorkerIsDoneByItsNeighbours) {
    Workers workers(cpus(2));
    std::atomic<int64_t> done = 0;
    std::atomic<bool> begun = false;
    workers.split(800, 1, [&](int64_t begin, int64_t end, int worker) {
        const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(20);
        const auto wait_until = [&](auto true_at_last) {
            while (!true_at_last() && std::chrono::steady_clock::now() < deadline) std::this_thread::yield();
        };
        if (worker == 1) {  // stays in its first piece until the other has done all the rest
            begun = true;
            wait_until([&] { return done == 800 - (end - begin); });
            EXPECT_EQ(done, 800 - (end - begin));
        } else {
            wait_until([&] { return begun.load(); });
        }
        done += end - begin;
    });
    EXPECT_TRUE(begun);
    EXPECT_EQ(done, 800);
}

TEST(Workers, EveryNodeWorksOnItsOwnItems) {
    const std::vector<int> nodes = {0, 0, 0, 1, 1, 2};
    Workers workers(cpus(6), nodes);
    ASSERT_EQ(workers.node_count(), 3);
    const int64_t items[] = {100, 0, 7};
    std::vector<std::atomic<int>> seen(107);
    workers.split_nodes([&](int node) { return items[node]; }, 2,
                        [&](int node, int64_t begin, int64_t end, int worker) {
                            EXPECT_EQ(nodes[static_cast<size_t>(worker)], node);
                            for (int64_t i = begin; i < end; ++i) ++seen[static_cast<size_t>(node == 0 ? i : 100 + i)];
                        });
    for (const std::atomic<int>& count : seen) EXPECT_EQ(count, 1);
}

TEST(Workers, EverySliceIsForItsNodeOrElseForAll) {
    quant::Matrix w;
    w.layout = quant::Layout::kStrips;
    w.rows = 240;
    w.slice_strips = 4;  // 64, 64, 64 and 48 rows: 2, 2, 2 and 2 chunks of 32
    const Slices slices(w, 32);
    constexpr int64_t kTimes = 5;
    const std::vector<std::vector<int>> places = {{0}, {0, 0, 0}, {0, 1}, {0, 0, 1, 2, 3}, {0, 1, 2, 3, 4}};
    for (const std::vector<int>& nodes : places) {
        Workers workers(cpus(static_cast<int>(nodes.size())), nodes);
        std::vector<int> seen(static_cast<size_t>(4 * 2 * kTimes)), strangers(nodes.size());
        split_slices(workers, slices, kTimes, 1, [&](int64_t slice, int64_t begin, int64_t end, int worker) {
            for (int64_t i = begin; i < end; ++i) ++seen[static_cast<size_t>(slice * 2 * kTimes + i)];
            const auto who = static_cast<size_t>(worker);
            strangers[who] += nodes[who] != slice;
        });
        EXPECT_EQ(seen, std::vector<int>(seen.size(), 1)) << nodes.size() << " workers";
        if (workers.node_count() >= 4) {
            EXPECT_EQ(strangers, std::vector<int>(nodes.size(), 0)) << nodes.size() << " workers";
        }
    }
}

TEST(Workers, SeveralGroupsNestedInOneProcess) {
    Workers outer(cpus(3));
    std::vector<std::unique_ptr<Workers>> inner;
    for (int i = 0; i < 3; ++i) inner.push_back(std::make_unique<Workers>(cpus(2)));
    std::atomic<int> total = 0;
    for (int round = 0; round < 50; ++round) {
        outer.each([&](int worker) { inner[static_cast<size_t>(worker)]->each([&](int) { ++total; }); });
    }
    EXPECT_EQ(total, 50 * 3 * 2);
}

TEST(Workers, AJobAfterParkingStillRuns) {
    Workers workers(cpus(3));
    for (int round = 0; round < 5; ++round) {
        std::this_thread::sleep_for(std::chrono::milliseconds(20));  // long enough for every worker to park
        int calls[3] = {};
        workers.each([&](int worker) {
            if (worker == 2) std::this_thread::sleep_for(std::chrono::milliseconds(20));  // and for the caller
            ++calls[worker];
        });
        EXPECT_EQ(calls[0] + calls[1] + calls[2], 3);
    }
}

TEST(Workers, RapidCreationAndDestruction) {
    std::atomic<int> calls = 0;
    for (int i = 0; i < 300; ++i) {
        Workers workers(cpus(1 + i % 4));
        if (i % 3 != 0) workers.each([&](int) { ++calls; });
    }
    EXPECT_GT(calls, 300);
}

TEST(WorkerWatch, NamesAWorkerThatHangs) {
    const std::vector<int> places = cpus(3);
    Workers workers(places);
    std::promise<std::string> said;
    const WorkerWatch watch(workers, std::chrono::milliseconds(200),
                            [&](const std::string& why) { said.set_value(why); });
    std::string why;
    workers.each([&](int worker) {
        if (worker == 1) why = said.get_future().get();
    });
    EXPECT_NE(why.find("worker 1 on CPU 1 "), std::string::npos) << why;
    EXPECT_NE(why.find("not gone on for 0 s"), std::string::npos) << why;
    EXPECT_TRUE(workers.standing().late.empty());
}

TEST(WorkerWatch, NamesTheOnlyWorker) {
    for (const int64_t items : {1, 50}) {  // one of several has the first alone
        Workers workers(items == 1 ? cpus(2) : cpus(1));
        std::promise<std::string> said;
        const WorkerWatch watch(workers, std::chrono::milliseconds(200),
                                [&](const std::string& why) { said.set_value(why); });
        std::string why;
        workers.split(items, 1, [&](int64_t, int64_t end, int) {
            if (end == items) why = said.get_future().get();
        });
        EXPECT_NE(why.find("worker 0 on CPU "), std::string::npos) << why;
        EXPECT_TRUE(workers.standing().late.empty());
    }
}

TEST(WorkerWatch, WhoGoesOnOrHasNothingToDoIsLeftAlone) {
    Workers workers(cpus(2));
    std::atomic<int> calls = 0;
    // A thread that gets no time at all for a second looks like one that hangs.
    const WorkerWatch watch(workers, std::chrono::seconds(1), [&](const std::string&) { ++calls; });
    workers.split(16, 1, [&](int64_t, int64_t, int) { std::this_thread::sleep_for(std::chrono::milliseconds(150)); });
    std::this_thread::sleep_for(std::chrono::milliseconds(1200));
    EXPECT_EQ(calls, 0);
    const WorkerWatch never(workers, {}, [&](const std::string&) { ++calls; });
}

TEST(Workers, ManyTinyJobs) {
    constexpr int kJobs = 100000;
    const int count = std::max(2, std::min(4, static_cast<int>(std::thread::hardware_concurrency())));
    Workers workers(cpus(count));
    std::vector<int64_t> sums(static_cast<size_t>(count) * 16);
    for (int job = 0; job < kJobs; ++job) {
        workers.each([&](int worker) { sums[static_cast<size_t>(worker) * 16] += job; });
    }
    for (int worker = 0; worker < count; ++worker) {
        EXPECT_EQ(sums[static_cast<size_t>(worker) * 16], int64_t{kJobs} * (kJobs - 1) / 2);
    }
}

}  // namespace
}  // namespace thermocline::cpu
