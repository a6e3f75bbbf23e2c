#include "src/engine/batcher.h"

#include "src/base/check.h"

#include <algorithm>
#include <cstddef>
#include <tuple>
#include <utility>

namespace thermocline::engine {
namespace {

/// A sequence is let in only if it could also grow by that many tokens: one that had to leave again at once would have
/// computed for nothing.
constexpr int64_t kHeadroomTokens = 128;

}  // namespace

Batcher::Batcher(BatchLimits limits, std::function<int64_t(int64_t)> kv_bytes)
    : limits_(limits), kv_bytes_(std::move(kv_bytes)) {
    CHECK(limits.max_sequences >= 1 && limits.max_sequences <= std::min(limits.max_rows, limits.max_outputs));
}

bool Batcher::goes_before(const Entry& a, const Entry& b) {
    return std::tie(a.priority, a.arrival) < std::tie(b.priority, b.arrival);
}

void Batcher::insert(std::vector<Entry>& into, const Entry& entry) {
    into.insert(std::upper_bound(into.begin(), into.end(), entry, goes_before), entry);
}

Batcher::Entry& Batcher::running_entry(SequenceId id) {
    const auto found =
        std::find_if(running_.begin(), running_.end(), [id](const Entry& entry) { return entry.id == id; });
    CHECK(found != running_.end());
    return *found;
}

void Batcher::add(SequenceId id, int32_t priority, int64_t tokens, bool scores) {
    CHECK(tokens >= 1);
    insert(waiting_, {.id = id, .priority = priority, .arrival = arrivals_++, .tokens = tokens, .scores = scores});
}

void Batcher::remove(SequenceId id) {
    const auto gone = [id](const Entry& entry) { return entry.id == id; };
    CHECK(std::erase_if(waiting_, gone) + std::erase_if(running_, gone) == 1);
}

int64_t Batcher::kv_used() const {
    int64_t bytes = 0;
    for (const Entry& entry : running_) bytes += kv_bytes_(entry.tokens);
    return bytes;
}

bool Batcher::has_room_for(const Entry& entry) const {
    return running_.empty() || kv_used() + kv_bytes_(entry.tokens + kHeadroomTokens) <= limits_.kv_bytes;
}

/// A running sequence to the queue.
void Batcher::put_back(size_t index) {
    Entry entry = running_[index];
    running_.erase(running_.begin() + static_cast<std::ptrdiff_t>(index));
    entry.cached = 0;
    entry.held = false;
    insert(waiting_, entry);
}

Batcher::Turnover Batcher::turn_over() {
    Turnover turnover;
    while (running_.size() > 1 && kv_used() > limits_.kv_bytes) {
        turnover.preempted.push_back(running_.back().id);
        put_back(running_.size() - 1);
    }
    while (!waiting_.empty() && running() < limits_.max_sequences && has_room_for(waiting_.front())) {
        turnover.admitted.push_back(waiting_.front().id);
        insert(running_, waiting_.front());
        waiting_.erase(waiting_.begin());
    }
    return turnover;
}

bool Batcher::give_way(SequenceId id) {
    if (running_.size() < 2) return false;
    put_back(static_cast<size_t>(&running_entry(id) - running_.data()));
    limits_.kv_bytes = std::min(limits_.kv_bytes, kv_used());
    return true;
}

void Batcher::set_cached(SequenceId id, int64_t tokens) {
    Entry& entry = running_entry(id);
    CHECK(tokens >= 0 && tokens < entry.tokens);
    entry.cached = tokens;
}

void Batcher::hold(SequenceId id, bool held) { running_entry(id).held = held; }

void Batcher::computed(SequenceId id, int64_t rows, bool drew) {
    Entry& entry = running_entry(id);
    entry.cached += rows;
    CHECK(entry.cached <= entry.tokens);
    if (drew) ++entry.tokens;
}

void Batcher::plan(std::vector<Share>& shares) const {
    shares.clear();
    std::vector<Entry> prefilling;
    for (const Entry& entry : running_) {
        if (entry.decodes()) shares.push_back({entry.id, 1, 1});
        if (entry.prefills()) prefilling.push_back(entry);
    }
    const auto decoding = static_cast<int64_t>(shares.size()), others = static_cast<int64_t>(prefilling.size());
    // Whoever comes to its last token needs an output: one is set aside for each.
    share_rows(shares, std::move(prefilling), limits_.max_rows - decoding, limits_.max_outputs - decoding - others);
}

/// Equal shares within a priority; what the short ones do not need is for the longer ones, then for the next priority.
/// `outputs`: that are left for those who score, besides one for each.
void Batcher::share_rows(std::vector<Share>& shares, std::vector<Entry> prefilling, int64_t rows,
                         int64_t outputs) const {
    std::stable_sort(prefilling.begin(), prefilling.end(), [](const Entry& a, const Entry& b) {
        return std::make_tuple(a.priority, a.left()) < std::make_tuple(b.priority, b.left());
    });
    int64_t scoring = std::count_if(prefilling.begin(), prefilling.end(), [](const Entry& e) { return e.scores; });
    for (auto entry = prefilling.begin(); entry != prefilling.end() && rows > 0; ++entry) {
        const int64_t peers = std::count_if(entry, prefilling.end(),
                                            [&](const Entry& other) { return other.priority == entry->priority; });
        int64_t count = std::min(entry->left(), std::max<int64_t>(1, rows / peers));
        int64_t wanted = count == entry->left() ? 1 : 0;
        if (entry->scores) {
            count = std::min(count, 1 + outputs / scoring--);
            outputs -= count - 1;
            wanted = count;
        }
        rows -= count;
        shares.push_back({entry->id, count, wanted});
    }
}

}  // namespace thermocline::engine
