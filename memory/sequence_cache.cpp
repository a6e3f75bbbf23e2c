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

}  // namespace

int64_t SequenceCache::Store::oldest_needed(int64_t position) const {
    return std::max<int64_t>(0, position / spec.ratio * spec.ratio - spec.history);
}

bool SequenceCache::Store::add_page() {
    auto* page = new (std::nothrow) std::byte[static_cast<size_t>(page_rows * spec.row_bytes())];
    if (page == nullptr) return false;
    pages.emplace_back(page);
    pointers.push_back(page);
    return true;
}

SequenceCache::SequenceCache(const std::vector<ops::CacheSpec>& specs, int64_t max_tokens)
    : max_tokens_(max_tokens), fingerprint_(fingerprint_of(specs)) {
    for (const ops::CacheSpec& spec : specs) {
        Store& store = stores_.emplace_back(Store{spec, page_rows_of(spec), 0, {}, {}});
        const auto most = static_cast<size_t>(pages_for(spec, max_tokens));
        store.pages.reserve(most);
        store.pointers.reserve(most);
        if (spec.kind == Kind::kRing && !store.add_page()) throw std::bad_alloc();
    }
    for (const Store& store : stores_)
        views_.push_back({store.pointers.data(), store.page_rows, store.spec.row_bytes(),
                          store.spec.kind == Kind::kRing ? store.spec.ring_rows : 0});
}

bool SequenceCache::reserve(int64_t tokens) {
    if (tokens > max_tokens_) return false;
    for (Store& store : stores_)
        while (static_cast<int64_t>(store.pages.size()) < pages_for(store.spec, tokens))
            if (!store.add_page()) return false;
    return true;
}

void SequenceCache::advance(int64_t tokens) {
    position_ += tokens;
    CHECK(position_ <= max_tokens_);
    for (Store& store : stores_)
        if (store.spec.kind == Kind::kRing)
            store.first_valid = std::max(store.first_valid, position_ - store.spec.ring_rows);
}

bool SequenceCache::can_roll_back(int64_t position) const {
    if (position < 0 || position > position_) return false;
    return std::all_of(stores_.begin(), stores_.end(), [&](const Store& store) {
        return store.spec.kind != Kind::kRing || position == position_ ||
               store.oldest_needed(position) >= store.first_valid;
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
        for (int64_t row = have; row < tokens / spec.ratio; ++row)
            std::memcpy(views_[i].row(row), views_[i].row(row % have), static_cast<size_t>(spec.row_bytes()));
    }
    advance(tokens - position_);
    return true;
}

void SequenceCache::clear() {
    position_ = 0;
    for (Store& store : stores_) store.first_valid = 0;
}

std::vector<std::byte> SequenceCache::snapshot() const {
    SnapshotWriter writer(kSnapshotVersion, fingerprint_);
    writer.number(position_);
    for (size_t i = 0; i < stores_.size(); ++i) {
        const Store& store = stores_[i];
        const bool ring = store.spec.kind == Kind::kRing;
        const int64_t begin = ring ? store.oldest_needed(position_) : 0;
        const int64_t end = ring ? position_ : position_ / store.spec.ratio;
        for (int64_t row = begin; row < end; ++row)
            writer.bytes({views_[i].row(row), static_cast<size_t>(store.spec.row_bytes())});
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
        for (int64_t row = store.first_valid; row < end; ++row)
            reader.bytes({views_[i].row(row), static_cast<size_t>(store.spec.row_bytes())});
    }
    position_ = position;
}

int64_t SequenceCache::bytes() const {
    int64_t total = 0;
    for (const Store& store : stores_)
        total += static_cast<int64_t>(store.pages.size()) * store.page_rows * store.spec.row_bytes();
    return total;
}

int64_t sequence_bytes(const std::vector<ops::CacheSpec>& specs, int64_t tokens) {
    int64_t total = 0;
    for (const ops::CacheSpec& spec : specs) total += pages_for(spec, tokens) * page_rows_of(spec) * spec.row_bytes();
    return total;
}

}  // namespace thermocline::memory
