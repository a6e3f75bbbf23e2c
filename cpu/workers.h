// A fixed set of pinned threads that run one function together. The caller is worker 0. Between jobs the threads
// spin, then yield, then park. No allocation, lock or std::function on the step path. Several Workers may exist
// in one process; they share no state. Not reentrant: one job at a time, always started from the owning thread.
//
// A job over items gives every worker one contiguous part, so that it reads one long stream, and the same one of every
// pass. Parts are taken in pieces, and who has finished helps its neighbours: a core that the system takes away for a
// while holds up the others by a piece, not by its part. Who computes a piece must not matter to the result.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <type_traits>
#include <vector>

namespace thermocline::cpu {

class Workers {
public:
    /// `cpus`: logical CPUs to pin to, one worker each. The first one is for the calling thread, which whoever plays a
    /// pass keeps there meanwhile (first_cpu()): it has a life of its own.
    /// An empty list means one worker. `nodes`: of every worker, 0 .. node_count() - 1, ascending; empty: all 0.
    /// Throws Error if a thread cannot be made.
    explicit Workers(std::span<const int> cpus, std::span<const int> nodes = {});
    ~Workers();
    Workers(const Workers&) = delete;
    Workers& operator=(const Workers&) = delete;

    int count() const { return count_; }
    /// Where worker 0, the calling thread, belongs; -1: anywhere.
    int first_cpu() const { return cpus_.empty() ? -1 : cpus_.front(); }
    int node_count() const { return static_cast<int>(nodes_.size()); }

    /// Runs body(worker) for worker = 0 .. count - 1, in parallel, and waits for all.
    template <typename Body>
    void each(Body&& body) {
        run([](void* context, int worker) { (*static_cast<std::remove_reference_t<Body>*>(context))(worker); }, &body);
    }

    /// Covers [0, items) with calls of body(begin, end, worker), of at least `grain` items where there are as many.
    template <typename Body>
    void split(int64_t items, int64_t grain, Body&& body) {
        if (items <= 0) return;
        const Group all{0, count_};
        auto share = [&](int worker) { work(all, items, grain, worker, body); };
        if (items <= grain) return alone(share);
        each(share);
    }

    /// Covers [0, items_of(node)) of every node with calls of body(node, begin, end, worker) by workers of that node.
    template <typename ItemsOf, typename Body>
    void split_nodes(ItemsOf&& items_of, int64_t grain, Body&& body) {
        if (node_count() == 1)
            return split(items_of(0), grain,
                         [&](int64_t begin, int64_t end, int worker) { body(0, begin, end, worker); });
        each([&](int worker) {
            const int node = node_of(worker);
            const auto of_node = [&](int64_t begin, int64_t end, int who) { body(node, begin, end, who); };
            work(nodes_[static_cast<size_t>(node)], items_of(node), grain, worker, of_node);
        });
    }

    /// Where a job stands; any thread may ask (worker_watch.h does).
    struct Standing {
        uint64_t progress = 0;  // changes whenever a job begins, a piece is taken or a worker is done
        std::vector<int> late;  // workers that are not done yet; empty: no job is under way
    };
    Standing standing() const;
    /// "worker 3 on CPU 5"
    std::string name_of(int worker) const;

    /// What split(items, grain) gives `worker` before anybody helps; part_in_node(): split_nodes().
    struct Part {
        int64_t begin, end;
    };
    Part part_of(int worker, int64_t items, int64_t grain) const {
        if (items <= grain || count_ == 1) return {0, worker == 0 ? items : 0};
        return part_of(Group{0, count_}, worker, items, grain);
    }
    int node_of(int worker) const {
        int node = 0;
        while (worker >= nodes_[static_cast<size_t>(node)].first + nodes_[static_cast<size_t>(node)].count) ++node;
        return node;
    }
    Part part_in_node(int worker, int64_t items, int64_t grain) const {
        if (node_count() == 1) return part_of(worker, items, grain);
        return part_of(nodes_[static_cast<size_t>(node_of(worker))], worker, items, grain);
    }

private:
    using Function = void (*)(void* context, int worker);
    void run(Function function, void* context);
    /// A job of worker 0.
    template <typename Job>
    void alone(Job& job) {
        begin_alone();
        job(0);
        end_alone();
    }
    void begin_alone() noexcept;
    void end_alone() noexcept;

    // Of a part, at most; ever smaller ones, so that workers are done at nearly the same time and yet read long
    // streams.
    static constexpr int64_t kPieces = 16;
    static constexpr int kNeighbours = 3;  // that a worker helps: looking at all would take longer than it helps

    /// Workers that share a range of items.
    struct Group {
        int first, count;
    };

    static Part part_of(Group group, int worker, int64_t items, int64_t grain) {
        const int64_t wanted = (items + grain - 1) / grain, parts = wanted < group.count ? wanted : group.count;
        const int64_t part = worker - group.first;
        return part < parts ? Part{items * part / parts, items * (part + 1) / parts} : Part{0, 0};
    }

    /// What `worker` does of [0, items), which the group shares.
    template <typename Body>
    void work(Group group, int64_t items, int64_t grain, int worker, Body& body) {
        const int64_t wanted = (items + grain - 1) / grain, parts = wanted < group.count ? wanted : group.count;
        for (int i = 0; i < group.count && i <= kNeighbours; ++i) {
            const int64_t part = (worker - group.first + i) % group.count;
            if (part >= parts) continue;
            const int64_t first = items * part / parts, size = items * (part + 1) / parts - first;
            const int64_t whole = size / grain, pieces = whole < 1 ? 1 : whole < kPieces ? whole : kPieces;
            const int owner = group.first + static_cast<int>(part);
            // What is left after a piece shrinks with the square of the pieces left; some may be empty for the grain.
            const auto end_of = [&](int64_t piece) {
                const int64_t left = pieces - 1 - piece, of = pieces * pieces;
                const int64_t rest = ((size * left * left + of - 1) / of + grain - 1) / grain * grain;
                return first + size - (rest < size ? rest : size);
            };
            for (int64_t piece = claim(owner, pieces); piece < pieces; piece = claim(owner, pieces))
                if (end_of(piece - 1) < end_of(piece)) body(end_of(piece - 1), end_of(piece), worker);
        }
    }

    /// The next piece of `owner`'s part in this job; `pieces` when all are taken.
    int64_t claim(int owner, int64_t pieces) noexcept;

    struct Shared;
    std::unique_ptr<Shared> shared_;
    std::vector<Group> nodes_;
    std::vector<int> cpus_;
    int count_ = 1;
};

}  // namespace thermocline::cpu
