#include "scheduler/gpu_executor.h"

#include "cuda/kernels/list.h"
#include "memory/sequence_cache.h"
#include "src/base/check.h"
#include "src/base/error.h"
#include "src/base/thread.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <set>
#include <string>
#include <thread>

namespace thermocline::scheduler {

namespace {

using Clock = std::chrono::steady_clock;

constexpr int64_t kAlign = 256;
constexpr int kLooks = 4096;  // at a flag, between two looks at the clock

int64_t padded(int64_t bytes) { return (bytes + kAlign - 1) / kAlign * kAlign; }

/// Hands out stretches of memory one after the other; from nothing it only counts.
class Stretch {
public:
    explicit Stretch(std::byte* begin) : begin_(begin) {}
    template <typename T>
    T* take(int64_t count) {
        std::byte* taken = begin_ == nullptr ? nullptr : begin_ + bytes_;
        bytes_ += padded(count * static_cast<int64_t>(sizeof(T)));
        return reinterpret_cast<T*>(taken);
    }
    int64_t bytes() const { return bytes_; }

private:
    std::byte* begin_;
    int64_t bytes_ = 0;
};

int64_t rows_of(const ops::SlotSpec& slot, const ExecutorLimits& limits) {
    return slot.rows == ops::Rows::kTokens ? limits.max_rows : limits.max_outputs;
}

/// Pages of one sequence of so many tokens, of all caches, and their bytes on the card.
struct PageNeed {
    int64_t pages = 0, bytes = 0;
};
PageNeed pages_of(const ops::Plan& plan, int64_t tokens) {
    PageNeed need;
    for (const memory::PageCount& one : memory::page_counts(plan.caches, tokens)) {
        need.pages += one.pages;
        need.bytes += one.pages * GpuPages::rounded(one.page_bytes);
    }
    return need;
}

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

void raise(cuda::Flag* flag) { std::atomic_ref<uint64_t>(flag->value).store(1, std::memory_order_release); }
bool is_raised(const cuda::Flag* flag) {
    return std::atomic_ref<uint64_t>(const_cast<cuda::Flag*>(flag)->value).load(std::memory_order_acquire) != 0;
}

const ops::Plan& playable(const ops::Plan& plan, const cuda::Device& device) {
    const std::string why = why_not_on_gpu(plan);
    if (!why.empty()) fail("GPU ", device.info().index, ": ", why, ". Use --gpus none");
    return plan;
}

const quant::Matrix* embedding_table(const ops::Plan& plan) {
    for (const ops::Step& step : plan.steps)
        if (const auto* embed = std::get_if<ops::Embed>(&step))
            return &plan.matrices[static_cast<size_t>(embed->table)].matrix;
    return nullptr;
}

int64_t embedding_width(const ops::Plan& plan) {
    const quant::Matrix* table = embedding_table(plan);
    return table == nullptr ? 0 : table->cols;
}

}  // namespace

/// The block that goes to the card before a pass: small arrays at fixed places, then the views of the caches of every
/// segment, then the pages they point to.
struct GpuExecutor::Upload {
    int32_t *tokens, *segment_of, *output_rows;
    int64_t* positions;
    cuda::Segment* segments;
    cuda::CacheView* caches;  // [segments, plan.caches]
    std::byte** pages;

    Upload(std::byte* at, const ops::Plan& plan, const ExecutorLimits& limits, int64_t page_count, int64_t* bytes) {
        Stretch stretch(at);
        tokens = stretch.take<int32_t>(limits.max_rows);
        segment_of = stretch.take<int32_t>(limits.max_rows);
        output_rows = stretch.take<int32_t>(limits.max_outputs);
        positions = stretch.take<int64_t>(limits.max_rows);
        segments = stretch.take<cuda::Segment>(limits.max_parts);
        caches = stretch.take<cuda::CacheView>(limits.max_parts * std::ssize(plan.caches));
        pages = stretch.take<std::byte*>(page_count);
        if (bytes != nullptr) *bytes = stretch.bytes();
    }

