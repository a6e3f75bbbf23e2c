// A stream that puts independent kernels into common launches. Whoever fills it says which kernels must come after
// which, by levels: all of a level are independent of each other, and come after those of the levels below.
//
// Used by one thread. What is given to it reaches the stream behind it at flush(), or before a copy, a wait
// or a product of a library.
#pragma once

#include "cuda/device.h"

#include <cstddef>
#include <cstdint>
#include <vector>

namespace thermocline::cuda {

class Waves : public Stream {
public:
    /// `to` must outlive it.
    explicit Waves(Stream& to) : to_(to) {}

    /// Kernels launched from here on are of this level, the next one of the level after it, and so on. Levels start
    /// anew at 0 with every flush().
    void begin(int level) { level_ = level; }
    /// The level after that of the last launch.
    int level() const { return level_; }
    void flush();

    void launch(int kernel, const Grid& grid, const void* members, size_t bytes) override;
    void multiply(const DenseProduct& product) override;
    void copy(void* to, const void* from, int64_t bytes) override;
    void wait_for(const Flag* flag) override;
    void begin_recording() override;
    std::unique_ptr<Graph> end_recording() override;
    void play(const Graph& graph) override;
    bool finished() override;
    void wait(std::chrono::milliseconds limit) override;

private:
    /// Launches of one level that may meet in one kernel.
    enum class Meeting : uint8_t { kNever, kRows, kEntries, kProducts };
    struct Launch {
        int level;
        Meeting meeting;
        int kernel;
        Grid grid;
        size_t at, bytes;  // of members_
    };
    static Meeting meeting_of(int kernel);
    void start(size_t begin, size_t end);
    template <typename List>
    void start_together(size_t begin, size_t end);

    Stream& to_;
    int level_ = 0;
    std::vector<Launch> launches_;
    std::vector<std::byte> members_;
};

}  // namespace thermocline::cuda
