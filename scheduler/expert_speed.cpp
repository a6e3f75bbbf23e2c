#include "scheduler/expert_speed.h"

#include "scheduler/cost_model.h"
#include "scheduler/printed.h"
#include "src/base/check.h"

#include <algorithm>
#include <chrono>
#include <limits>
#include <thread>
#include <vector>

namespace thermocline::scheduler {

namespace {

constexpr std::chrono::minutes kPatience(1);
constexpr int kTimes = 3;

/// The least of several.
template <typename Work>
double seconds_of(Work work, int times = kTimes) {
    double least = std::numeric_limits<double>::infinity();
    for (int i = 0; i < times; ++i) {
        const auto began = std::chrono::steady_clock::now();
        work(i);
        least = std::min(least, std::chrono::duration<double>(std::chrono::steady_clock::now() - began).count());
    }
    return least;
}

/// Experts of each set that lie on the card, as many as a row may choose.
std::vector<std::vector<int32_t>> some_residents(std::span<const Handoff> handoffs, const GpuExperts& experts) {
    std::vector<std::vector<int32_t>> of_set(handoffs.size());
    for (const ExpertName& name : experts.resident())
        for (size_t i = 0; i < handoffs.size(); ++i)
            if (handoffs[i].step->experts == name.set && std::ssize(of_set[i]) < handoffs[i].step->top_k)
                of_set[i].push_back(name.expert);
    return of_set;
}

/// All layers one after the other, the choices of every row being up to `most` different residents.
void play_on_card(std::span<const Handoff> handoffs, const cuda::Frame& f,
                  const std::vector<std::vector<int32_t>>& residents, size_t most) {
    for (size_t i = 0; i < handoffs.size(); ++i) {
        if (residents[i].empty()) continue;
        const ops::Experts& step = *handoffs[i].step;
        const cuda::HostJob& to = handoffs[i].to;
        const int64_t pairs = f.batch.rows * step.top_k;
        for (int64_t k = 0; k < pairs; ++k)
            to.chosen[k] = residents[i][static_cast<size_t>(k % step.top_k) % std::min(most, residents[i].size())];
        f.stream.copy(f.slot(step.ids), to.chosen, pairs * 4);
        cuda::send_job(step, f, to);
        cuda::run(step, f);
    }
    f.stream.wait(kPatience);
}

/// Experts of each set that the CPU has.
std::vector<std::vector<int32_t>> on_host_of(std::span<const Handoff> handoffs, const ops::Plan& plan,
                                             const GpuExperts& experts) {
    std::vector<std::vector<int32_t>> of_set;
    for (const Handoff& handoff : handoffs) {
        std::vector<int32_t>& there = of_set.emplace_back();
        const auto& set = plan.experts[static_cast<size_t>(handoff.step->experts)];
        for (int32_t e = 0; e < std::ssize(set.w1); ++e)
            if (experts.on_host({handoff.step->experts, e})) there.push_back(e);
    }
    return of_set;
}

/// The same on the CPU: `rows` rows choose the same `count` experts each, others with every call.
void play_on_host(std::span<const Handoff> handoffs, const cpu::Frame& f,
                  const std::vector<std::vector<int32_t>>& there, int64_t rows, int32_t count, int number) {
    for (size_t i = 0; i < handoffs.size(); ++i) {
        if (there[i].empty()) continue;
        const ops::Experts& step = *handoffs[i].step;
        for (int64_t t = 0; t < f.batch.rows(); ++t)
            for (int32_t k = 0; k < step.top_k; ++k)
                f.int_row(step.ids, t)[k] =
                    t < rows && k < count ? there[i][static_cast<size_t>(number * step.top_k + k) % there[i].size()]
                                          : -1;
        cpu::run(step, f);
    }
}

double handoff_seconds(const Handoff& handoff, const cuda::Frame& f) {
    return seconds_of([&](int) {
        handoff.to.job->value = handoff.to.done->value = 0;
        cuda::send_job(*handoff.step, f, handoff.to);
        f.stream.wait_for(handoff.to.done);
        const auto deadline = std::chrono::steady_clock::now() + kPatience;
        while (flag_of(handoff.to.job) == 0 && std::chrono::steady_clock::now() < deadline) std::this_thread::yield();
        raise(handoff.to.done);
        f.stream.wait(kPatience);
    });
}

}  // namespace

double ExpertSpeed::cpu(int64_t pairs) const { return std::max(cpu_expert, static_cast<double>(pairs) * cpu_pair); }

double ExpertSpeed::card(double pairs) const { return std::max(card_expert, pairs * card_pair); }

double ExpertSpeed::card_rest_of(int64_t rows) const {
    return card_expert > 0 ? card_rest / card_expert * card(static_cast<double>(rows)) : 0.0;
}

cuda::Balance ExpertSpeed::balance(int64_t rows, double pairs) const {
    const auto us = [](double seconds) { return static_cast<float>(seconds * 1e6); };
    return {us(card(pairs)), us(card_rest_of(rows)), us(cpu_expert), us(cpu_pair), us(cpu_rest)};
}

bool ExpertSpeed::cpu_takes_all(int64_t rows, int64_t pairs, int64_t experts) const {
    const double most = cpu_rest + static_cast<double>(experts) * cpu_expert + static_cast<double>(pairs) * cpu_pair;
    return known() && most < card_rest_of(rows) + card_expert;
}

std::string ExpertSpeed::text() const {
    return printed(
        "an expert takes %.1f us on the card (%.2f us a row), %.1f us on the CPU (%.2f us a row), %.1f us over the "
        "link; a job for the CPU %.1f us",
        card_expert * 1e6, card_pair * 1e6, cpu_expert * 1e6, cpu_pair * 1e6, link * 1e6, cpu_rest * 1e6);
}

ExpertSpeed measure_experts(std::span<const Handoff> handoffs, const cpu::Frame& on_host, const GpuExperts& experts) {
    const auto there = on_host_of(handoffs, on_host.plan, experts);
    const auto layers = static_cast<double>(
        std::count_if(there.begin(), there.end(), [](const auto& of_set) { return !of_set.empty(); }));
    CHECK(layers > 0);
    const int64_t rows = on_host.batch.rows();
    const ops::Experts& first = *handoffs.front().step;
    for (const ops::Slot slot : {first.x, first.weights})
        std::fill_n(on_host.slot(slot), rows * on_host.cols(slot), 0.0f);
    const double one = seconds_of([&](int i) { play_on_host(handoffs, on_host, there, 1, 1, i); }) / layers;
    const double more = seconds_of([&](int i) { play_on_host(handoffs, on_host, there, 1, first.top_k, i); }) / layers;
    const double many = seconds_of([&](int i) { play_on_host(handoffs, on_host, there, rows, 1, i); }) / layers;

    ExpertSpeed speed;
    speed.cpu_expert = first.top_k > 1 ? std::max(more - one, 0.02 * one) / (first.top_k - 1) : one;
    speed.cpu_rest = std::max(0.0, one - speed.cpu_expert);
    speed.cpu_pair = std::max(0.0, many - speed.cpu_rest) / static_cast<double>(rows);
    return speed;
}

ExpertSpeed measure_experts(std::span<const Handoff> handoffs, const cuda::Frame& on_card, const cuda::Frame& many,
                            const cpu::Frame& on_host, const GpuExperts& experts) {
    ExpertSpeed speed = measure_experts(handoffs, on_host, experts);
    const int64_t rows = on_host.batch.rows();
    const ops::Experts& first = *handoffs.front().step;
    for (const ops::Slot slot : {first.x, first.weights})
        on_card.stream.copy(on_card.slot(slot), on_host.slot(slot), rows * on_host.cols(slot) * 4);
    const auto residents = some_residents(handoffs, experts);
    double more = 0, any = 0;  // residents beyond the first of each layer; layers with one
    for (const auto& of_set : residents) {
        more += static_cast<double>(std::max<size_t>(of_set.size(), 1) - 1);
        any += !of_set.empty();
    }
    const double card_one = seconds_of([&](int) { play_on_card(handoffs, on_card, residents, 1); });
    const double card_more = seconds_of([&](int) { play_on_card(handoffs, on_card, residents, SIZE_MAX); });
    const double card_rows = seconds_of([&](int) { play_on_card(handoffs, many, residents, 1); }, 1);

    speed.card_expert = more > 0 ? std::max(card_more - card_one, 0.02 * card_one) / more : card_one / any;
    speed.card_pair = std::max(0.0, card_rows - card_one) / (any * first.top_k * static_cast<double>(rows));
    const TokenWork work = token_work(on_card.plan, 1);
    speed.card_rest = work.shared_bytes / work.layers / work.expert_bytes * speed.card_expert;
    speed.cpu_rest += handoff_seconds(handoffs.front(), on_card);
    speed.link = experts.link_seconds();
    return speed;
}

}  // namespace thermocline::scheduler
