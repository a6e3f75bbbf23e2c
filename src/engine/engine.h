// Runs requests on a model, many at a time: in every forward pass each running sequence computes its share, as the
// batcher says. One thread, the engine thread, owns the model, the caches and the running sequences; everything else
// talks to it through submit() and Ticket::cancel(), which any thread may call and which never wait for a forward pass.
//
// A sequence computes the same numbers whoever shares its passes. States of sequences are kept in the prefix cache:
// later prompts that begin alike go on from there, and so does a sequence that had to give its memory back for a while.
#pragma once

#include "cpu/worker_watch.h"
#include "src/base/error.h"
#include "src/engine/batcher.h"
#include "src/engine/forward.h"
#include "src/engine/prefix_cache.h"
#include "src/engine/request.h"
#include "src/engine/sampler.h"
#include "src/engine/sequence.h"

#include <array>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

namespace thermocline::engine {

struct EngineLimits {
    int64_t max_queue = 256;                  ///< waiting requests; 0: no limit
    std::vector<int32_t> eos_ids;             ///< end every sequence
    int64_t max_sequences = 1;                ///< that run at once, as far as the model's limits allow
    int64_t kv_bytes = 0;                     ///< of their caches together; 0: what so many of the longest need
    int64_t prefix_bytes = int64_t{1} << 30;  ///< of the prefix cache; 0: there is none
};

/// The prompt leaves no room for a token of output.
class ContextOverflow : public Error {
public:
    ContextOverflow(int64_t prompt_tokens, int64_t max_model_len);
    int64_t prompt_tokens() const { return prompt_tokens_; }
    int64_t max_model_len() const { return max_model_len_; }

private:
    int64_t prompt_tokens_, max_model_len_;
};

/// How the engine stands, and what it has done since its start.
struct Counters {
    static constexpr size_t kPassSizes = 16;
    int64_t running = 0, waiting = 0;
    int64_t kv_used_bytes = 0, kv_total_bytes = 0;       // caches of what runs; the budget
    int64_t kv_sequence_bytes = 0;                       // caches of the longest sequence
    int64_t passes = 0;                                  // forward passes
    int64_t pass_tokens = 0, pass_sequences = 0;         // in all of them together
    std::array<int64_t, kPassSizes> passes_by_tokens{};  // [i]: more than 2^(i-1), at most 2^i; the last: any more
    int64_t longest_sequence = 0;                        // tokens in its caches, so far
    int64_t prompt_tokens = 0;                           // of requests that began
    int64_t output_tokens = 0;
    int64_t preemptions = 0;
    int64_t prefix_queries = 0, prefix_hits = 0;      // prompt tokens looked up in the prefix cache, found there
    int64_t prefix_bytes = 0, prefix_disk_bytes = 0;  // that it holds in memory, on disk
    int64_t prefix_loads = 0, prefix_disk_hits = 0;   // states that came from the disk, prompt tokens of them
};

class Engine {
public:
    /// The model is used by the engine thread from here on; `kernels` sample. Throws Error if limits.kv_bytes cannot
    /// hold the longest sequence.
    /// `disk`: for the prefix cache; may be null.
    Engine(std::unique_ptr<Forward> model, EngineLimits limits, const cpu::KernelTable& kernels,
           std::unique_ptr<memory::PrefixDisk> disk = nullptr);
    /// Cancels what runs, refuses what waits, waits for the thread; ends the process if that never returns from a pass.
    ~Engine();
    Engine(const Engine&) = delete;
    Engine& operator=(const Engine&) = delete;

    int64_t vocab() const { return vocab_; }
    const std::vector<int32_t>& eos_ids() const { return limits_.eos_ids; }
    /// Tokens of prompt and output together.
    int64_t max_model_len() const { return max_model_len_; }
    /// Requests that may run at once.
    int64_t max_sequences() const { return max_sequences_; }

