#include "scheduler/expert_stream.h"

#include "cuda/weights.h"
#include "scheduler/stretch.h"
#include "src/base/check.h"
#include "src/base/error.h"

#include <algorithm>
#include <numeric>

namespace thermocline::scheduler {

namespace {

constexpr int64_t kNumbers = cuda::ArrivedLists::kSlotNumbers;
constexpr double kNewest = 0.2;       // weight of the last measurement
constexpr double kMostFactor = 20.0;  // of a CPU that somebody else holds up

}  // namespace

ExpertStream::ExpertStream(const ops::Plan& plan, cuda::Device& device, GpuExperts& experts, int64_t max_rows,
                           const ExpertSpeed& speed, bool cpu_helps)
    : plan_(plan), experts_(experts), speed_(speed), cpu_helps_(cpu_helps) {
    int64_t most_experts = 0, most_pairs = 0;
    for (const ops::Step& step : plan.steps)
        if (const auto* one = std::get_if<ops::Experts>(&step)) {
            most_experts = std::max(most_experts, std::ssize(plan.experts[static_cast<size_t>(one->experts)].w1));
            most_pairs = std::max(most_pairs, max_rows * one->top_k);
        }
    most_flags_ = most_experts;
    const auto lay_out = [&](std::byte* at) {
        Stretch stretch(at);
        arrived_ = stretch.take<cuda::Flag>(most_experts);
        used_ = stretch.take<cuda::Flag>(most_experts);
        multipliers_ = stretch.take<float>(most_experts * cuda::kMultipliers);
        pairs_ = stretch.take<int32_t>(most_pairs);
        begin_ = stretch.take<int32_t>(most_experts + 1);
        taken_ = stretch.take<int32_t>(most_experts);
        numbers_ = stretch.take<int32_t>(kNumbers + experts.slots());
        return stretch.bytes();
    };
    host_ = cuda::PinnedMemory(device, lay_out(nullptr));
    lay_out(host_.data());
    link_ = device.new_stream();
    CHECK(experts.ring() <= cuda::kMostRing);
    numbers_[0] = 1;  // experts of a list; pairs elsewhere: 0
    std::iota(numbers_ + kNumbers, numbers_ + kNumbers + experts.slots(), 0);
    place_.resize(static_cast<size_t>(most_experts));
}

void ExpertStream::begin(const Handoff& job, const cuda::Frame& frame) {
    job_ = &job;
    frame_ = &frame;
    const ops::Experts& step = *job.step;
    const auto experts = static_cast<size_t>(std::ssize(plan_.experts[static_cast<size_t>(step.experts)].w1));
    const int64_t pairs = frame.batch.rows * step.top_k;
    (void)all_come();  // of the layer before, all used
    for (int64_t i = 0; i < sent_; ++i) arrived_[i].value = used_[i].value = 0;
    sent_ = come_ = done_ = 0;
    began_ = std::chrono::steady_clock::now();
    phase_runs_ = false;
    lists_there_ = false;
    std::fill(place_.begin(), place_.end(), 0);
    for (int64_t i = 0; i < pairs; ++i)
        if (job.to.ids[i] >= 0) ++place_[static_cast<size_t>(job.to.ids[i])];
    items_.clear();
    for (size_t e = 0; e < experts; ++e) {
        // A resident expert may have been left to the CPU.
        taken_[e] = place_[e] > 0 ? -1 : experts_.slot_of({step.experts, static_cast<int32_t>(e)});
        if (place_[e] > 0) items_.push_back({static_cast<int32_t>(e), place_[e]});
    }
    queue_.fill(items_, {speed_.link, speed_.cpu_expert * cpu_factor_, speed_.cpu_pair * cpu_factor_, cpu_helps_,
                         speed_.card_expert, speed_.card_pair});
    begin_[0] = 0;
    for (size_t i = 0; i < items_.size(); ++i) {
        const StreamQueue::Item& item = queue_.all()[i];
        place_[static_cast<size_t>(item.expert)] = begin_[i];
        begin_[i + 1] = begin_[i] + item.pairs;
    }
    for (int64_t i = 0; i < pairs; ++i)
        if (job.to.ids[i] >= 0) pairs_[place_[static_cast<size_t>(job.to.ids[i])]++] = static_cast<int32_t>(i);
}

int64_t ExpertStream::on_their_way() {
    while (come_ < sent_ && flag_of(&arrived_[come_]) != 0) ++come_;
    return sent_ - come_;
}

double ExpertStream::card_busy() {
    while (done_ < sent_ && flag_of(&used_[done_]) != 0) ++done_;
    double seconds = 0;
    for (int64_t i = done_; i < sent_; ++i) seconds += speed_.card(queue_.all()[static_cast<size_t>(i)].pairs);
    return seconds;
}

void ExpertStream::send() {
    for (int64_t waiting = on_their_way(); queue_.link_wants(waiting, card_busy()); ++waiting) send_next();
}

void ExpertStream::send_next() {
    const cuda::ArrivedLists& lists = frame_->pairs.arrived_lists;
    if (!numbers_there_) {
        link_->copy(lists.numbers, numbers_, (kNumbers + experts_.slots()) * 4);
        numbers_there_ = true;
    }
    if (!lists_there_) {
        link_->copy(lists.begin, begin_, (std::ssize(items_) + 1) * 4);
        link_->copy(lists.pairs, pairs_, int64_t{begin_[items_.size()]} * 4);
        lists_there_ = true;
    }
    const size_t turn = queue_.take_for_link();
    const StreamQueue::Item& item = queue_.all()[turn];
    const auto number = static_cast<int64_t>(turn);
    if (number >= experts_.ring()) link_->wait_for(&used_[number - experts_.ring()]);
    std::vector<cuda::Copy> copies;
    const ExpertName name{job_->step->experts, item.expert};
    const int32_t slot = experts_.ring_slot(number);
    experts_.place(name, slot, multipliers_ + number * cuda::kMultipliers, copies);
    for (const cuda::Copy& copy : copies) link_->copy(copy.to, copy.from, copy.bytes);
    cuda::raise_flag(*link_, &arrived_[number]);
    frame_->stream.wait_for(&arrived_[number]);
    cuda::run_arrived(*job_->step, *frame_, number, slot, item.pairs);
    cuda::raise_flag(frame_->stream, &used_[number]);
    taken_[item.expert] = slot;
    experts_.adopt(name, number);
    sent_ = number + 1;
    ++sent_all_;
}

std::span<const StreamQueue::Item> ExpertStream::for_cpu() {
    const auto items = queue_.take_for_cpu(on_their_way(), card_busy());
    expected_ = 0;
    for (const StreamQueue::Item& item : items) expected_ += speed_.cpu(item.pairs);
    return items;
}

void ExpertStream::cpu_took(double seconds) {
    if (expected_ <= 0) return;
    cpu_factor_ += kNewest * (std::clamp(seconds / expected_, 1 / kMostFactor, kMostFactor) - cpu_factor_);
}

bool ExpertStream::all_come() {
    if (!phase_runs_) return true;
    if (on_their_way() > 0) return false;
    phase_runs_ = false;
    phase_seconds_ += std::chrono::duration<double>(std::chrono::steady_clock::now() - began_).count();
    return true;
}

void ExpertStream::end() {
    if (sent_ == 0) return;
    phase_runs_ = true;
    const auto& set = plan_.experts[static_cast<size_t>(job_->step->experts)];
    frame_->stream.copy(frame_->pairs.lists.taken, taken_, std::ssize(set.w1) * 4);
}

bool ExpertStream::release() noexcept {
    for (int64_t i = 0; i < most_flags_; ++i) {
        raise(&arrived_[i]);
        raise(&used_[i]);
    }
    sent_ = most_flags_;  // lowered with the next layer
    phase_runs_ = false;
    try {
        link_->wait(std::chrono::seconds(10));
        return true;
    } catch (const Error&) {  // the pass has failed already
        return false;
    }
}

}  // namespace thermocline::scheduler
