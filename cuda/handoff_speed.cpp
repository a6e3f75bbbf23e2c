#include "cuda/handoff_speed.h"

#include "cuda/run.h"
#include "src/base/error.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <thread>

namespace thermocline::cuda {

namespace {

using Clock = std::chrono::steady_clock;

constexpr int kRounds = 100;  // of one graph: about two for each layer of a large model
constexpr int kPasses = 7;    // after one that warms up
constexpr int kLooks = 2000;  // before the thread looks at the clock and lets others run
constexpr std::chrono::seconds kPatience(1);

/// Both flags of a round.
struct Round {
    Flag asked, answered;
};

void raise(Flag& flag) { std::atomic_ref(flag.value).store(1, std::memory_order_release); }
bool is_raised(Flag& flag) { return std::atomic_ref(flag.value).load(std::memory_order_acquire) != 0; }

void await(Device& device, Flag& flag) {
    const auto deadline = Clock::now() + kPatience;
    while (true) {
        for (int looks = 0; looks < kLooks; ++looks)
            if (is_raised(flag)) return;
        if (Clock::now() > deadline)
            fail("GPU ", device.info().index, ": a flag that a kernel raised in host memory was not seen within ",
                 kPatience.count(), " s (a graph that waits by ", name_of(device.flag_wait()), ")");
        std::this_thread::yield();
    }
}

/// Seconds from the first flag of the card to its last: the start of the graph does not count.
double answer_all(Device& device, std::span<Round> rounds) {
    await(device, rounds.front().asked);
    const auto start = Clock::now();
    for (size_t i = 0; i + 1 < rounds.size(); ++i) {
        raise(rounds[i].answered);
        await(device, rounds[i + 1].asked);
    }
    const double seconds = std::chrono::duration<double>(Clock::now() - start).count();
    raise(rounds.back().answered);
    return seconds;
}

}  // namespace

double measure_handoff_us(Device& device) {
    const PinnedMemory memory(device, kRounds * int64_t{sizeof(Round)});
    const std::span<Round> rounds(memory.as<Round>(), kRounds);
    const std::unique_ptr<Stream> stream = device.new_stream();
    stream->begin_recording();
    for (Round& round : rounds) {
        raise_flag(*stream, &round.asked);
        stream->wait_for(&round.answered);
    }
    const std::unique_ptr<Graph> graph = stream->end_recording();
    std::array<double, kPasses + 1> seconds = {};
    for (double& pass : seconds) {
        std::fill(rounds.begin(), rounds.end(), Round());
        stream->play(*graph);
        try {
            pass = answer_all(device, rounds);
        } catch (const Error&) {
            for (Round& round : rounds) raise(round.answered);  // so that the stream ends
            throw;
        }
        stream->wait(kPatience);
    }
    auto* const middle = seconds.begin() + 1 + kPasses / 2;
    std::nth_element(seconds.begin() + 1, middle, seconds.end());
    return *middle * 1e6 / (kRounds - 1);
}

std::vector<HandoffSpeed> measure_handoffs(const std::function<std::unique_ptr<Device>(FlagWait)>& open) {
    std::vector<HandoffSpeed> speeds;
    for (const FlagWait way : kFlagWaits) {
        HandoffSpeed& speed = speeds.emplace_back(HandoffSpeed{.way = way});
        try {
            speed.us = measure_handoff_us(*open(way));
        } catch (const Error& error) {
            speed.why_not = error.what();
        }
    }
    if (std::ranges::all_of(speeds, [](const HandoffSpeed& speed) { return speed.us == 0; }))
        throw Error(speeds.front().why_not);
    return speeds;
}

const HandoffSpeed& used(const std::vector<HandoffSpeed>& speeds) {
    return *std::ranges::find_if(speeds, [](const HandoffSpeed& speed) { return speed.us > 0; });
}

}  // namespace thermocline::cuda
