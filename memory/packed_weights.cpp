#include "memory/packed_weights.h"

#include "src/base/check.h"
#include "src/base/error.h"
#include "src/quant/strips.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <map>
#include <set>
#include <string>
#include <sys/mman.h>
#include <thread>
#include <tuple>
#include <utility>
#include <vector>

namespace thermocline::memory {
namespace {

using quant::kStripRows;
using quant::Matrix;

constexpr int64_t kJobBytes = int64_t{4} << 20, kPageBytes = 4096;

/// Views of the same bytes: the trunk and the MTP layer share the embedding and the head.
using Key = std::tuple<const std::byte*, quant::Format, int64_t, int64_t>;
Key key_of(const Matrix& m) { return {m.data, m.format, m.rows, m.cols}; }

/// Every view that may be replaced, by what it shows.
class Views {
public:
    explicit Views(std::span<ops::Plan* const> plans) {
        for (const ops::Plan* plan : plans) exclude_tables(*plan);
        for (ops::Plan* plan : plans) collect(*plan);
    }

    std::map<Key, std::vector<Matrix*>>& packed() { return packed_; }
    const std::map<Key, Matrix>& kept() const { return kept_; }

    int64_t kept_bytes() const {
        int64_t sum = 0;
        for (const auto& [key, matrix] : kept_) sum += matrix.bytes();
        return sum;
    }

private:
    /// Tables are read a row at a time, which packed would touch sixteen: they stay.
    void exclude_tables(const ops::Plan& plan) {
        for (const ops::Step& step : plan.steps)
            if (const auto* embed = std::get_if<ops::Embed>(&step))
                tables_.insert(key_of(plan.matrices[static_cast<size_t>(embed->table)].matrix));
    }

    void collect(ops::Plan& plan) {
        std::map<ops::MatrixId, int64_t> groups;
        for (const ops::Step& step : plan.steps)
            if (const auto* linear = std::get_if<ops::Linear>(&step)) groups[linear->weight] = linear->groups;
        for (ops::MatrixId id = 0; id < static_cast<ops::MatrixId>(plan.matrices.size()); ++id) {
            Matrix& matrix = plan.matrices[static_cast<size_t>(id)].matrix;
            const bool split = groups.contains(id) && matrix.rows % (groups[id] * kStripRows) == 0;
            split ? add(matrix) : keep(matrix);
        }
        for (ops::ExpertSet& set : plan.experts) collect(set);
    }

    /// All or none, of one format and cut alike: the inputs of a set are prepared once, its slices handed out at once.
    void collect(ops::ExpertSet& set) {
        bool uniform = true;
        for (std::vector<Matrix>* list : {&set.w1, &set.w3, &set.w2}) {
            const std::vector<Matrix>& like = list == &set.w2 ? set.w2 : set.w1;
            const Matrix first = packed_form(like[0]);
            for (const Matrix& matrix : *list)
                uniform &= first.layout == quant::Layout::kStrips && packed_form(matrix).layout == first.layout &&
                           matrix.format == like[0].format && matrix.scale_rows == like[0].scale_rows;
        }
        for (std::vector<Matrix>* list : {&set.w1, &set.w3, &set.w2})
            for (Matrix& matrix : *list) uniform ? add(matrix) : keep(matrix);
    }

    void add(Matrix& matrix) {
        if (packed_form(matrix).layout == quant::Layout::kStrips && !tables_.contains(key_of(matrix)))
            packed_[key_of(matrix)].push_back(&matrix);
        else
            keep(matrix);
    }
    void keep(const Matrix& matrix) { kept_[key_of(matrix)] = matrix; }

    std::set<Key> tables_;
    std::map<Key, std::vector<Matrix*>> packed_;
    std::map<Key, Matrix> kept_;
};

/// Some strips of one matrix; without `out`: of one that keeps its layout and is only made.
struct Job {
    Matrix matrix;
    int64_t first, count;
    std::byte* out;

