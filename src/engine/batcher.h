// Decides which sequences take part in the next forward pass, and with how many of their tokens. Pure: no clock, no
// threads, no model; the same calls give the same answers. The engine guards it with its lock.
//
// A sequence waits, or runs: then it holds a place and KV memory for all its tokens. One that is down to its last token
// takes one row of every pass (decode); what rows are left go to the others (prefill) in equal shares, the most
// important first. When KV memory gets short, the least important sequence, of these the youngest, goes back to the
// queue and begins again later. It keeps its turn, so that whoever came first within a priority also gets in first.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <vector>

namespace thermocline::engine {

using SequenceId = int64_t;

struct BatchLimits {
    int64_t max_sequences;  ///< that run at once; at most max_rows and max_outputs
    int64_t max_rows;       ///< tokens in one pass
    int64_t max_outputs;    ///< rows of logits in one pass
    int64_t kv_bytes;       ///< of all that run together; at least what the longest sequence may need
};

/// What one sequence does in a pass: computes its next `rows` tokens and wants logits of the last `outputs` of them.
struct Share {
    SequenceId id;
    int64_t rows;
    int64_t outputs;
};

class Batcher {
public:
    /// `kv_bytes(tokens)`: what the caches of a sequence of so many tokens take.
    Batcher(BatchLimits limits, std::function<int64_t(int64_t)> kv_bytes);

    /// Joins the queue, behind all of the same priority (lower ones go first). `tokens`: of its prompt, at least 1.
    /// `scores`: it wants logits of every row.
    void add(SequenceId id, int32_t priority, int64_t tokens, bool scores);
    /// Leaves, waiting or running.
    void remove(SequenceId id);

    struct Turnover {
        std::vector<SequenceId> preempted;  // run no longer: nothing of them is cached
        std::vector<SequenceId> admitted;   // run from now on
    };
    /// Makes room for what runs, then lets in what fits.
    Turnover turn_over();

    /// The shares of the next pass: empty if nothing runs, or all that runs is held.
    void plan(std::vector<Share>& shares) const;

    /// A running sequence has `tokens` of its tokens in its caches; the last one must still be computed.
    void set_cached(SequenceId id, int64_t tokens);
    /// While held, a running sequence takes no part in passes.
    void hold(SequenceId id, bool held);
    /// A running sequence has computed so many more tokens, and then perhaps drawn one.
    void computed(SequenceId id, int64_t rows, bool drew);
    /// Memory was refused to a running sequence: it goes back to the queue, and no more is used from now on than the
    /// others hold. False if it runs alone; nothing is changed then.
    bool give_way(SequenceId id);

    int64_t running() const { return static_cast<int64_t>(running_.size()); }
    int64_t waiting() const { return static_cast<int64_t>(waiting_.size()); }
    const BatchLimits& limits() const { return limits_; }
    /// Of all that runs, with the tokens that are still to be computed.
    int64_t kv_used() const;

private:
    struct Entry {
        SequenceId id;
        int32_t priority;
        int64_t arrival;
        int64_t tokens;      // of the prompt and drawn
        int64_t cached = 0;  // of them
        bool scores;
        bool held = false;
        int64_t left() const { return tokens - cached; }
        bool decodes() const { return !held && left() == 1; }
        bool prefills() const { return !held && left() > 1; }
    };
    static bool goes_before(const Entry& a, const Entry& b);
    static void insert(std::vector<Entry>& into, const Entry& entry);
    Entry& running_entry(SequenceId id);
    void put_back(std::size_t index);
    bool has_room_for(const Entry& entry) const;
    void share_rows(std::vector<Share>& shares, std::vector<Entry> prefilling, int64_t rows, int64_t outputs) const;

    BatchLimits limits_;
    std::function<int64_t(int64_t)> kv_bytes_;
    std::vector<Entry> waiting_, running_;  // the most important first, then the oldest
    int64_t arrivals_ = 0;
};

}  // namespace thermocline::engine