    /// Throws Error naming what is wrong with the request. submit() does it too.
    void check(const Request& request) const;
    /// Queues the request; nothing when the queue is full or the engine is shutting down.
    std::shared_ptr<Ticket> submit(Request request, std::shared_ptr<Listener> listener);

    struct Load {
        int64_t running = 0;
        int64_t waiting = 0;
    };
    Load load() const;
    Counters counters() const;
    /// A place for each sequence that may run at once.
    struct Slot {
        SequenceId sequence = -1;  // -1: free
        int64_t prompt_tokens = 0, output_tokens = 0;
    };
    std::vector<Slot> slots() const;
    /// So many passes failed in a row that no other will succeed, or one never ends: what ran and waited has failed,
    /// nothing is taken.
    bool broken() const;
    /// From here on a pass in which the workers, which the model computes with, do not go on for `patience` is given
    /// up. 0: none is. Once, before the first request.
    void watch(const cpu::Workers& workers, std::chrono::milliseconds patience);
    /// Refuses what waits and what comes; what has begun goes on.
    void drain();
    bool draining() const;

private:
    using Sequences = std::map<SequenceId, std::unique_ptr<Sequence>>;

    /// A state that the disk has brought for a sequence, or not.
    struct Loaded {
        SequenceId id;
        std::optional<memory::StoredState> state;
    };

    void run();
    bool await_work();
    void end_unwanted();
    std::optional<FinishReason> why_unwanted(const Sequence& sequence) const;
    void turn_over();
    void begin(Sequence& sequence);
    void load_prefix(Sequence& sequence, int64_t tokens);
    void take_loaded();
    void rest();
    void go_on(Sequence& sequence, int64_t loaded = 0);
    void start(Sequence& sequence, int64_t cached);
    void remember(Sequence& sequence, int64_t position);
    void remember_progress(Sequence& sequence);
    void give_way(Sequence& sequence);
    void reserve_room();
    void pass();
    bool set_passing(bool now);
    void count_pass();
    void fail_pass(const std::string& error);
    void give_up(const std::string& why);
    void advance(Sequence& sequence, const Share& share, int64_t first_output);
    void report_prompt(Sequence& sequence, int64_t first, int64_t first_output, int64_t count);
    std::optional<FinishReason> draw(Sequence& sequence, int64_t output);
    std::span<const float> logits(int64_t output) const;
    void fail_with(Sequence& sequence, const std::string& error);
    void refuse(Sequence& sequence, const std::string& fault);
    void end(Sequence& sequence, Result result);
    Sequence& take_slot(SequenceId id);
    void to_queue(SequenceId id);
    void publish();

    const std::unique_ptr<Forward> model_;
    const EngineLimits limits_;
    const int64_t vocab_;
    const int64_t max_model_len_;
    const int64_t max_sequences_;

    // Owned by the engine thread.
    Sampler sampler_;
    PrefixCache prefixes_;
    Sequences running_;
    std::vector<Share> shares_;           // of the pass at hand
    std::vector<scheduler::Part> parts_;  // likewise
    Counters counted_;
    int failed_passes_ = 0;  // since the last one that succeeded

    mutable std::mutex mutex_;  // guards what follows
    std::condition_variable wake_;
    Batcher batcher_;
    Sequences waiting_;
    std::vector<Loaded> loaded_;  // from the disk, not yet taken
    Counters counters_;           // as of the last pass
    std::vector<Slot> slots_;     // likewise
    SequenceId next_id_ = 0;
    bool draining_ = false;
    bool stopping_ = false;
    bool broken_ = false;
    bool passing_ = false;   // the engine thread is in the model; it touches no sequence then
    bool given_up_ = false;  // a pass: who took part has been told, what it works on stays
    bool ended_ = false;     // the engine thread

    std::optional<cpu::WorkerWatch> watch_;
    std::thread thread_;  // last: starts when all else is there
};

}  // namespace thermocline::engine
