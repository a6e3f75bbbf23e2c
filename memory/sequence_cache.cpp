#include "memory/sequence_cache.h"

#include "memory/snapshot_bytes.h"
#include "src/base/check.h"

#include <algorithm>
#include <cstring>
#include <new>

namespace thermocline::memory {

namespace {

using Kind = ops::CacheSpec::Kind;

constexpr int64_t kPageBytes = 64 << 10;
constexpr uint32_t kSnapshotVersion = 1;

uint64_t fingerprint_of(const std::vector<ops::CacheSpec>& specs) {
    uint64_t hash = kChecksumStart;
    for (const ops::CacheSpec& spec : specs)
        for (const int64_t value : {static_cast<int64_t>(spec.kind), static_cast<int64_t>(spec.format), spec.width,
                                    spec.rope, int64_t{spec.ratio}, int64_t{spec.history}})
            hash = checksum_of({reinterpret_cast<const std::byte*>(&value), sizeof value}, hash);
    return hash;
}

int64_t page_rows_of(const ops::CacheSpec& spec) {
    return spec.kind == Kind::kRing ? spec.ring_rows : std::max<int64_t>(1, kPageBytes / spec.row_bytes());
}

int64_t pages_for(const ops::CacheSpec& spec, int64_t tokens) {
    if (spec.kind == Kind::kRing) return 1;
    const int64_t rows = page_rows_of(spec);
    return (tokens / spec.ratio + rows - 1) / rows;
}

class HostPages : public PageStore {
public:
    std::byte* take(int64_t bytes) override { return new (std::nothrow) std::byte[static_cast<size_t>(bytes)]; }
    void give_back(std::byte* page, int64_t) noexcept override { delete[] page; }
    void read(const std::byte* page, void* to, int64_t bytes) override {
        std::memcpy(to, page, static_cast<size_t>(bytes));
    }
    void write(std::byte* page, const void* from, int64_t bytes) override {
        std::memcpy(page, from, static_cast<size_t>(bytes));
    }
};

}  // namespace

PageStore& host_pages() {
    static HostPages pages;  // has no state
    return pages;
}

int64_t SequenceCache::Store::oldest_needed(int64_t position) const {
    return std::max<int64_t>(0, position / spec.ratio * spec.ratio - spec.history);
}

bool SequenceCache::add_page(size_t cache) {
    Store& store = stores_[cache];
    std::byte* page = store.pages_of.take(store.page_bytes());
    if (page == nullptr) return false;
    store.pages.push_back(page);
    views_[cache].page_count = std::ssize(store.pages);
    return true;
}

template <typename Body>
void SequenceCache::for_rows(size_t cache, int64_t begin, int64_t end, Body body) {
    const Store& store = stores_[cache];
    for (int64_t row = begin, count = 0; row < end; row += count) {
        const int64_t in_page = store.spec.kind == Kind::kRing ? row % store.spec.ring_rows : row % store.page_rows;
        count = std::min(end - row, store.page_rows - in_page);
        body(store.pages_of, views_[cache].row(row), count * store.spec.row_bytes());
    }
}

SequenceCache::SequenceCache(const std::vector<ops::CacheSpec>& specs, int64_t max_tokens, PageStore& pages)
    : SequenceCache(specs, max_tokens, std::vector<PageStore*>(specs.size(), &pages)) {}

SequenceCache::SequenceCache(const std::vector<ops::CacheSpec>& specs, int64_t max_tokens,
                             std::span<PageStore* const> pages)
    : max_tokens_(max_tokens), fingerprint_(fingerprint_of(specs)) {
    CHECK(pages.size() == specs.size());
    for (size_t i = 0; i < specs.size(); ++i) {
        const ops::CacheSpec& spec = specs[i];
        Store& store = stores_.emplace_back(Store{*pages[i], spec, page_rows_of(spec), 0, {}});
        store.pages.reserve(static_cast<size_t>(pages_for(spec, max_tokens)));
        views_.push_back({store.pages.data(), store.page_rows, store.spec.row_bytes(),
                          spec.kind == Kind::kRing ? spec.ring_rows : 0});
    }
    for (size_t i = 0; i < stores_.size(); ++i)
        if (specs[i].kind == Kind::kRing && !add_page(i)) {
            give_back();
            throw std::bad_alloc();
        }
}

SequenceCache::~SequenceCache() { give_back(); }

void SequenceCache::give_back() {
    for (Store& store : stores_)
        for (std::byte* page : store.pages) store.pages_of.give_back(page, store.page_bytes());
}

bool SequenceCache::reserve(int64_t tokens) {
    if (tokens > max_tokens_) return false;
    for (size_t i = 0; i < stores_.size(); ++i)
        while (std::ssize(stores_[i].pages) < pages_for(stores_[i].spec, tokens))
            if (!add_page(i)) return false;
    return true;
}

void SequenceCache::advance(int64_t tokens) {
    for (Store& store : stores_)  // what was spoiled from here on is written now
        store.first_valid = std::min(store.first_valid, position_);
    spoil(tokens);
    position_ += tokens;
    CHECK(position_ <= max_tokens_);
}

void SequenceCache::spoil(int64_t tokens) {
    for (Store& store : stores_)
        if (store.spec.kind == Kind::kRing)
            store.first_valid = std::max(store.first_valid, position_ + tokens - store.spec.ring_rows);
}

bool SequenceCache::can_roll_back(int64_t position) const {
    if (position < 0 || position > position_) return false;
    return std::all_of(stores_.begin(), stores_.end(), [&](const Store& store) {
        const int64_t oldest = store.oldest_needed(position);
        return store.spec.kind != Kind::kRing || oldest == position || oldest >= store.first_valid;
    });
}

void SequenceCache::roll_back(int64_t position) {
    CHECK(can_roll_back(position));
    position_ = position;
}

bool SequenceCache::repeat_to(int64_t tokens) {
    CHECK(tokens >= position_);
    if (tokens == position_) return true;
    if (!reserve(tokens)) return false;
    for (size_t i = 0; i < stores_.size(); ++i) {
        const ops::CacheSpec& spec = stores_[i].spec;
        if (spec.kind == Kind::kRing) {
            CHECK(position_ >= spec.ring_rows);  // every row of it holds something
            continue;
        }
        const int64_t have = position_ / spec.ratio;
        CHECK(have > 0);
        std::vector<std::byte> rows;
        for_rows(i, 0, have, [&](PageStore& pages, const std::byte* from, int64_t bytes) {
            rows.resize(rows.size() + static_cast<size_t>(bytes));
            pages.read(from, rows.data() + rows.size() - bytes, bytes);
        });
        for (int64_t row = have; row < tokens / spec.ratio; row += have) {
            const std::byte* from = rows.data();
            for_rows(i, row, std::min(row + have, tokens / spec.ratio),
                     [&](PageStore& pages, std::byte* to, int64_t bytes) {
                         pages.write(to, from, bytes);
                         from += bytes;
                     });
        }
    }
    advance(tokens - position_);
    return true;
}

void SequenceCache::clear() {
    position_ = 0;
    for (Store& store : stores_) store.first_valid = 0;
}

template <typename Body>
void SequenceCache::for_entries(int64_t begin, int64_t end, Body body) {
    for (size_t i = 0; i < stores_.size(); ++i)
        if (stores_[i].spec.kind == Kind::kEntries)
            for_rows(i, begin / stores_[i].spec.ratio, end / stores_[i].spec.ratio, body);
}

template <typename Body>
void SequenceCache::for_tail(int64_t position, Body body) {
    for (size_t i = 0; i < stores_.size(); ++i)
        if (stores_[i].spec.kind == Kind::kRing) for_rows(i, stores_[i].oldest_needed(position), position, body);
}

std::vector<std::byte> SequenceCache::snapshot() {
    SnapshotWriter writer(kSnapshotVersion, fingerprint_);
    writer.number(position_);
    for (size_t i = 0; i < stores_.size(); ++i) {
        const Store& store = stores_[i];
        const bool ring = store.spec.kind == Kind::kRing;
        const int64_t begin = ring ? store.oldest_needed(position_) : 0;
        const int64_t end = ring ? position_ : position_ / store.spec.ratio;
        for_rows(i, begin, end, [&](PageStore& pages, const std::byte* from, int64_t bytes) {
            pages.read(from, writer.room(bytes), bytes);
        });
    }
    return writer.finish();
}

void SequenceCache::restore(std::span<const std::byte> bytes) {
    SnapshotReader reader(bytes, kSnapshotVersion, fingerprint_);
    const int64_t position = reader.number();
    if (position < 0 || position > max_tokens_)
        fail("snapshot: holds ", position, " tokens, this sequence may have at most ", max_tokens_);
    int64_t expected = 0;
    for (const Store& store : stores_) {
        const bool ring = store.spec.kind == Kind::kRing;
        expected +=
            (ring ? position - store.oldest_needed(position) : position / store.spec.ratio) * store.spec.row_bytes();
    }
    reader.expect_left(expected);
    if (!reserve(position)) fail("snapshot: no memory for ", position, " tokens");
    for (size_t i = 0; i < stores_.size(); ++i) {
        Store& store = stores_[i];
        const bool ring = store.spec.kind == Kind::kRing;
        store.first_valid = ring ? store.oldest_needed(position) : 0;
        const int64_t end = ring ? position : position / store.spec.ratio;
        for_rows(i, store.first_valid, end,
                 [&](PageStore& pages, std::byte* to, int64_t count) { pages.write(to, reader.next(count), count); });
    }
    position_ = position;
}

std::vector<std::byte> SequenceCache::read_entries(int64_t begin, int64_t end) {
    CHECK(begin <= end && end <= position_);
    int64_t size = 0;
    for_entries(begin, end, [&](PageStore&, const std::byte*, int64_t bytes) { size += bytes; });
    std::vector<std::byte> out(static_cast<size_t>(size));
    std::byte* to = out.data();
    for_entries(begin, end, [&](PageStore& pages, const std::byte* from, int64_t bytes) {
        pages.read(from, to, bytes);
        to += bytes;
    });
    return out;
}

std::vector<std::byte> SequenceCache::read_tail(int64_t position) {
    CHECK(can_roll_back(position));
    int64_t size = 0;
    for_tail(position, [&](PageStore&, const std::byte*, int64_t bytes) { size += bytes; });
    std::vector<std::byte> out(static_cast<size_t>(size));
    std::byte* to = out.data();
    for_tail(position, [&](PageStore& pages, const std::byte* from, int64_t bytes) {
        pages.read(from, to, bytes);
        to += bytes;
    });
    return out;
}

void SequenceCache::write_entries(int64_t begin, int64_t end, std::span<const std::byte> bytes) {
    int64_t size = 0;
    for_entries(begin, end, [&](PageStore&, const std::byte*, int64_t count) { size += count; });
    if (std::ssize(bytes) != size)
        fail("entries of tokens ", begin, " to ", end, ": ", bytes.size(), " bytes, expected ", size);
    for_entries(begin, end, [&](PageStore& pages, std::byte* to, int64_t count) {
        pages.write(to, bytes.data(), count);
        bytes = bytes.subspan(static_cast<size_t>(count));
    });
}

void SequenceCache::resume_at(int64_t position, std::span<const std::byte> tail) {
    int64_t size = 0;
    for_tail(position, [&](PageStore&, const std::byte*, int64_t count) { size += count; });
    if (std::ssize(tail) != size) fail("tail at token ", position, ": ", tail.size(), " bytes, expected ", size);
    for_tail(position, [&](PageStore& pages, std::byte* to, int64_t count) {
        pages.write(to, tail.data(), count);
        tail = tail.subspan(static_cast<size_t>(count));
    });
    for (Store& store : stores_) store.first_valid = store.spec.kind == Kind::kRing ? store.oldest_needed(position) : 0;
    position_ = position;
}

int64_t SequenceCache::bytes() const {
    int64_t total = 0;
    for (const Store& store : stores_) total += std::ssize(store.pages) * store.page_bytes();
    return total;
}

std::vector<PageCount> page_counts(const std::vector<ops::CacheSpec>& specs, int64_t tokens) {
    std::vector<PageCount> counts;
    for (const ops::CacheSpec& spec : specs)
        counts.push_back({pages_for(spec, tokens), page_rows_of(spec) * spec.row_bytes()});
    return counts;
}

int64_t sequence_bytes(const std::vector<ops::CacheSpec>& specs, int64_t tokens) {
    int64_t total = 0;
    for (const PageCount& one : page_counts(specs, tokens)) total += one.pages * one.page_bytes;
    return total;
}

}  // namespace thermocline::memory
