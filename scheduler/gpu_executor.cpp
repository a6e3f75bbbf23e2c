#include "scheduler/gpu_executor.h"

#include "cpu/warm.h"
#include "cuda/hung.h"
#include "cuda/kernels/list.h"
#include "memory/sequence_cache.h"
#include "scheduler/gpu_memory.h"
#include "scheduler/printed.h"
#include "scheduler/stretch.h"
#include "src/base/check.h"
#include "src/base/error.h"
#include "src/base/log.h"
#include "src/base/thread.h"

#include <algorithm>
#include <cstring>
#include <set>
#include <string>
#include <thread>
#include <utility>

namespace thermocline::scheduler {

namespace {

using Clock = std::chrono::steady_clock;

constexpr int kLooks = 4096;                          // at a flag, between two looks at the clock
static_assert(kGraphRows < cuda::kLeastLibraryRows);  // passes that are recorded do not ask the library

/// Whether a step may read or write `slot`. Those that stand between experts and the sum with the shared expert are
/// looked at closely; of all others it is taken for granted.
struct Touches {
    ops::Slot slot;
    bool operator()(const ops::Linear& s) const { return s.in == slot || s.out == slot; }
    bool operator()(const ops::SwiGlu& s) const { return s.gate == slot || s.up == slot || s.out == slot; }
    template <typename Other>
    bool operator()(const Other&) const {
        return true;
    }
};

double seconds_since(Clock::time_point began) { return std::chrono::duration<double>(Clock::now() - began).count(); }

/// What the card may tell early of one layer.
int64_t early_numbers(const ops::Experts& step, const ExecutorLimits& limits) {
    return step.top_k * std::min(limits.max_rows, kPrefetchRows);
}

int64_t most_experts(const ops::Plan& plan) {
    int64_t most = 0;
    for (const ops::ExpertSet& set : plan.experts) most = std::max(most, std::ssize(set.w1));
    return most;
}

const ops::Plan& playable(const ops::Plan& plan, std::span<const ExpertName> resident, const cuda::Device& device) {
    std::string why = why_not_on_gpu(plan);
    if (why.empty() && !resident.empty()) why = GpuExperts::why_not(plan);
    if (!why.empty()) fail("GPU ", device.info().index, ": ", why, ". Use --gpus none");
    return plan;
}

}  // namespace

std::string why_not_on_gpu(const ops::Plan& plan) {
    for (const ops::Step& step : plan.steps) {
        if (std::holds_alternative<ops::Experts>(step)) continue;
        const std::string why = cuda::why_not(plan, step);
        if (!why.empty()) return std::string(ops::step_name(step)) + ": " + why;
    }
    return "";
}

GpuExecutor::GpuExecutor(const ops::Plan& plan, cuda::Device& device, cpu::Workers& workers,
                         const cpu::KernelTable& kernels, ExecutorLimits limits, int64_t sequences,
                         std::span<const ExpertName> resident, const ResidencyRules& rules, cuda::DeviceMemory memory,
                         memory::PackedWeights* packed, const PrefetchRules& prefetch)
    : plan_(playable(plan, resident, device)),
      groups_(group_steps(plan)),
      device_(device),
      workers_(workers),
      kernels_(kernels),
      limits_(limits),
      rows_(limits),
      variants_(cuda::try_variants(device)),
      bytes_(card_bytes(plan, limits, sequences, resident.empty() ? 0 : std::ssize(resident) + rules.ring)),
      memory_(memory.bytes() < bytes_.all() ? cuda::DeviceMemory(device, bytes_.all()) : std::move(memory)),
      stream_(device.new_stream()),
      weights_(plan, device, memory_.data(), packed),
      workspace_(memory_.data() + bytes_.weights, plan, limits, !resident.empty()),
      pages_(device, *stream_, memory_.data() + bytes_.weights + bytes_.workspace, bytes_.pages),
      experts_(plan, device, resident, memory_.data() + bytes_.all() - bytes_.experts, rules, packed),
      table_(embedding_table(plan)),
      graphs_(*stream_),
      balances_(rules.balances && rules.core < std::ssize(resident)),
      streams_all_(rules.streaming == ResidencyRules::Streaming::kAll) {
    if (prefetch.any()) {
        prefetch_.emplace(plan_, prefetch);
        absent_.reserve(static_cast<size_t>(most_experts(plan_)));
    }
    if (prefetch.reads_file) reader_.emplace(plan_);
    take_host_memory();
    try {
        begin(rules, !resident.empty());
    } catch (...) {
        abandon();
        stream_.reset();  // ends with its work, which is about the memory of this object
        throw;
    }
}

void GpuExecutor::begin(const ResidencyRules& rules, bool any_resident) {
    stream_->copy(workspace_.tickets, upload_, cuda::kMostSiteRows * int64_t{sizeof(uint32_t)});  // zeros
    stream_->wait(patience_many_);
    const bool streams = rules.streaming != ResidencyRules::Streaming::kNone && experts_.ring() > 0;
    const bool divides = any_resident && (balances_ || streams);
    if (divides || on_cpu() > 0) measure(divides);
    if (streams)
        stream_of_experts_ = std::make_unique<ExpertStream>(plan_, device_, experts_, limits_.max_rows, speed_,
                                                            rules.streaming == ResidencyRules::Streaming::kShared);
}

GpuExecutor::~GpuExecutor() {
    abandon();
    stream_.reset();  // ends with its work, which is about the memory below
}

void GpuExecutor::take_host_memory() {
    std::vector<const ops::Experts*> experts;
    for (const ops::Step& step : plan_.steps)
        if (const auto* one = std::get_if<ops::Experts>(&step)) experts.push_back(one);
    std::set<ops::Slot> shared_slots;  // what passes between card and CPU; layers use the same ones
    for (const ops::Experts* one : experts) shared_slots.insert({one->x, one->ids, one->weights, one->out});
    const auto slot = [&](ops::Slot id) -> const ops::SlotSpec& { return plan_.slots[static_cast<size_t>(id)]; };

    std::vector<int32_t*> chosen(experts.size());
    cuda::Flag* flags = nullptr;
    const auto lay_out = [&](std::byte* at) {
        Stretch stretch(at);
        upload_ = stretch.take<std::byte>(UploadLayout::most_bytes(plan_, limits_));
        host_embeddings_ = stretch.take<float>(limits_.max_rows * embedding_width(plan_));
        flags = stretch.take<cuda::Flag>(2 * std::ssize(experts));
        host_top_ = stretch.take<cuda::TopRow>(std::min(limits_.max_outputs, kGraphRows));
        host_logits_ = stretch.take<float>(plan_.logits == ops::kNone ? 0 : limits_.max_outputs * plan_.vocab);
        host_streams_ =
            stretch.take<float>(plan_.streams == ops::kNone ? 0 : slot(plan_.streams).cols * limits_.max_rows);
        host_slots_.assign(plan_.slots.size(), nullptr);
        for (const ops::Slot id : shared_slots)
            host_slots_[static_cast<size_t>(id)] = stretch.take<float>(slot(id).cols * limits_.max_rows);
        for (size_t i = 0; i < experts.size(); ++i)
            chosen[i] = stretch.take<int32_t>(experts[i]->top_k * limits_.max_rows);
        early_.assign(experts.size(), nullptr);
        for (size_t i = 0; i < experts.size() && prefetch_; ++i)
            if (prefetch_->layers()[i].foretelling != nullptr)
                early_[i] = stretch.take<int32_t>(early_numbers(*experts[i], limits_));
        return stretch.bytes();
    };
    host_ = cuda::PinnedMemory(device_, lay_out(nullptr));
    lay_out(host_.data());
    const auto host = [&](ops::Slot id) { return host_slots_[static_cast<size_t>(id)]; };
    for (size_t i = 0; i < experts.size(); ++i) {
        const ops::Experts& one = *experts[i];
        handoffs_.push_back({&one,
                             {host(one.x), reinterpret_cast<int32_t*>(host(one.ids)), host(one.weights), chosen[i],
                              flags + 2 * i, flags + 2 * i + 1}});
    }

    const cpu::ScratchSize scratch = cpu::scratch_size(plan_, limits_.max_rows, limits_.max_tokens);
    const auto shared = static_cast<size_t>(scratch.shared),
               per_worker = static_cast<size_t>(scratch.per_worker * workers_.count());
    cpu_scratch_.emplace((shared + per_worker) * sizeof(float));
    auto* floats = reinterpret_cast<float*>(cpu_scratch_->bytes().data());
    shared_ = {floats, shared};
    per_worker_ = {floats + shared, per_worker};
}

std::unique_ptr<memory::SequenceCache> GpuExecutor::new_sequence() {
    return std::make_unique<memory::SequenceCache>(plan_.caches, limits_.max_tokens, pages_);
}

void GpuExecutor::upload(const ops::Batch& batch, const float* streams_in) {
    const size_t caches = plan_.caches.size();
    int64_t page_count = 0;
    for (size_t s = 0; s < batch.segments.size(); ++s)
        for (size_t c = 0; c < caches; ++c) page_count += batch.segments[s].caches[c].page_count;
    const UploadLayout to(upload_, plan_, limits_, page_count), there(workspace_.upload, plan_, limits_, page_count);
    std::copy(batch.tokens.begin(), batch.tokens.end(), to.tokens);
    std::copy(batch.positions.begin(), batch.positions.end(), to.positions);
    std::copy(batch.output_rows.begin(), batch.output_rows.end(), to.output_rows);
    std::copy(factors_.begin(), factors_.end(), to.factors);
    int64_t page = 0;
    for (size_t s = 0; s < batch.segments.size(); ++s) {
        const ops::Segment& segment = batch.segments[s];
        to.segments[s] = {segment.first_row, segment.rows, segment.position};
        std::fill_n(to.segment_of + segment.first_row, segment.rows, static_cast<int32_t>(s));
        for (size_t c = 0; c < caches; ++c) {
            const ops::CacheView& view = segment.caches[c];
            to.caches[s * caches + c] = {there.pages + page, view.page_rows, view.row_bytes, view.ring_rows};
            std::copy_n(view.pages, view.page_count, to.pages + page);
            page += view.page_count;
        }
    }
    stream_->copy(workspace_.upload, upload_, to.bytes);
    if (table_ != nullptr) {
        for (int64_t t = 0; t < batch.rows(); ++t)
            kernels_.decode_row(*table_, batch.tokens[static_cast<size_t>(t)], host_embeddings_ + t * table_->cols);
        stream_->copy(workspace_.embeddings, host_embeddings_, batch.rows() * table_->cols * 4);
    }
    if (streams_in != nullptr) {
        const auto slot = static_cast<size_t>(plan_.streams);
        stream_->copy(workspace_.slots[slot], streams_in, batch.rows() * plan_.slots[slot].cols * 4);
    }
}

cuda::Frame GpuExecutor::frame(const ops::Batch& batch) const {
    const UploadLayout there(workspace_.upload, plan_, limits_, 0);
    const std::optional<cuda::Balance> divided = balance(batch.rows());
    return {plan_,
            weights_.on_card(),
            {there.tokens, there.positions, there.segment_of, there.segments, there.caches, there.output_rows,
             batch.rows(), batch.outputs(), std::ssize(batch.segments), std::ssize(plan_.caches)},
            workspace_.slots.data(),
            workspace_.rotations.data(),
            workspace_.embeddings,
            workspace_.scratch,
            *stream_,
            divided ? experts_.on_card() : nullptr,
            workspace_.pairs,
            workspace_.tickets,
            variants_,
            divided.value_or(cuda::Balance()),
            &library_,
            limits_.batch_invariant};
}

/// How a pass of so many rows is divided; nothing: its experts are all of the CPU.
std::optional<cuda::Balance> GpuExecutor::balance(int64_t rows) const {
    // Where all others pass through the card, none of its own are left to the CPU.
    if (!balances_ || handoffs_.empty() || (rows > kGraphRows && streams_all_)) return cuda::Balance();
    const ops::Experts& step = *handoffs_.front().step;
    const int64_t pairs = rows * step.top_k, all = std::ssize(plan_.experts[static_cast<size_t>(step.experts)].w1);
    const int64_t chosen = std::min(pairs, all);
    if (experts_.core() == 0 && speed_.cpu_takes_all(rows, pairs, chosen)) return std::nullopt;
    cuda::Balance balance = speed_.balance(rows, static_cast<double>(pairs) / static_cast<double>(chosen));
    balance.core = static_cast<int32_t>(experts_.core());
    return balance;
}

void GpuExecutor::take_result(const Group& group, GpuOrder& order, const Handoff& handoff) {
    const ops::Step& step = plan_.steps[static_cast<size_t>(group.first)];
    const ops::Experts& experts = *handoff.step;
    const ops::Slot out = experts.out;
    order.flush();
    if (streaming_)
        share_experts(handoff);
    else if (at_once_ != nullptr)
        serve_next(*at_once_);
    stream_->wait_for(handoff.to.done);
    const auto sum_with = [&](ops::Slot shared, const ops::Uses& uses) {
        order.play_as(uses, [&](const cuda::Frame& f) {
            cuda::sum_experts(experts, f, host_slots_[static_cast<size_t>(out)], shared, out);
        });
    };
    const auto* add = std::get_if<ops::Add>(&step);
    if (add != nullptr && add->x == out && add->repeat == 1) return sum_with(add->y, ops::uses_of(step));
    sum_with(ops::kNone, {.writes = {out, ops::kNone, ops::kNone}});
    order.play(group);
}

void GpuExecutor::foretell(const Group& group, GpuOrder& order) {
    if (!prefetches_) return;
    for (size_t i = 0; i < early_.size(); ++i) {
        const ops::Foretelling* one = prefetch_->layers()[i].foretelling;
        if (one == nullptr || one->after < group.first || one->after >= group.first + group.count) continue;
        const auto& route = std::get<ops::Route>(plan_.steps[static_cast<size_t>(one->router) + 1]);
        order.play(plan_.steps[static_cast<size_t>(one->router)]);
        order.play(plan_.steps[static_cast<size_t>(one->router) + 1]);
        order.play_as({.reads = {route.ids, ops::kNone, ops::kNone, ops::kNone}},
                      [&](const cuda::Frame& f) { cuda::send_early(route, f, early_[i]); });
    }
}

void GpuExecutor::enqueue_group(const Group& group, GpuOrder& order, Progress& progress) {
    const auto steps =
        std::span(plan_.steps).subspan(static_cast<size_t>(group.first), static_cast<size_t>(group.count));
    const Handoff* asked = progress.pending ? &handoffs_[progress.asked - 1] : nullptr;
    const auto touches = [&](const ops::Step& step) { return std::visit(Touches{asked->step->out}, step); };
    if (asked != nullptr && std::any_of(steps.begin(), steps.end(), touches)) {
        progress.pending = false;
        take_result(group, order, *asked);
        return foretell(group, order);
    }
    const auto* experts = std::get_if<ops::Experts>(&steps.front());
    if (experts == nullptr) {
        order.play(group);
        return foretell(group, order);
    }
    order.play_as(ops::uses_of(*experts),
                  [&](const cuda::Frame& f) { cuda::send_job(*experts, f, handoffs_[progress.asked].to); });
    order.flush();  // the CPU begins before the card goes on with what does not wait for it
    ++progress.asked;
    progress.pending = true;
    order.play(group);
}

void GpuExecutor::enqueue(const cuda::Frame& f) {
    cuda::rotations(f);
    GpuOrder order(f, workspace_.scratch_bytes);
    Progress progress;
    for (const Group& group : groups_) enqueue_group(group, order, progress);
    order.flush();
    fetch_results(f);
}

/// Part of the recorded pass: what most draws need, or the streams of a plan without logits.
void GpuExecutor::fetch_results(const cuda::Frame& f) {
    if (plan_.logits == ops::kNone) {
        if (plan_.streams == ops::kNone) return;  // bench/paced_machine.h: a plan that computes nothing
        const auto slot = static_cast<size_t>(plan_.streams);
        return stream_->copy(host_streams_, workspace_.slots[slot], f.batch.rows * plan_.slots[slot].cols * 4);
    }
    if (f.batch.outputs == 0 || !knows_top_logits(f.batch.outputs)) return;
    const UploadLayout there(workspace_.upload, plan_, limits_, 0);
    cuda::top_logits(*stream_, f.slot(plan_.logits), there.factors, plan_.vocab, f.batch.outputs, workspace_.logits);
    stream_->copy(host_top_, workspace_.logits.rows, f.batch.outputs * int64_t{sizeof(cuda::TopRow)});
}

void GpuExecutor::fetch_logits() const {
    fetched_ = true;
    if (outputs_played_ > 0 && plan_.logits != ops::kNone)
        stream_->copy(host_logits_, workspace_.slots[static_cast<size_t>(plan_.logits)],
                      outputs_played_ * plan_.vocab * 4);
}

void GpuExecutor::play(const cuda::Frame& f, const ops::Batch& batch) {
    const auto put = [&](bool recorded) {
        at_once_ = recorded || streaming_ ? nullptr : &batch;
        enqueue(f);
    };
    if (f.batch.rows > kGraphRows)
        put(false);
    else
        graphs_.play({f.batch.rows, f.batch.outputs, f.expert_slots != nullptr, prefetches_}, put);
    at_once_ = nullptr;
}

void GpuExecutor::compute(const Handoff& handoff, const ops::Batch& batch) {
    if (flag_of(handoff.to.job) == cuda::kNothingToDo) return;
    const auto began = Clock::now();
    cpu::run(*handoff.step, host_frame(batch));
    raise(handoff.to.done);
    const double took = seconds_since(began);
    const auto pairs = static_cast<size_t>(batch.rows() * handoff.step->top_k);
    const int64_t here = distinct(handoff, {handoff.to.ids, pairs}),
                  all = distinct(handoff, {handoff.to.chosen, pairs});
    cpu_reads_ += here;
    cpu_seconds_ += took;
    const double hidden = speed_.card_rest + static_cast<double>(all - here) * speed_.card_expert;
    exposed_seconds_ += std::max(0.0, took - hidden);
}

int64_t GpuExecutor::distinct(const Handoff& handoff, std::span<const int32_t> ids) {
    is_now_.assign(plan_.experts[static_cast<size_t>(handoff.step->experts)].w1.size(), 0);
    for (const int32_t id : ids)
        if (id >= 0) is_now_[static_cast<size_t>(id)] = 1;
    return std::count(is_now_.begin(), is_now_.end(), 1);
}

cpu::Frame GpuExecutor::host_frame(const ops::Batch& batch) const {
    return {plan_, batch, host_slots_.data(), nullptr, shared_, per_worker_, workers_, kernels_, prefetches_};
}

int64_t GpuExecutor::on_cpu() const { return expert_count(plan_) - std::ssize(experts_.resident()); }

void GpuExecutor::measure(bool on_card) {
    const auto rows = static_cast<size_t>(std::min(limits_.max_rows, kGraphRows));
    const std::vector<int32_t> tokens(rows);
    const std::vector<int64_t> positions(rows);
    const auto batch_of = [&](size_t count) {
        return ops::Batch{std::span(tokens).first(count), std::span(positions).first(count), {}, {}};
    };
    const ops::Batch one = batch_of(1), many = batch_of(rows);
    if (!on_card) {
        speed_ = measure_experts(handoffs_, host_frame(many), experts_);
        return;
    }
    speed_ = measure_experts(handoffs_, frame(one), frame(many), host_frame(many), experts_);
    log::info("GPU {}: {}", device_.info().index, speed_.text());
}

void GpuExecutor::compute_some(const Handoff& handoff, std::span<const StreamQueue::Item> items) {
    std::fill(is_now_.begin(), is_now_.end(), 0);
    for (const StreamQueue::Item& item : items) is_now_[static_cast<size_t>(item.expert)] = 1;
    for (size_t i = 0; i < job_ids_.size(); ++i)
        handoff.to.ids[i] = job_ids_[i] >= 0 && is_now_[static_cast<size_t>(job_ids_[i])] ? job_ids_[i] : -1;
    const auto began = Clock::now();
    cpu::add_experts(*handoff.step, host_frame(*streaming_->batch));
    const double took = seconds_since(began);
    cpu_seconds_ += took;
    cpu_reads_ += std::ssize(items);
    stream_of_experts_->cpu_took(took);
}

void GpuExecutor::share_experts(const Handoff& handoff) {
    await_job(handoff);
    const ops::Experts& step = *handoff.step;
    experts_.note(step.experts, chosen(handoff));  // for those that may stay
    stream_of_experts_->begin(handoff);
    if (flag_of(handoff.to.job) == cuda::kNothingToDo) return;
    const int64_t rows = streaming_->batch->rows();
    job_ids_.assign(handoff.to.ids, handoff.to.ids + rows * step.top_k);
    is_now_.resize(plan_.experts[static_cast<size_t>(step.experts)].w1.size());
    const ops::SlotSpec& out = plan_.slots[static_cast<size_t>(step.out)];
    std::fill_n(host_slots_[static_cast<size_t>(step.out)], rows * out.cols, 0.0f);
    auto since = Clock::now();
    for (int64_t seen = 0; !stream_of_experts_->all_taken();) {
        stream_of_experts_->send();
        const auto items = stream_of_experts_->for_cpu();
        if (!items.empty()) compute_some(handoff, items);
        if (!items.empty() || stream_of_experts_->progress() != seen) {
            seen = stream_of_experts_->progress();
            since = Clock::now();
            continue;
        }
        if (Clock::now() - since > patience_)
            give_up("none of the experts that are sent of " + plan_.experts[static_cast<size_t>(step.experts)].name,
                    since);
        std::this_thread::yield();
    }
    stream_of_experts_->end();
    raise(handoff.to.done);
}

void GpuExecutor::await_job(const Handoff& handoff) {
    auto since = Clock::now();
    for (int looks = 0; flag_of(handoff.to.job) == 0; ++looks) {
        if (to_prefetch_ != nullptr && prefetch(awaited_)) {
            to_prefetch_ = nullptr;
            since = Clock::now();
        }
        if (looks < kLooks) continue;
        looks = 0;
        if (streaming_) stream_of_experts_->run_ahead(*handoff.step);
        (void)stream_->finished();  // throws if the card is lost
        if (Clock::now() - since > patience_)
            give_up("no job for the experts of " + plan_.experts[static_cast<size_t>(handoff.step->experts)].name,
                    since);
        std::this_thread::yield();
    }
}

void GpuExecutor::await_card(const char* what, std::chrono::milliseconds patience) const {
    const auto since = Clock::now();
    if (!cuda::ends_within(*stream_, patience)) give_up(std::string("no end of ") + what, since);
}

void GpuExecutor::give_up(const std::string& what, Clock::time_point since) const {
    fail("GPU ", device_.info().index, ": ", what, " came while the CPU waited for ",
         printed("%.1f", seconds_since(since)),
         " s; the pass was given up. End other programs that keep the card busy (nvidia-smi); if there are none, look "
         "for its errors (dmesg) and whether it is too hot or slow (`thermocline doctor`)");
}

std::span<const int32_t> GpuExecutor::expected_absent(size_t layer) {
    const ops::ExpertsId set = handoffs_[layer].step->experts;
    const bool on_card = experts_.on_card() != nullptr;
    absent_.clear();
    for (const int32_t expert : prefetch_->expected(layer))
        if (!on_card || experts_.slot_of({set, expert}) < 0) absent_.push_back(expert);
    return absent_;
}

bool GpuExecutor::prefetch(size_t layer) {
    if (!prefetch_->known(layer, early_[layer])) return false;
    const std::span<const int32_t> experts = expected_absent(layer);
    if (reader_) reader_->ask(layer, experts);
    const Handoff& handoff = handoffs_[layer];
    if (!experts.empty() && prefetch_->worker_bytes() > 0)
        prefetch_->warmed(cpu::warm_experts(*handoff.step, host_frame(*to_prefetch_), experts,
                                            prefetch_->worker_bytes(), handoff.to.job->value));
    return true;
}

void GpuExecutor::ask_for_known() {
    // What goes by token is known at once, and a file is slow.
    for (size_t i = 0; i < handoffs_.size() && prefetches_ && reader_; ++i)
        if (prefetch_->known(i, nullptr)) reader_->ask(i, expected_absent(i));
}

void GpuExecutor::serve_next(const ops::Batch& batch) {
    to_prefetch_ = prefetches_ ? &batch : nullptr;
    const Handoff& handoff = handoffs_[awaited_];
    await_job(handoff);
    to_prefetch_ = nullptr;
    if (reader_ && flag_of(handoff.to.job) == cuda::kJob)
        reader_->ask(awaited_, {handoff.to.ids, static_cast<size_t>(batch.rows() * handoff.step->top_k)});
    compute(handoff, batch);
    ++awaited_;
}

void GpuExecutor::lower_flags() {
    for (const Handoff& handoff : handoffs_) handoff.to.job->value = handoff.to.done->value = 0;
    for (size_t i = 0; i < early_.size(); ++i)
        if (early_[i] != nullptr) std::fill_n(early_[i], early_numbers(*handoffs_[i].step, limits_), -1);
}

/// A pass that was given up.
void GpuExecutor::wait_for_earlier() {
    if (!unfinished_) return;
    if (!cuda::ends_within(*stream_, last_patience_) ||
        (stream_of_experts_ && !stream_of_experts_->ends_within(last_patience_)))
        cuda::end_hung(device_.info().index, last_patience_);
    unfinished_ = false;
}

void GpuExecutor::abandon() noexcept {
    streaming_.reset();
    at_once_ = to_prefetch_ = nullptr;
    if (stream_of_experts_ && !stream_of_experts_->release()) unfinished_ = true;
    for (const Handoff& handoff : handoffs_) raise(handoff.to.done);
    try {
        stream_->wait(patience_few_);
    } catch (...) {  // the card is slow or lost; the next pass will say so
        unfinished_ = true;
    }
}

void GpuExecutor::play_timed(const cuda::Frame& f, const ops::Batch& batch) {
    const auto seconds = [](Clock::time_point since) {
        return std::chrono::duration<double>(Clock::now() - since).count();
    };
    const auto start = Clock::now();
    cuda::rotations(f);
    GpuOrder order(f, workspace_.scratch_bytes);
    Progress progress;
    for (size_t i = 0; i < plan_.steps.size(); ++i) {
        const auto begin = Clock::now();
        const size_t before = progress.asked;
        enqueue_group({static_cast<int32_t>(i), 1, {}}, order, progress);
        order.flush();
        await_card("a step that is timed", patience_many_);
        if (progress.asked > before) compute(handoffs_[before], batch);
        profile_->add(first_step_ + i, seconds(begin), ops::step_cost(plan_, plan_.steps[i], batch));
    }
    fetch_results(f);
    await_card("the copy of the results", patience_many_);
    profile_->add_pass(seconds(start));
}

void GpuExecutor::forward(std::span<const Part> parts, const float* streams_in) {
    const ops::Batch batch = rows_.gather(parts);
    if (streams_in != nullptr)
        std::copy_n(streams_in, batch.rows() * plan_.slots[static_cast<size_t>(plan_.streams)].cols, host_streams_);
    try {
        pass(parts, batch, streams_in != nullptr ? host_streams_ : nullptr);
    } catch (...) {
        for (const Part& part : parts) part.sequence->spoil(static_cast<int64_t>(part.tokens.size()));
        throw;
    }
    for (const Part& part : parts) part.sequence->advance(static_cast<int64_t>(part.tokens.size()));
}

void GpuExecutor::pass(std::span<const Part> parts, const ops::Batch& batch, const float* streams_in) {
    const Pinned pinned(workers_.first_cpu());  // worker 0 is this thread
    rows_played_ = batch.rows(), outputs_played_ = batch.outputs();
    patience_ = batch.rows() <= kGraphRows ? patience_few_ : patience_many_;
    wait_for_earlier();
    const auto began = Clock::now();
    lower_flags();
    bool all_logits = !knows_top_logits(batch.outputs());
    factors_.clear();
    for (const Part& part : plan_.logits == ops::kNone ? parts.first(0) : parts) {
        factors_.insert(factors_.end(), static_cast<size_t>(part.outputs), part.factor);
        all_logits |= part.outputs > 0 && part.all_logits;
    }
    fetched_ = false;
    if (reader_) reader_->begin_pass();
    bool noted = false;
    const bool may_prefetch = prefetch_ && batch.rows() <= kPrefetchRows && profile_ == nullptr;
    prefetches_ = false;
    try {
        experts_.begin_pass(*stream_, batch.rows(), batch.rows() > kGraphRows);
        if (may_prefetch) prefetches_ = prefetch_->begin_pass(batch.tokens, !experts_.trying());
        upload(batch, streams_in);
        const cuda::Frame f = frame(batch);
        if (!balance(batch.rows())) experts_.leave_out();
        if (profile_ != nullptr) {
            play_timed(f, batch);
        } else {
            if (stream_of_experts_ && batch.rows() > kGraphRows && f.expert_slots != nullptr) {
                stream_of_experts_->begin_pass(f, batch);
                streaming_ = Pass{&batch, &f};
                noted = true;
            }
            awaited_ = 0;
            ask_for_known();
            play(f, batch);
            while (!streaming_ && awaited_ < handoffs_.size()) serve_next(batch);
            const auto since = Clock::now();
            while (streaming_ && !stream_of_experts_->all_come() && !stream_->finished() &&
                   Clock::now() - since < patience_)
                std::this_thread::yield();
            if (streaming_) stream_of_experts_->end_pass();
            streaming_.reset();
            if (all_logits) fetch_logits();
            await_card("its part of the pass", patience_);
        }
    } catch (...) {  // out of host memory too: the card would wait for ever
        abandon();
        throw;
    }
    last_cost_ = ops::plan_cost(plan_, batch);
    if (routing_ != nullptr) routing_->ids.resize(handoffs_.size());
    for (size_t layer = 0; layer < handoffs_.size(); ++layer) {
        const std::span<const int32_t> ids = chosen(handoffs_[layer]);
        if (!noted) experts_.note(handoffs_[layer].step->experts, ids);
        reads_ += distinct(handoffs_[layer], ids);
        if (routing_ != nullptr) routing_->ids[layer].assign(ids.begin(), ids.end());
        if (prefetches_ && prefetch_->known(layer, early_[layer])) prefetch_->note(layer, ids);
    }
    if (may_prefetch) prefetch_->end_pass(Clock::now() - began);
    layers_played_ += std::ssize(handoffs_);
    experts_.end_pass(Clock::now() - began);
}

ResidencyCounters GpuExecutor::residency() const {
    ResidencyCounters counters = experts_.counters();
    counters.card_reads = reads_ - cpu_reads_;
    counters.cpu_reads = cpu_reads_;
    counters.expert_bytes = GpuExperts::slot_bytes(plan_);
    counters.layers_played = layers_played_;
    counters.cpu_seconds = cpu_seconds_;
    counters.exposed_seconds = exposed_seconds_;
    counters.fill_seconds = static_cast<double>(counters.changes) * experts_.link_seconds();
    if (prefetch_) counters.prefetched = prefetch_->counters();
    if (reader_) counters.asked_bytes = reader_->bytes();
    if (stream_of_experts_) {
        counters.streamed = stream_of_experts_->sent();
        counters.link_seconds = static_cast<double>(counters.streamed) * experts_.link_seconds();
        counters.phase_seconds = stream_of_experts_->phase_seconds();
        counters.ahead = stream_of_experts_->sent_ahead();
        counters.in_vain = stream_of_experts_->sent_in_vain();
    }
    return counters;
}

const std::vector<std::string>& GpuExecutor::use_library() {
    const int32_t token = 0;
    const int64_t position = 0;
    library_ =
        cuda::try_library(frame({{&token, 1}, {&position, 1}, {}, {}}), device_, limits_.max_rows, workspace_.expanded);
    return library_.report;
}

std::vector<OperatorReport> GpuExecutor::operators(bool measured) {
    const int32_t token = 0, output = 0;
    const int64_t position = 0;
    const cuda::Frame one = frame({{&token, 1}, {&position, 1}, {}, {&output, 1}});
    std::vector<OperatorReport> reports = card_operators(one, groups_, workspace_.scratch_bytes);
    if (measured) measure_products(one, device_, reports);
    if (handoffs_.empty()) return reports;
    const double gigabytes = static_cast<double>(GpuExperts::slot_bytes(plan_)) * 1e-9;
    const auto rate = [&](double seconds) { return measured && seconds > 0 ? gigabytes / seconds : 0.0; };
    const std::string name = experts_name(plan_, *handoffs_.front().step);
    for (OperatorReport& report : reports) {
        if (report.operators != name) continue;
        report.count = std::ssize(experts_.resident());
        report.gb_per_s = rate(speed_.card_expert);
    }
    if (on_cpu() > 0)
        reports.push_back({name, "CPU " + std::string(kernels_.name), "", on_cpu(), rate(speed_.cpu_expert)});
    return reports;
}

std::vector<ExpertName> GpuExecutor::core() const {
    std::vector<ExpertName> names = experts_.resident();
    std::erase_if(names, [&](ExpertName name) { return experts_.on_host(name); });
    return names;
}

/// By the rows of the last pass.
std::span<const int32_t> GpuExecutor::chosen(const Handoff& handoff) const {
    return {handoff.to.chosen, static_cast<size_t>(rows_played_ * handoff.step->top_k)};
}

const float* GpuExecutor::logits(int64_t output) const {
    CHECK(output >= 0 && output < outputs_played_);
    if (!fetched_) {
        fetch_logits();
        await_card("the copy of the logits", patience_few_);
    }
    return host_logits_ + output * plan_.vocab;
}

/// Sums of all weights are formed in another order than on the host, so either all passes know them or none.
bool GpuExecutor::knows_top_logits(int64_t outputs) const { return outputs <= kGraphRows && !limits_.batch_invariant; }

std::optional<ops::TopLogits> GpuExecutor::top_logits(int64_t output) const {
    CHECK(output >= 0 && output < outputs_played_);
    if (!knows_top_logits(outputs_played_) || host_top_[output].faults > 0) return std::nullopt;
    const int64_t count = std::min<int64_t>(plan_.vocab, ops::kTopLogits);
    return ops::TopLogits{
        {host_top_[output].best, static_cast<size_t>(count)}, count == plan_.vocab, host_top_[output].weights};
}

const float* GpuExecutor::streams(int64_t row) const {
    CHECK(row >= 0 && row < rows_played_);
    const int64_t width = plan_.slots[static_cast<size_t>(plan_.streams)].cols;
    stream_->copy(host_streams_, workspace_.slots[static_cast<size_t>(plan_.streams)] + row * width, width * 4);
    await_card("the copy of a row's streams", patience_few_);
    return host_streams_;
}

int64_t GpuExecutor::workspace_bytes() const { return bytes_.workspace + host_.bytes(); }

}  // namespace thermocline::scheduler
