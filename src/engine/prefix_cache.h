// The prefix cache: states of sequences, kept by the tokens that led to them, from which later sequences go on. In
// memory, and if there is a disk for them also there. Used by the engine thread.
#pragma once

#include "memory/prefix_disk.h"
#include "memory/prefix_tree.h"
#include "memory/sequence_cache.h"

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <utility>

namespace thermocline::engine {

class PrefixCache {
public:
    /// Keeps at most `budget` bytes in memory; 0: keeps nothing.
    PrefixCache(int64_t budget, std::unique_ptr<memory::PrefixDisk> disk) : tree_(budget), disk_(std::move(disk)) {}

    /// Brings an empty sequence to the longest known prefix of at most `limit` of the tokens; returns how many. 0 also
    /// if there is no memory for it.
    int64_t resume(memory::SequenceCache& sequence, const std::string& salt, std::span<const int32_t> tokens,
                   int64_t limit);
    /// How many of at most `limit` tokens the disk knows, if so many more than memory does that they are worth loading;
    /// else 0.
    int64_t worth_loading(const std::string& salt, std::span<const int32_t> tokens, int64_t limit);
    /// Loads the state after all the tokens from the disk; `done` hears about it on the disk thread.
    void load(const std::string& salt, std::span<const int32_t> tokens,
              std::function<void(std::optional<memory::StoredState>)> done);
    /// Takes a state that was loaded into memory.
    void take(const std::string& salt, std::span<const int32_t> tokens, const memory::StoredState& state);
    /// Writes what waits to the disk and lets go of it; `done`s that are due are heard before it returns.
    void close() { disk_.reset(); }

    /// Keeps the state of a sequence after these tokens, if it can still be told (SequenceCache::can_roll_back).
    void keep(memory::SequenceCache& sequence, const std::string& salt, std::span<const int32_t> tokens);
    /// What these tokens led to is not to be trusted.
    void forget(const std::string& salt, std::span<const int32_t> tokens) { tree_.forget(salt, tokens); }
    /// Gives all memory back; false if there was none.
    bool clear();
    int64_t bytes() const { return tree_.bytes(); }
    int64_t disk_bytes() const { return disk_ ? disk_->bytes() : 0; }

private:
    memory::PrefixTree tree_;
    std::unique_ptr<memory::PrefixDisk> disk_;  // may be null
};

}  // namespace thermocline::engine