    static int64_t most_bytes(const ops::Plan& plan, const ExecutorLimits& limits) {
        int64_t bytes = 0;
        const Upload counted(nullptr, plan, limits, limits.max_parts * pages_of(plan, limits.max_tokens).pages, &bytes);
        return bytes;
    }
};

std::string why_not_on_gpu(const ops::Plan& plan) {
    for (const ops::Step& step : plan.steps) {
        if (std::holds_alternative<ops::Experts>(step)) continue;
        const std::string why = cuda::why_not(plan, step);
        if (!why.empty()) return std::string(ops::step_name(step)) + ": " + why;
    }
    return "";
}

int64_t gpu_sequence_bytes(const ops::Plan& plan, int64_t tokens) { return pages_of(plan, tokens).bytes; }

GpuExecutor::GpuExecutor(const ops::Plan& plan, cuda::Device& device, cpu::Workers& workers,
                         const cpu::KernelTable& kernels, ExecutorLimits limits, int64_t sequences)
    : plan_(playable(plan, device)),
      device_(device),
      workers_(workers),
      kernels_(kernels),
      limits_(limits),
      rows_(limits),
      stream_(device.new_stream()),
      weights_(plan, device, *stream_),
      card_(device, gpu_workspace_bytes(plan, limits)),
      pages_(device, sequences * gpu_sequence_bytes(plan, limits.max_tokens)),
      table_(embedding_table(plan)) {
    take_card_memory();
    take_host_memory();
}

GpuExecutor::~GpuExecutor() { abandon(); }

/// What lies on the card besides weights and pages: slots, rotations, upload, embeddings, scratch.
struct CardLayout {
    std::vector<float*> slots, rotations;
    std::byte* upload;
    float* embeddings;
    std::byte* scratch;
    int64_t bytes;

