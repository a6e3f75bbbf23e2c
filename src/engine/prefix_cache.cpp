#include "src/engine/prefix_cache.h"

#include "src/base/error.h"
#include "src/base/log.h"

#include <algorithm>
#include <memory>
#include <new>
#include <utility>
#include <vector>

namespace thermocline::engine {
namespace {

/// Fewer tokens are computed as fast as they are written and read.
constexpr int64_t kLeastDiskTokens = 256;

memory::SharedBytes shared(std::vector<std::byte> bytes) {
    return std::make_shared<const std::vector<std::byte>>(std::move(bytes));
}

}  // namespace

int64_t PrefixCache::resume(memory::SequenceCache& sequence, const std::string& salt, std::span<const int32_t> tokens,
                            int64_t limit) {
    const memory::StoredState state = tree_.find(salt, tokens, limit);
    if (state.position == 0 || !sequence.reserve(state.position)) return 0;
    int64_t begin = 0;
    for (const memory::SharedBytes& entries : state.entries) {
        const int64_t end = std::min(begin + memory::PrefixTree::kBlockTokens, state.position);
        sequence.write_entries(begin, end, *entries);
        begin = end;
    }
    sequence.resume_at(state.position, *state.tail);
    return state.position;
}

void PrefixCache::keep(memory::SequenceCache& sequence, const std::string& salt, std::span<const int32_t> tokens) {
    const int64_t position = std::ssize(tokens);
    if (!sequence.can_roll_back(position)) return;
    try {
        tree_.put(salt, tokens,
                  {[&](int64_t begin, int64_t end) { return shared(sequence.read_entries(begin, end)); },
                   [&] { return shared(sequence.read_tail(position)); }});
        if (!disk_ || position < kLeastDiskTokens || disk_->find(salt, tokens, position) == position) return;
        memory::StoredState state = tree_.find(salt, tokens, position);
        if (state.position == position) disk_->save(salt, {tokens.begin(), tokens.end()}, std::move(state));
    } catch (const std::bad_alloc&) {
        log::warn("memory is short: the prefix cache gives back {} MB", bytes() / 1'000'000);
        tree_.clear();
    } catch (const std::exception& error) {  // a card that does not answer
        log::warn("the state of a sequence was not kept: {}", error.what());
    }
}

int64_t PrefixCache::worth_loading(const std::string& salt, std::span<const int32_t> tokens, int64_t limit) {
    if (!disk_) return 0;
    const int64_t on_disk = disk_->find(salt, tokens, limit);
    return on_disk - tree_.find(salt, tokens, limit).position >= kLeastDiskTokens ? on_disk : 0;
}

void PrefixCache::load(const std::string& salt, std::span<const int32_t> tokens,
                       std::function<void(std::optional<memory::StoredState>)> done) {
    disk_->load(salt, {tokens.begin(), tokens.end()}, std::move(done));
}

void PrefixCache::take(const std::string& salt, std::span<const int32_t> tokens, const memory::StoredState& state) {
    const auto piece = [&](int64_t begin, int64_t) {
        return state.entries[static_cast<size_t>(begin / memory::PrefixTree::kBlockTokens)];
    };
    tree_.put(salt, tokens.first(static_cast<size_t>(state.position)), {piece, [&] { return state.tail; }});
}

bool PrefixCache::clear() {
    const bool any = bytes() > 0;
    tree_.clear();
    return any;
}

}  // namespace thermocline::engine
