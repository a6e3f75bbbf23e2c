#include "scheduler/gpu_experts.h"

#include "scheduler/stretch.h"
#include "scheduler/upload.h"
#include "src/base/check.h"
#include "src/base/log.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

namespace thermocline::scheduler {

namespace {

int64_t set_bytes(const ops::ExpertSet& set) {
    return cuda::placed_bytes(set.w1[0]) + cuda::placed_bytes(set.w3[0]) + cuda::placed_bytes(set.w2[0]);
}

constexpr double kShareOfLink = 0.3;      // of the time of a pass that transfers may take (R5)
constexpr double kMostAtOnce = 64;        // transfers between two passes
constexpr int64_t kPieceBytes = 2 << 20;  // of a transfer: so long what a pass itself copies may have to wait
constexpr std::chrono::minutes kPatience(1);

/// The tables, on the card and in the memory of the host.
struct Tables {
    float* multipliers;             // [count, cuda::kMultipliers]
    std::vector<int32_t*> slot_of;  // of each set, [experts]
    int64_t bytes;

    Tables(const ops::Plan& plan, int64_t count, std::byte* at) {
        Stretch stretch(at);
        multipliers = stretch.take<float>(count * cuda::kMultipliers);
        for (const ops::ExpertSet& set : plan.experts) slot_of.push_back(stretch.take<int32_t>(std::ssize(set.w1)));
        bytes = stretch.bytes();
    }
};

}  // namespace

std::string GpuExperts::why_not(const ops::Plan& plan) {
    for (const ops::Step& step : plan.steps) {
        if (!std::holds_alternative<ops::Experts>(step)) continue;
        const std::string why = cuda::why_not(plan, step);
        if (!why.empty()) return why;
    }
    return "";
}

int64_t GpuExperts::slot_bytes(const ops::Plan& plan) {
    int64_t most = 0;
    for (const ops::ExpertSet& set : plan.experts) most = std::max(most, set_bytes(set));
    return most;
}

int64_t GpuExperts::bytes_of(const ops::Plan& plan, int64_t count) {
    return count == 0 ? 0 : count * slot_bytes(plan) + Tables(plan, count, nullptr).bytes;
}

int64_t GpuExperts::slots_in(const ops::Plan& plan, int64_t bytes) {
    int64_t fits = 0, most = 0;
    for (const ops::ExpertSet& set : plan.experts) most += std::ssize(set.w1);
    while (fits < most) {
        const int64_t middle = fits + (most - fits + 1) / 2;
        if (bytes_of(plan, middle) <= bytes)
            fits = middle;
        else
            most = middle - 1;
    }
    return fits;
}

GpuExperts::GpuExperts(const ops::Plan& plan, cuda::Device& device, std::span<const ExpertName> experts, std::byte* at,
                       const ResidencyRules& rules, memory::PackedWeights* packed)
    : plan_(plan),
      at_(at),
      resident_count_(std::ssize(experts)),
      core_(rules.core),
      slot_count_(resident_count_ + (experts.empty() ? 0 : rules.ring)),
      slot_bytes_(slot_bytes(plan)),
      tries_(rules.tries && core_ == 0) {
    CHECK(core_ <= resident_count_);
    if (experts.empty()) return;
    tables_ = cuda::PinnedMemory(device, Tables(plan, slot_count_, nullptr).bytes);
    const Tables host(plan, slot_count_, tables_.data()), card(plan, slot_count_, at + slot_count_ * slot_bytes_);
    at_slot_.resize(static_cast<size_t>(resident_count_));
    std::iota(at_slot_.begin(), at_slot_.end(), 0);
    ring_.resize(static_cast<size_t>(slot_count_ - resident_count_));
    std::iota(ring_.begin(), ring_.end(), static_cast<int32_t>(resident_count_));
    host_multipliers_ = host.multipliers;
    card_multipliers_ = card.multipliers;
    host_slot_of_ = host.slot_of;
    std::vector<int64_t> sizes;
    for (size_t i = 0; i < plan.experts.size(); ++i) {
        const ops::ExpertSet& set = plan.experts[i];
        sizes.push_back(std::ssize(set.w1));
        std::fill_n(host.slot_of[i], sizes.back(), -1);
        std::vector<cuda::Copy> unused;
        std::byte *w3 = at + cuda::placed_bytes(set.w1[0]), *w2 = w3 + cuda::placed_bytes(set.w3[0]);
        slots_.push_back({cuda::place(set.w1[0], at, unused), cuda::place(set.w3[0], w3, unused),
                          cuda::place(set.w2[0], w2, unused), slot_bytes_, card.slot_of[i], card.multipliers});
    }
    std::vector<cuda::Copy> copies;
    for (int32_t slot = 0; slot < resident_count_; ++slot) {
        const ExpertName name = experts[static_cast<size_t>(slot)];
        CHECK(host_slot_of(name) < 0);
        host_slot_of(name) = slot;
        put(name, slot, host_multipliers(slot), copies);
    }
    copies.push_back({tables_.data(), at + slot_count_ * slot_bytes_, host.bytes});
    upload(copies, device, {}, packed);
    counters_.core = core_;
    if (rules.fixed || resident_count_ == core_ ||
        resident_count_ == std::accumulate(sizes.begin(), sizes.end(), int64_t{0}))
        return;
    residency_.emplace(sizes, experts, rules);
    fill_ = device.new_stream();
    measure_link(experts);
}

/// By bringing experts to where they lie already.
void GpuExperts::measure_link(std::span<const ExpertName> experts) {
    seconds_per_expert_ = std::numeric_limits<double>::infinity();
    for (int32_t i = 0; i < 3; ++i) {
        std::vector<cuda::Copy> copies;
        const auto slot = static_cast<int32_t>(core_);
        put(experts[static_cast<size_t>(slot)], slot, host_multipliers(slot), copies);
        const auto began = std::chrono::steady_clock::now();
        for (const cuda::Copy& copy : copies) fill_->copy(copy.to, copy.from, copy.bytes);
        fill_->wait(kPatience);
        const std::chrono::duration<double> took = std::chrono::steady_clock::now() - began;
        seconds_per_expert_ = std::min(seconds_per_expert_, took.count());
    }
}

void GpuExperts::put(ExpertName name, int32_t slot, float* multipliers, std::vector<cuda::Copy>& copies) const {
    const ops::ExpertSet& set = plan_.experts[static_cast<size_t>(name.set)];
    const auto expert = static_cast<size_t>(name.expert);
    std::byte* to = at_ + slot * slot_bytes_;
    for (const quant::Matrix* matrix : {&set.w1[expert], &set.w3[expert], &set.w2[expert]}) {
        cuda::place(*matrix, to, copies);
        to += cuda::placed_bytes(*matrix);
        *multipliers++ = matrix->multiplier;
    }
}

void GpuExperts::place(ExpertName name, int32_t slot, float* multipliers, std::vector<cuda::Copy>& copies) const {
    put(name, slot, multipliers, copies);
    copies.push_back({reinterpret_cast<const std::byte*>(multipliers),
                      reinterpret_cast<std::byte*>(card_multipliers_ + int64_t{slot} * cuda::kMultipliers),
                      cuda::kMultipliers * int64_t{sizeof(float)}});
}

void GpuExperts::adopt(ExpertName name, int64_t turn) {
    const auto change = residency_ ? residency_->adopt(name) : std::nullopt;
    if (!change) return;
    int32_t& slot = at_slot_[static_cast<size_t>(change->slot)];
    std::swap(slot, ring_[static_cast<size_t>(turn % ring())]);
    std::vector<cuda::Copy> made;  // by place()
    put(name, slot, host_multipliers(slot), made);
    host_slot_of(change->out) = -1;
    adopted_.push_back(*change);
}

/// Those that stayed after the last pass are known from here on.
void GpuExperts::settle() {
    for (const Residency::Change& change : adopted_) {
        residency_->arrived(change.slot);
        host_slot_of(change.in) = at_slot_[static_cast<size_t>(change.slot)];
    }
    counters_.adopted += std::ssize(adopted_);
    tables_changed_ |= !adopted_.empty();
    adopted_.clear();
}

void GpuExperts::begin_pass(cuda::Stream& stream, int64_t rows, bool is_prompt) {
    is_prompt_ = is_prompt;
    used_ = true;
    left_out_ = false;
    if (tries_ && !slots_.empty()) used_ = (is_prompt ? prompts_ : decode_).use(rows);
    if (!residency_) return;
    settle();  // after a failure; else they are
    if (!coming_.empty() && fill_->finished()) {
        for (const Residency::Change& change : coming_) {
            residency_->arrived(change.slot);
            host_slot_of(change.in) = at_slot_[static_cast<size_t>(change.slot)];
        }
        counters_.changes += std::ssize(coming_);
        counters_.bytes += std::ssize(coming_) * slot_bytes_;
        coming_.clear();
        tables_changed_ = true;
    }
    if (tables_changed_) stream.copy(at_ + slot_count_ * slot_bytes_, tables_.data(), tables_.bytes());
    tables_changed_ = false;
    residency_->begin_pass(rows, is_prompt);
}

void GpuExperts::note(ops::ExpertsId set, std::span<const int32_t> ids) {
    counters_.choices += std::ssize(ids);
    if (slots_.empty()) return;
    for (const int32_t id : ids) counters_.hits += host_slot_of({set, id}) >= 0;
    if (residency_) residency_->note(set, ids);
}

void GpuExperts::tell(const char* what, const ResidencyTrial& trial) const {
    log::info("experts on the card {} in passes {}: without them such a pass takes {:.1f} % {}",
              trial.on() ? "take part again" : "take no part", what, 100.0 * std::abs(trial.gain()),
              trial.gain() > 0 ? "longer" : "less");
}

void GpuExperts::order(const ExpertOrders& orders) {
    CHECK(residency_);
    if (!orders.shares.empty()) residency_->expect(orders.shares);
    for (const ExpertName& name : orders.released) residency_->pin(name, false);
    for (const ExpertName& name : orders.pinned) residency_->pin(name, true);
    if (!orders.wanted.empty()) residency_->want(orders.wanted);
}

void GpuExperts::end_pass(std::chrono::duration<double> took) {
    settle();
    if (left_out_) return;
    ResidencyTrial& trial = is_prompt_ ? prompts_ : decode_;
    if (tries_ && !slots_.empty()) {
        if (trial.took(took.count())) tell(is_prompt_ ? "over prompts" : "that decode", trial);
        counters_.decode = {decode_.on(), decode_.gain()};
        counters_.prompts = {prompts_.on(), prompts_.gain()};
    }
    // What is not used now brings nothing, and a pass without them is to be one without transfers too.
    if (!residency_ || !coming_.empty() || !trial.would_use()) return;
    credit_ = std::min(credit_ + kShareOfLink * took.count() / seconds_per_expert_, kMostAtOnce);
    coming_ = residency_->choose(static_cast<int64_t>(credit_));
    credit_ -= static_cast<double>(coming_.size());
    std::vector<cuda::Copy> copies;
    for (const Residency::Change& change : coming_) {
        host_slot_of(change.out) = -1;
        const int32_t slot = at_slot_[static_cast<size_t>(change.slot)];
        put(change.in, slot, host_multipliers(slot), copies);
        tables_changed_ = true;
    }
    for (const cuda::Copy& copy : copies)
        for (int64_t done = 0; done < copy.bytes; done += kPieceBytes)
            fill_->copy(copy.to + done, copy.from + done, std::min(kPieceBytes, copy.bytes - done));
}

std::vector<ExpertName> GpuExperts::resident() const {
    std::vector<ExpertName> names;
    for (size_t set = 0; set < host_slot_of_.size(); ++set)
        for (int32_t expert = 0; expert < std::ssize(plan_.experts[set].w1); ++expert)
            if (host_slot_of_[set][expert] >= 0) names.push_back({static_cast<ops::ExpertsId>(set), expert});
    return names;
}

}  // namespace thermocline::scheduler