    CardLayout(std::byte* at, const ops::Plan& plan, const ExecutorLimits& limits, int64_t upload_bytes) {
        Stretch stretch(at);
        for (const ops::SlotSpec& slot : plan.slots)
            slots.push_back(stretch.take<float>(slot.cols * rows_of(slot, limits)));
        for (const ops::RopeTable& rope : plan.ropes)
            rotations.push_back(stretch.take<float>(rope.dims() * limits.max_rows));
        upload = stretch.take<std::byte>(upload_bytes);
        embeddings = stretch.take<float>(limits.max_rows * embedding_width(plan));
        scratch = stretch.take<std::byte>(cuda::scratch_bytes(plan, limits.max_rows, limits.max_outputs));
        bytes = stretch.bytes();
    }
};

int64_t gpu_workspace_bytes(const ops::Plan& plan, const ExecutorLimits& limits) {
    return CardLayout(nullptr, plan, limits, GpuExecutor::most_upload_bytes(plan, limits)).bytes;
}

int64_t GpuExecutor::most_upload_bytes(const ops::Plan& plan, const ExecutorLimits& limits) {
    return Upload::most_bytes(plan, limits);
}

void GpuExecutor::take_card_memory() {
    upload_bytes_ = most_upload_bytes(plan_, limits_);
    CardLayout layout(card_.data(), plan_, limits_, upload_bytes_);
    slots_ = std::move(layout.slots);
    rotations_ = std::move(layout.rotations);
    on_card_ = layout.upload;
    embeddings_ = layout.embeddings;
    scratch_ = layout.scratch;
}

void GpuExecutor::take_host_memory() {
    std::vector<const ops::Experts*> experts;
    for (const ops::Step& step : plan_.steps)
        if (const auto* one = std::get_if<ops::Experts>(&step)) experts.push_back(one);
    std::set<ops::Slot> shared_slots;  // what passes between card and CPU; layers use the same ones
    for (const ops::Experts* one : experts) shared_slots.insert({one->x, one->ids, one->weights, one->out});
    const auto slot = [&](ops::Slot id) -> const ops::SlotSpec& { return plan_.slots[static_cast<size_t>(id)]; };

    const auto lay_out = [&](std::byte* at) {
        Stretch stretch(at);
        upload_ = stretch.take<std::byte>(upload_bytes_);
        host_embeddings_ = stretch.take<float>(limits_.max_rows * embedding_width(plan_));
        flags_ = stretch.take<cuda::Flag>(2 * std::ssize(experts));
        host_logits_ = stretch.take<float>(limits_.max_outputs * plan_.vocab);
        host_streams_ =
            stretch.take<float>(plan_.streams == ops::kNone ? 0 : slot(plan_.streams).cols * limits_.max_rows);
        host_slots_.assign(plan_.slots.size(), nullptr);
        for (const ops::Slot id : shared_slots)
            host_slots_[static_cast<size_t>(id)] = stretch.take<float>(slot(id).cols * limits_.max_rows);
        return stretch.bytes();
    };
    host_ = cuda::PinnedMemory(device_, lay_out(nullptr));
    lay_out(host_.data());
    for (size_t i = 0; i < experts.size(); ++i) handoffs_.push_back({experts[i], flags_ + 2 * i, flags_ + 2 * i + 1});

    const cpu::ScratchSize scratch = cpu::scratch_size(plan_, limits_.max_rows, limits_.max_tokens);
    cpu_scratch_.resize(static_cast<size_t>(scratch.shared + scratch.per_worker * workers_.count()));
    shared_ = std::span(cpu_scratch_).first(static_cast<size_t>(scratch.shared));
    per_worker_ = std::span(cpu_scratch_).subspan(static_cast<size_t>(scratch.shared));
}

std::unique_ptr<memory::SequenceCache> GpuExecutor::new_sequence() {
    return std::make_unique<memory::SequenceCache>(plan_.caches, limits_.max_tokens, pages_);
}

void GpuExecutor::upload(const ops::Batch& batch, const float* streams_in) {
    const size_t caches = plan_.caches.size();
    int64_t page_count = 0, bytes = 0;
    for (size_t s = 0; s < batch.segments.size(); ++s)
        for (size_t c = 0; c < caches; ++c) page_count += batch.segments[s].caches[c].page_count;
    const Upload to(upload_, plan_, limits_, page_count, &bytes), there(on_card_, plan_, limits_, page_count, nullptr);
    std::copy(batch.tokens.begin(), batch.tokens.end(), to.tokens);
    std::copy(batch.positions.begin(), batch.positions.end(), to.positions);
    std::copy(batch.output_rows.begin(), batch.output_rows.end(), to.output_rows);
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
    stream_->copy(on_card_, upload_, bytes);
    if (table_ != nullptr) {
        for (int64_t t = 0; t < batch.rows(); ++t)
            kernels_.decode_row(*table_, batch.tokens[static_cast<size_t>(t)], host_embeddings_ + t * table_->cols);
        stream_->copy(embeddings_, host_embeddings_, batch.rows() * table_->cols * 4);
    }
    if (streams_in != nullptr) {
        const int64_t width = plan_.slots[static_cast<size_t>(plan_.streams)].cols;
        std::copy_n(streams_in, batch.rows() * width, host_streams_);
        stream_->copy(slots_[static_cast<size_t>(plan_.streams)], host_streams_, batch.rows() * width * 4);
    }
}

cuda::Frame GpuExecutor::frame(const ops::Batch& batch) const {
    const Upload there(on_card_, plan_, limits_, 0, nullptr);
    return {plan_,
            weights_.on_card(),
            {there.tokens, there.positions, there.segment_of, there.segments, there.caches, there.output_rows,
             batch.rows(), batch.outputs(), std::ssize(batch.segments), std::ssize(plan_.caches)},
            slots_.data(),
            rotations_.data(),
            embeddings_,
            scratch_,
            *stream_};
}

void GpuExecutor::take_result(const ops::Step& step, const cuda::Frame& f, const Handoff& handoff, ops::Slot pending) {
    stream_->wait_for(handoff.done);
    const float* result = host_slots_[static_cast<size_t>(pending)];
    const int64_t width = f.cols(pending);
    const auto* add = std::get_if<ops::Add>(&step);
    if (add != nullptr && add->x == pending && add->repeat == 1)
        return cuda::launch(*stream_, {.x = f.batch.rows},
                            cuda::SumRows{result, f.slot(add->y), f.slot(pending), width});
    cuda::launch(*stream_, {.x = f.batch.rows}, cuda::CopyRows{result, nullptr, f.slot(pending), width, 1});
    std::visit([&](const auto& one) { cuda::run(one, f); }, step);
}

void GpuExecutor::enqueue_step(const ops::Step& step, const cuda::Frame& f, size_t& next_experts, ops::Slot& pending) {
    if (pending != ops::kNone && std::visit(Touches{pending}, step)) {
        take_result(step, f, handoffs_[next_experts - 1], pending);
        pending = ops::kNone;
        return;
    }
    const auto* experts = std::get_if<ops::Experts>(&step);
    if (experts == nullptr) return std::visit([&](const auto& one) { cuda::run(one, f); }, step);
    const auto host = [&](ops::Slot id) { return host_slots_[static_cast<size_t>(id)]; };
    cuda::launch(
        *stream_, {.x = f.batch.rows},
        cuda::SendJob{f.slot(experts->x), reinterpret_cast<const int32_t*>(f.slot(experts->ids)),
                      f.slot(experts->weights), host(experts->x), reinterpret_cast<int32_t*>(host(experts->ids)),
                      host(experts->weights), f.cols(experts->x), experts->top_k});
    cuda::launch(*stream_, {.threads = cuda::kWarp}, cuda::RaiseFlag{handoffs_[next_experts].job});
    ++next_experts;
    pending = experts->out;
}

void GpuExecutor::enqueue(const cuda::Frame& f) {
    cuda::rotations(f);
    size_t next_experts = 0;
    ops::Slot pending = ops::kNone;  // what the CPU is computing
    for (const ops::Step& step : plan_.steps) enqueue_step(step, f, next_experts, pending);
    fetch_logits(f);
}

void GpuExecutor::fetch_logits(const cuda::Frame& f) {
    if (f.batch.outputs > 0 && plan_.logits != ops::kNone)
        stream_->copy(host_logits_, f.slot(plan_.logits), f.batch.outputs * plan_.vocab * 4);
}

void GpuExecutor::play(const cuda::Frame& f) {
    if (f.batch.rows > kGraphRows) return enqueue(f);
    auto& graph = graphs_[{f.batch.rows, f.batch.outputs}];
    if (!graph) {
        stream_->begin_recording();
        enqueue(f);
        graph = stream_->end_recording();
    }
    stream_->play(*graph);
}

void GpuExecutor::compute(const Handoff& handoff, const ops::Batch& batch) {
    const cpu::Frame frame{plan_, batch, host_slots_.data(), nullptr, shared_, per_worker_, workers_, kernels_};
    if (routing_ != nullptr) {
        const int32_t* ids = frame.int_row(handoff.step->ids, 0);
        routing_->ids.emplace_back(ids, ids + batch.rows() * handoff.step->top_k);
    }
    cpu::run(*handoff.step, frame);
    raise(handoff.done);
}

void GpuExecutor::serve_experts(const ops::Batch& batch, Clock::time_point deadline) {
    for (const Handoff& handoff : handoffs_) {
        for (int looks = 0; !is_raised(handoff.job); ++looks) {
            if (looks < kLooks) continue;
            looks = 0;
            (void)stream_->finished();  // throws if the card is lost
            if (Clock::now() > deadline)
                fail("GPU ", device_.info().index, ": no job for the experts ",
                     plan_.experts[static_cast<size_t>(handoff.step->experts)].name, " in time; the pass was given up");
            std::this_thread::yield();
        }
        compute(handoff, batch);
    }
}

void GpuExecutor::lower_flags() {
    for (const Handoff& handoff : handoffs_) handoff.job->value = handoff.done->value = 0;
}

void GpuExecutor::abandon() noexcept {
    for (const Handoff& handoff : handoffs_) raise(handoff.done);
    try {
        stream_->wait(patience_few_);
    } catch (const Error&) {  // the card is slow or lost; the next pass will say so
        unfinished_ = true;
    }
}

void GpuExecutor::play_timed(const cuda::Frame& f, const ops::Batch& batch) {
    const auto seconds = [](Clock::time_point since) {
        return std::chrono::duration<double>(Clock::now() - since).count();
    };
    const auto start = Clock::now();
    cuda::rotations(f);
    size_t next_experts = 0;
    ops::Slot pending = ops::kNone;
    for (size_t i = 0; i < plan_.steps.size(); ++i) {
        const auto begin = Clock::now();
        const size_t before = next_experts;
        enqueue_step(plan_.steps[i], f, next_experts, pending);
        stream_->wait(patience_many_);
        if (next_experts > before) compute(handoffs_[before], batch);
        profile_->add(i, seconds(begin), ops::step_cost(plan_, plan_.steps[i], batch));
    }
    fetch_logits(f);
    stream_->wait(patience_many_);
    profile_->add_pass(seconds(start));
}

void GpuExecutor::forward(std::span<const Part> parts, const float* streams_in) {
    const Pinned pinned(workers_.first_cpu());  // worker 0 is this thread
    const ops::Batch batch = rows_.gather(parts);
    const auto patience = batch.rows() <= kGraphRows ? patience_few_ : patience_many_;
    const auto deadline = Clock::now() + patience;
    if (routing_ != nullptr) routing_->ids.clear();
    if (unfinished_) stream_->wait(patience_many_);  // an earlier pass that was given up
    unfinished_ = false;
    lower_flags();
    try {
        upload(batch, streams_in);
        const cuda::Frame f = frame(batch);
        if (profile_ != nullptr) {
            play_timed(f, batch);
        } else {
            play(f);
            serve_experts(batch, deadline);
            stream_->wait(patience);
        }
    } catch (const Error&) {
        abandon();
        throw;
    }
    for (const Part& part : parts) part.sequence->advance(static_cast<int64_t>(part.tokens.size()));
    last_cost_ = ops::plan_cost(plan_, batch);
}

const float* GpuExecutor::logits(int64_t output) const {
    CHECK(output >= 0 && output < rows_.outputs());
    return host_logits_ + output * plan_.vocab;
}

const float* GpuExecutor::streams(int64_t row) const {
    CHECK(row >= 0 && row < rows_.rows());
    const int64_t width = plan_.slots[static_cast<size_t>(plan_.streams)].cols;
    stream_->copy(host_streams_, slots_[static_cast<size_t>(plan_.streams)] + row * width, width * 4);
    stream_->wait(patience_few_);
    return host_streams_;
}

int64_t GpuExecutor::workspace_bytes() const { return card_.bytes() + host_.bytes(); }

}  // namespace thermocline::scheduler
