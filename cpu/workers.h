// A fixed set of pinned threads that run one function together. The caller is worker 0. Between jobs the threads
// spin for a short time, then park. No allocation, lock or std::function on the step path. Several Workers may exist
// in one process; they share no state. Not reentrant: one job at a time, always started from the owning thread.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <type_traits>

namespace thermocline::cpu {

/// Keeps the calling thread on one logical CPU. One that does not exist or is not ours (cgroups) is no error: the
/// thread then runs where the system puts it.
void pin_this_thread(int cpu);

class Workers {
public:
    /// `cpus`: logical CPUs to pin to, one worker each (the first one is the calling thread, which is not pinned).
    /// An empty list means one worker. Throws Error if a thread cannot be made.
    explicit Workers(std::span<const int> cpus);
    ~Workers();
    Workers(const Workers&) = delete;
    Workers& operator=(const Workers&) = delete;

    int count() const { return count_; }

    /// Runs body(worker) for worker = 0 .. count - 1, in parallel, and waits for all.
    template <typename Body>
    void each(Body&& body) {
        run([](void* context, int worker) { (*static_cast<std::remove_reference_t<Body>*>(context))(worker); }, &body);
    }

    /// Splits [0, items) into contiguous parts of at least `grain` and runs body(begin, end, worker).
    template <typename Body>
    void split(int64_t items, int64_t grain, Body&& body) {
        const int64_t parts = items <= grain                         ? 1
                              : (items + grain - 1) / grain < count_ ? (items + grain - 1) / grain
                                                                     : count_;
        if (parts <= 1) {
            if (items > 0) body(int64_t{0}, items, 0);
            return;
        }
        each([&](int worker) {
            if (worker >= parts) return;
            const int64_t begin = items * worker / parts, end = items * (worker + 1) / parts;
            if (begin < end) body(begin, end, worker);
        });
    }

private:
    using Function = void (*)(void* context, int worker);
    void run(Function function, void* context);

    struct Shared;
    std::unique_ptr<Shared> shared_;
    int count_ = 1;
};

}  // namespace thermocline::cpu