    int64_t strip_bytes() const { return matrix.row_bytes * kStripRows; }
    const std::byte* source() const { return matrix.data + first * strip_bytes(); }
    int64_t source_bytes() const {
        return std::min(count * kStripRows, matrix.rows - first * kStripRows) * matrix.row_bytes;
    }
};

bool is_deferred(const DeferredWeights* source, const Matrix& m) { return source && source->deferred(m.data); }

/// Makes the codes of a job into `piece` and packs them from there: where the matrix lies no page is ever touched.
void pack_deferred(const Job& job, const DeferredWeights& source, std::vector<std::byte>& piece) {
    piece.resize(static_cast<size_t>(job.source_bytes()));
    source.make(job.source(), job.source_bytes(), piece.data());
    Matrix part = job.matrix;
    part.rows = job.count * kStripRows;
    part.data = piece.data();
    if (part.scales) part.scales += job.first * kStripRows / part.scale_rows * part.scale_stride;
    pack_strips(part, 0, job.count, job.out);
}

/// Maps what a job reads in one call: a prefetch passes over pages that no fault has mapped yet.
void map_source(const Job& job) {
    const auto begin = reinterpret_cast<uintptr_t>(job.source()) / kPageBytes * kPageBytes,
               end = reinterpret_cast<uintptr_t>(job.source()) + static_cast<uintptr_t>(job.source_bytes());
    ::madvise(reinterpret_cast<void*>(begin), end - begin, MADV_POPULATE_READ);  // refused: faults map it, slower
}

/// Gives back what packing has read: the codes, and the scales if they went into the strips.
void release(const Job& job, const DeferredWeights* source) {
    if (!is_deferred(source, job.matrix)) release_pages(job.source(), job.source_bytes());
    if (const Matrix& m = job.matrix; m.scales && packed_form(m).scale_in_strip)
        release_pages(m.scales + job.first * kStripRows * m.scale_stride, job.count * kStripRows * m.scale_stride);
}

/// The jobs of a slice, and how many of them have begun.
struct Queue {
    std::vector<Job> jobs;
    std::atomic<size_t> next = 0;
};

void run(Queue& queue, const DeferredWeights* source, std::atomic<int64_t>& done) {
    std::vector<std::byte> piece;
    for (size_t i = queue.next++; i < queue.jobs.size(); i = queue.next++) {
        const Job& job = queue.jobs[i];
        if (job.out == nullptr)
            source->make(job.source(), job.source_bytes(), const_cast<std::byte*>(job.source()));
        else if (is_deferred(source, job.matrix))
            pack_deferred(job, *source, piece);
        else
            map_source(job), pack_strips(job.matrix, job.first, job.count, job.out);
        if (job.out != nullptr) release(job, source);
        done += job.source_bytes();
    }
}

/// The jobs that make `matrix` where it lies.
void add_making_jobs(const Matrix& matrix, std::vector<Job>& jobs) {
    const int64_t strips = (matrix.rows + kStripRows - 1) / kStripRows;
    const int64_t each = std::max<int64_t>(1, kJobBytes / (matrix.row_bytes * kStripRows));
    for (int64_t first = 0; first < strips; first += each)
        jobs.push_back({matrix, first, std::min(each, strips - first), nullptr});
}

/// The jobs that pack `matrix` as `form`, which has its place; none crosses slices.
void add_jobs(const Matrix& matrix, const Matrix& form, std::vector<Queue>& queues) {
    const int64_t strips = form.rows / kStripRows, most = std::max<int64_t>(1, kJobBytes / form.strip_bytes);
    for (int64_t first = 0, count = 0; first < strips; first += count) {
        const int64_t slice = first / form.slice_strips;
        count = std::min({most, (slice + 1) * form.slice_strips - first, strips - first});
        auto* out = const_cast<std::byte*>(strip_at(form, first));
        queues[static_cast<size_t>(slice)].jobs.push_back({matrix, first, count, out});
    }
}

int64_t packed_bytes(const Matrix& form) { return form.rows / kStripRows * form.strip_bytes; }
int64_t whole_pages(int64_t bytes) { return (bytes + kPageBytes - 1) / kPageBytes * kPageBytes; }

/// Throws Error if `needed` bytes do not fit into memory, of which `freed` bytes come back meanwhile (less than nothing
/// if more are yet to be made).
void check_room(int64_t needed, int64_t freed, bool dummy) {
    const int64_t available = available_memory() + freed;
    if (needed > available)
        fail("packed weights need ", needed >> 20, " MiB of memory, but ", available >> 20, " MiB are free: ",
             dummy ? "keep fewer layers (--layers)"
                   : "use --weights-in-place, which reads the files where they lie, or a smaller model");
}

/// The same for slices of `each` bytes that are bound to a node. What has no room there goes nowhere else: the kernel
/// would not refuse, but end the process.
void check_rooms(int64_t each, std::span<const Slice> slices, int64_t freed) {
    for (const auto& [nodes, cpus] : slices) {
        if (nodes.size() != 1) continue;
        const int64_t available = available_memory(nodes[0]) + freed / std::ssize(slices);
        if (each > available)
            fail("packed weights need ", each >> 20, " MiB on NUMA node ", nodes[0], ", but ", available >> 20,
                 " MiB are free there: use --numa off, which takes the memory of all nodes");
    }
}

}  // namespace

PackedWeights::PackedWeights(std::span<ops::Plan* const> plans, std::shared_ptr<const DeferredWeights> source,
                             std::span<const Slice> slices, const std::function<void(int64_t, int64_t)>& progress,
                             std::span<const quant::Matrix* const> card_only)
    : source_(std::move(source)), slices_(slices.begin(), slices.end()) {
    CHECK(!slices.empty());
    Views views(plans);
    unpacked_bytes_ = views.kept_bytes();
    std::set<Key> unmade;
    for (const Matrix* matrix : card_only)
        if (const Key key = key_of(*matrix); views.packed().contains(key)) unmade.insert(key);

    int64_t each = 0, source_bytes = 0, freed = 0, addresses = 0;  // of a slice, of all
    std::vector<Queue> queues(slices.size());
    for (const auto& [key, matrix] : views.kept()) {
        if (!is_deferred(source_.get(), matrix)) continue;
        add_making_jobs(matrix, queues[0].jobs);
        source_bytes += matrix.rows * matrix.row_bytes;
        freed -= matrix.rows * matrix.row_bytes;
    }
    for (const auto& [key, list] : views.packed()) {
        const Matrix form = packed_form(*list[0], std::ssize(slices));
        if (unmade.contains(key)) {
            addresses += whole_pages(packed_bytes(form));
            card_only_bytes_ += packed_bytes(form);
            continue;
        }
        const int64_t scale_bytes = form.scale_in_strip ? list[0]->rows * list[0]->scale_stride : 0;
        each += form.slice_strips * form.strip_bytes;
        bytes_ += packed_bytes(form);
        source_bytes += list[0]->rows * list[0]->row_bytes;
        if (source_)
            freed += (is_deferred(source_.get(), *list[0]) ? 0 : list[0]->rows * list[0]->row_bytes) + scale_bytes;
    }
    if (bytes_ > 0)
        if (std::optional<Arena> reserved = Arena::reserved(each, slices)) arena_.emplace(std::move(*reserved));
    if (!arena_ && source_bytes > 0) {
        check_room(each * std::ssize(slices), freed, source_ != nullptr);
        if (bytes_ > 0) arena_.emplace(each, slices);
        if (arena_ && !arena_->refused()) check_rooms(each, slices, freed);
    }
    if (addresses > 0) forbid(addresses_.emplace(Pages::addresses(static_cast<size_t>(addresses))).bytes());

    int64_t at = 0, unmade_at = 0;  // in every slice; among the addresses
    for (const auto& [key, list] : views.packed()) {
        Matrix form = packed_form(*list[0], std::ssize(slices));
        if (unmade.contains(key)) {
            form.data = addresses_->bytes().data() + unmade_at;
            form.slice_stride = form.slice_strips * form.strip_bytes;
            unmade_at += whole_pages(packed_bytes(form));
            unmade_[form.data] = {*list[0], form, packed_bytes(form), false};
        } else {
            form.data = arena_->slice(0) + at;
            form.slice_stride = arena_->stride();
            add_jobs(*list[0], form, queues);
            at += form.slice_strips * form.strip_bytes;
        }
        for (Matrix* view : list) *view = form;
    }

    std::atomic<int64_t> done = 0;
    std::vector<std::jthread> packers =
        start_on_cores(slices, [&](size_t slice) { run(queues[slice], source_.get(), done); });
    while (progress && done < source_bytes) {
        progress(done, source_bytes);
        std::this_thread::sleep_for(std::chrono::milliseconds(10));
    }
    packers.clear();  // joins
    if (progress && source_bytes > 0) progress(source_bytes, source_bytes);
}

std::span<std::byte> PackedWeights::pages_of(const Unmade& matrix) const {
    const auto first = static_cast<size_t>(matrix.to.data - addresses_->bytes().data());
    return addresses_->bytes().subspan(first, static_cast<size_t>(whole_pages(matrix.bytes)));
}

void PackedWeights::make(std::span<const std::byte* const> places) {
    std::set<const std::byte*> wanted;
    for (const std::byte* place : places) {
        auto found = unmade_.upper_bound(place);
        if (found != unmade_.begin() && place < (--found)->first + found->second.bytes) wanted.insert(found->first);
    }
    std::vector<Queue> queues(slices_.size());
    for (auto& [begin, matrix] : unmade_) {
        const bool made = wanted.contains(begin);
        if (made && !matrix.made) {
            admit(pages_of(matrix));
            add_jobs(matrix.from, matrix.to, queues);
        }
        if (!made && matrix.made) forbid(pages_of(matrix));
        matrix.made = made;
    }
    if (wanted.empty()) return;
    std::atomic<int64_t> done = 0;
    (void)start_on_cores(slices_, [&](size_t slice) { run(queues[slice], source_.get(), done); });  // and joins
}

std::vector<quant::Matrix*> packable_views(std::span<ops::Plan* const> plans) {
    Views views(plans);
    std::vector<quant::Matrix*> all;
    for (const auto& [key, list] : views.packed()) all.insert(all.end(), list.begin(), list.end());
    return all;
}

}  // namespace thermocline::memory
