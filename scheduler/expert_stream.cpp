#include "scheduler/expert_stream.h"

#include "cuda/weights.h"
#include "scheduler/stretch.h"
#include "src/base/check.h"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace thermocline::scheduler {

namespace {

using Clock = std::chrono::steady_clock;

constexpr int64_t kNumbers = cuda::ArrivedLists::kSlotNumbers;
constexpr double kNewest = 0.2;       // weight of the last measurement
constexpr double kMostFactor = 20.0;  // of a CPU that somebody else holds up
constexpr double kAllButSure = 4.0;   // choices that are expected of an expert: then one in 50 is not chosen at all
constexpr std::chrono::minutes kPatience(1);

}  // namespace

ExpertStream::ExpertStream(const ops::Plan& plan, cuda::Device& device, GpuExperts& experts, int64_t max_rows,
                           const ExpertSpeed& speed, bool cpu_helps)
    : plan_(plan), experts_(experts), speed_(speed), cpu_helps_(cpu_helps), tables_(plan.experts.size(), ops::kNone) {
    int64_t most_experts = 0, most_pairs = 0;
    const ops::Route* route = nullptr;
    for (const ops::Step& step : plan.steps) {
        if (const auto* one = std::get_if<ops::Route>(&step)) route = one;
        const auto* one = std::get_if<ops::Experts>(&step);
        if (one == nullptr) continue;
        const int64_t count = std::ssize(plan.experts[static_cast<size_t>(one->experts)].w1);
        most_experts = std::max(most_experts, count);
        most_transfers_ += count;
        most_pairs = std::max(most_pairs, max_rows * one->top_k);
        if (route != nullptr && route->ids == one->ids) tables_[static_cast<size_t>(one->experts)] = route->table;
    }
    const auto lay_out = [&](std::byte* at) {
        Stretch stretch(at);
        arrived_ = stretch.take<cuda::Flag>(most_transfers_);
        used_ = stretch.take<cuda::Flag>(most_transfers_);
        begun_ = stretch.take<cuda::Flag>(1);
        multipliers_ = stretch.take<float>(most_transfers_ * cuda::kMultipliers);
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
    transfers_.resize(static_cast<size_t>(most_transfers_));
}

StreamCosts ExpertStream::costs() const {
    return {
        speed_.link,     speed_.cpu_expert * cpu_factor_, speed_.cpu_pair * cpu_factor_, cpu_helps_, speed_.card_expert,
        speed_.card_pair};
}

void ExpertStream::begin_pass(const cuda::Frame& frame, const ops::Batch& batch) {
    if (!all_come()) link_->wait(kPatience);  // what nobody waited for
    for (int64_t i = 0; i < sent_; ++i) arrived_[i].value = used_[i].value = 0;
    sent_ = come_ = done_ = ahead_begin_ = 0;
    begun_->value = 0;
    cuda::raise_flag(frame.stream, begun_);
    frame_ = &frame;
    batch_ = &batch;
    next_ = nullptr;
}

/// By the table of a router that chooses by token; else by what the layer chose before, and only where so many choices
/// are made that an expert is hardly left out.
void ExpertStream::expect(const ops::Experts& step) {
    next_ = &step;
    ahead_begin_ = sent_;
    const size_t experts = plan_.experts[static_cast<size_t>(step.experts)].w1.size();
    const ops::TableId table = tables_[static_cast<size_t>(step.experts)];
    double least = kAllButSure;
    if (table != ops::kNone) {
        likely_.assign(experts, 0.0);
        const int32_t* choices = plan_.tables[static_cast<size_t>(table)].values.data();
        for (const int32_t token : batch_->tokens)
            for (int32_t k = 0; k < step.top_k; ++k)
                ++likely_[static_cast<size_t>(choices[int64_t{token} * step.top_k + k])];
        least = 1.0;
    } else {
        likely_ = experts_.likely(step.experts, static_cast<double>(frame_->batch.rows * step.top_k));
    }
    items_.clear();
    for (size_t e = 0; e < experts; ++e)
        if (const ExpertName name{step.experts, static_cast<int32_t>(e)};
            likely_[e] >= least && experts_.slot_of(name) < 0)
            items_.push_back({name.expert, static_cast<int32_t>(std::lround(likely_[e]))});
    ahead_.fill(items_, costs());
}

void ExpertStream::run_ahead(const ops::Experts& step) {
    if (next_ != &step) expect(step);
    for (int64_t waiting = on_their_way(); sent_ - ahead_begin_ < experts_.ring() && ahead_.link_wants(waiting);
         ++waiting) {
        send({step.experts, ahead_.all()[ahead_.take_for_link()].expert});
        ++ahead_all_;
    }
}

void ExpertStream::begin(const Handoff& job) {
    job_ = &job;
    const ops::Experts& step = *job.step;
    const auto experts = static_cast<size_t>(std::ssize(plan_.experts[static_cast<size_t>(step.experts)].w1));
    const int64_t pairs = frame_->batch.rows * step.top_k;
    any_used_ = false;
    std::fill(place_.begin(), place_.end(), 0);
    for (int64_t i = 0; i < pairs; ++i)
        if (job.to.ids[i] >= 0) ++place_[static_cast<size_t>(job.to.ids[i])];
    // A resident expert may have been left to the CPU.
    for (size_t e = 0; e < experts; ++e)
        taken_[e] = place_[e] > 0 ? -1 : experts_.slot_of({step.experts, static_cast<int32_t>(e)});
    if (next_ != &step) ahead_begin_ = sent_;
    std::vector<StreamQueue::Item> ahead;
    for (int64_t i = ahead_begin_; i < sent_; ++i) {
        const int32_t expert = transfers_[static_cast<size_t>(i)].name.expert;
        if (int32_t& count = place_[static_cast<size_t>(expert)]; count > 0) {
            ahead.push_back({expert, count});
            count = 0;
            continue;
        }
        raise(&used_[i]);
        ++vain_all_;
    }
    items_.clear();
    for (size_t e = 0; e < experts; ++e)
        if (place_[e] > 0) items_.push_back({static_cast<int32_t>(e), place_[e]});
    queue_.fill(items_, costs());
    items_ = ahead;
    items_.insert(items_.end(), queue_.all().begin(), queue_.all().end());
    begin_[0] = 0;
    for (size_t i = 0; i < items_.size(); ++i) {
        place_[static_cast<size_t>(items_[i].expert)] = begin_[i];
        begin_[i + 1] = begin_[i] + items_[i].pairs;
    }
    for (int64_t i = 0; i < pairs; ++i)
        if (job.to.ids[i] >= 0) pairs_[place_[static_cast<size_t>(job.to.ids[i])]++] = static_cast<int32_t>(i);
    lists_ahead_ = 0;
    for (int64_t i = ahead_begin_; i < sent_ && lists_ahead_ < ahead.size(); ++i)
        if (transfers_[static_cast<size_t>(i)].name.expert == ahead[lists_ahead_].expert) {
            use(i, ahead[lists_ahead_], static_cast<int64_t>(lists_ahead_));
            ++lists_ahead_;
        }
}

int64_t ExpertStream::on_their_way() {
    const int64_t before = come_;
    while (come_ < sent_ && flag_of(&arrived_[come_]) != 0) ++come_;
    if (come_ > before) last_come_ = Clock::now();
    return sent_ - come_;
}

double ExpertStream::card_busy() {
    while (done_ < sent_ && flag_of(&used_[done_]) != 0) ++done_;
    double seconds = 0;
    for (int64_t i = done_; i < sent_; ++i)
        seconds += speed_.card(static_cast<double>(transfers_[static_cast<size_t>(i)].pairs));
    return seconds;
}

void ExpertStream::send() {
    for (int64_t waiting = on_their_way(); queue_.link_wants(waiting, card_busy()); ++waiting) {
        const size_t turn = queue_.take_for_link();
        const StreamQueue::Item& item = queue_.all()[turn];
        use(send({job_->step->experts, item.expert}), item, static_cast<int64_t>(lists_ahead_ + turn));
    }
}

/// Returns its number in the pass. The expert that the slot had before must have been put into the frame's stream, or
/// nobody waits for it.
int64_t ExpertStream::send(ExpertName name) {
    if (!numbers_there_) {
        link_->copy(frame_->pairs.arrived_lists.numbers, numbers_, (kNumbers + experts_.slots()) * 4);
        numbers_there_ = true;
    }
    if (sent_ == 0) {
        first_sent_ = Clock::now();
        link_->wait_for(begun_);
    }
    if (sent_ >= experts_.ring()) link_->wait_for(&used_[sent_ - experts_.ring()]);
    const int32_t slot = experts_.ring_slot(sent_);
    std::vector<cuda::Copy> copies;
    experts_.place(name, slot, multipliers_ + sent_ * cuda::kMultipliers, copies);
    for (const cuda::Copy& copy : copies) link_->copy(copy.to, copy.from, copy.bytes);
    cuda::raise_flag(*link_, &arrived_[sent_]);
    transfers_[static_cast<size_t>(sent_)] = {name, slot, 0};
    ++sent_all_;
    return sent_++;
}

void ExpertStream::use(int64_t transfer, const StreamQueue::Item& item, int64_t list) {
    const cuda::ArrivedLists& lists = frame_->pairs.arrived_lists;
    if (!any_used_) {
        frame_->stream.copy(lists.begin, begin_, (std::ssize(items_) + 1) * 4);
        frame_->stream.copy(lists.pairs, pairs_, int64_t{begin_[items_.size()]} * 4);
        any_used_ = true;
    }
    Transfer& one = transfers_[static_cast<size_t>(transfer)];
    frame_->stream.wait_for(&arrived_[transfer]);
    cuda::run_arrived(*job_->step, *frame_, list, one.slot, item.pairs);
    cuda::raise_flag(frame_->stream, &used_[transfer]);
    one.pairs = item.pairs;
    taken_[item.expert] = one.slot;
    experts_.adopt(one.name, transfer);
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

void ExpertStream::end() {
    if (!any_used_) return;
    const auto& set = plan_.experts[static_cast<size_t>(job_->step->experts)];
    frame_->stream.copy(frame_->pairs.lists.taken, taken_, std::ssize(set.w1) * 4);
}

void ExpertStream::end_pass() {
    (void)on_their_way();
    if (come_ > 0) phase_seconds_ += std::chrono::duration<double>(last_come_ - first_sent_).count();
}

bool ExpertStream::release() noexcept {
    raise(begun_);
    for (int64_t i = 0; i < most_transfers_; ++i) {
        raise(&arrived_[i]);
        raise(&used_[i]);
    }
    sent_ = most_transfers_;  // lowered with the next pass
    try {
        link_->wait(std::chrono::seconds(10));
        return true;
    } catch (...) {  // the pass has failed already
        return false;
    }
}

}  // namespace thermocline::scheduler
