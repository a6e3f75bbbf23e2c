// Everything one sequence remembers (deepseek-v4.md section 6.1): window rings, compressed entries, index keys,
// compressor states, for every cache of a plan. Entries grow page by page; rings have a fixed size with some rows to
// spare, so that the last tokens can be taken back. Used by one thread at a time.
#pragma once

#include "memory/page_store.h"
#include "src/ops/batch.h"
#include "src/ops/plan.h"

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

namespace thermocline::memory {

class SequenceCache {
public:
    /// `max_tokens`: the longest the sequence may become. Rings are allocated now, entries when reserved. `pages` must
    /// outlive it. Throws std::bad_alloc if there is no room for the rings.
    SequenceCache(const std::vector<ops::CacheSpec>& specs, int64_t max_tokens, PageStore& pages = host_pages());
    /// The pages of every cache in a store of its own: [specs].
    SequenceCache(const std::vector<ops::CacheSpec>& specs, int64_t max_tokens, std::span<PageStore* const> pages);
    SequenceCache(const SequenceCache&) = delete;
    SequenceCache& operator=(const SequenceCache&) = delete;
    ~SequenceCache();

    int64_t position() const { return position_; }
    int64_t max_tokens() const { return max_tokens_; }

    /// Makes room for `tokens` in all; false when that is over max_tokens or memory is short.
    bool reserve(int64_t tokens);
    /// The rows of `tokens` more tokens have been written by a forward pass.
    void advance(int64_t tokens);
    /// A forward pass over so many more tokens was given up: what it wrote may have taken the place of rows that the
    /// sequence needs to go on.
    void spoil(int64_t tokens);
    /// False if it was spoiled so: it is of no use until restore(), roll_back() or clear().
    bool can_go_on() const { return can_roll_back(position_); }
    /// Views for ops::Segment::caches, valid until the next reserve(); addresses of where the pages lie.
    const ops::CacheView* views() const { return views_.data(); }

    /// True if the caches can go back to `position` without recomputing (6.6).
    bool can_roll_back(int64_t position) const;
    /// Forgets tokens from `position` on; CHECKs can_roll_back.
    void roll_back(int64_t position);
    /// Continues the sequence to `tokens` with copies of the rows that it has, for benchmarks of long contexts. Every
    /// ring must be full and every list of entries begun, unless nothing is missing (CHECK). False when memory is
    /// short.
    bool repeat_to(int64_t tokens);
    /// Back to position 0, keeping the memory.
    void clear();

    /// The state at position() as bytes: versioned, checksummed, with a fingerprint of the cache specs (6.5).
    std::vector<std::byte> snapshot();
    /// Replaces the state; Error if the bytes are damaged, of another version, or of a plan with other caches.
    void restore(std::span<const std::byte> bytes);

    /// The same in pieces, for a cache of prefixes. Entries that tokens [begin, end) complete, end <= position(): they
    /// depend on the tokens up to `end` alone.
    std::vector<std::byte> read_entries(int64_t begin, int64_t end);
    /// What else a sequence at `position` needs: rows of the rings. CHECKs can_roll_back(position).
    std::vector<std::byte> read_tail(int64_t position);
    /// Puts them back: all entries in order from token 0 on, then resume_at the position where they end. Room must have
    /// been reserved. Error if the number of bytes is wrong; only clear() mends the cache then.
    void write_entries(int64_t begin, int64_t end, std::span<const std::byte> bytes);
    void resume_at(int64_t position, std::span<const std::byte> tail);

    /// Of the cache specs: states can be given only to caches of the same.
    uint64_t fingerprint() const { return fingerprint_; }
    /// Bytes held now.
    int64_t bytes() const;

private:
    struct Store {
        PageStore& pages_of;
        ops::CacheSpec spec;
        int64_t page_rows;
        int64_t first_valid;            // rings: rows of older positions have been overwritten
        std::vector<std::byte*> pages;  // never grows past its reserved capacity

        int64_t oldest_needed(int64_t position) const;
        int64_t page_bytes() const { return page_rows * spec.row_bytes(); }
    };

    bool add_page(size_t cache);
    void give_back();
    /// body(store, address, bytes) of rows [begin, end) of a cache, those that lie together at once.
    template <typename Body>
    void for_rows(size_t cache, int64_t begin, int64_t end, Body body);
    /// The same of all entries that tokens [begin, end) complete; of all rows of rings needed at a position.
    template <typename Body>
    void for_entries(int64_t begin, int64_t end, Body body);
    template <typename Body>
    void for_tail(int64_t position, Body body);

    std::vector<Store> stores_;
    std::vector<ops::CacheView> views_;
    int64_t max_tokens_;
    int64_t position_ = 0;
    uint64_t fingerprint_;  // of the specs
};

/// The pages that one cache of a sequence of some length has.
struct PageCount {
    int64_t pages, page_bytes;
};
/// Of every cache, for a sequence of `tokens` tokens.
std::vector<PageCount> page_counts(const std::vector<ops::CacheSpec>& specs, int64_t tokens);

/// Bytes that one sequence of `tokens` tokens needs for `specs`.
int64_t sequence_bytes(const std::vector<ops::CacheSpec>& specs, int64_t tokens);

}  // namespace thermocline::memory
