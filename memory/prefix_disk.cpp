#include "memory/prefix_disk.h"

#include "memory/prefix_file.h"
#include "src/base/check.h"
#include "src/base/checksum.h"
#include "src/base/error.h"
#include "src/base/log.h"

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <cstring>
#include <fcntl.h>
#include <unistd.h>
#include <utility>

namespace thermocline::memory {
namespace {

namespace fs = std::filesystem;

/// States that wait to be written hold memory: more than that, and new ones are not written at all.
constexpr int64_t kMostWaitingBytes = int64_t{1} << 30;
int64_t size_of(const StoredState& state) {
    int64_t bytes = std::ssize(*state.tail);
    for (const SharedBytes& piece : state.entries) bytes += std::ssize(*piece);
    return bytes;
}

}  // namespace

/// The keys of all prefixes of some tokens, one after the other.
class PrefixDisk::Chain {
public:
    Chain(uint64_t model, const std::string& salt) {
        for (size_t i = 0; i < key_.size(); ++i) {
            key_[i] = thermocline::checksum_of(std::as_bytes(std::span(&model, 1)), kChecksumStart + i * kStep);
            key_[i] = thermocline::checksum_of(std::as_bytes(std::span(salt)), key_[i]);
        }
    }
    void add(std::span<const int32_t> tokens) {
        for (const int32_t token : tokens)
            for (size_t i = 0; i < key_.size(); ++i) {
                uint64_t x = (key_[i] ^ static_cast<uint32_t>(token)) * kStep;
                x ^= x >> 32;
                x *= 0xd6e8feb86659fd93 + 2 * i;
                key_[i] = x ^ (x >> 29);
            }
    }
    const PrefixKey& key() const { return key_; }

private:
    static constexpr uint64_t kStep = 0x9e3779b97f4a7c15;
    PrefixKey key_;
};

/// A file as it lies in the folder.
struct PrefixDisk::Found {
    fs::file_time_type used;
    PrefixKey key;
    File file;
};

PrefixDisk::PrefixDisk(const fs::path& folder, int64_t budget, uint64_t model)
    : folder_(folder), budget_(budget), model_(model) {
    make_folder();
    if (::faccessat(AT_FDCWD, folder_.c_str(), W_OK, AT_EACCESS) != 0) cannot_write(errno);
    scan();
    make_room(0, {});
    delete_removed();
    thread_ = std::thread([this] { run(); });
}

/// Only its owner may look into a new one: it holds what requests said.
void PrefixDisk::make_folder() const {
    std::error_code error;
    if (fs::create_directories(folder_, error)) fs::permissions(folder_, fs::perms::owner_all, error);
    if (!fs::is_directory(folder_, error))
        fail("--kv-disk: ", printable(folder_.string(), 400), " is no directory and cannot be made one",
             error ? " (" + error.message() + ")" : "");
}

PrefixDisk::~PrefixDisk() {
    {
        const std::lock_guard lock(mutex_);
        stopping_ = true;
    }
    wake_.notify_all();
    thread_.join();
}

fs::path PrefixDisk::path_of(const PrefixKey& key) const { return folder_ / prefix_file_name(key); }

/// The whole files that are ours, the last used last. Damaged ones and those of writers that are gone are removed.
std::vector<PrefixDisk::Found> PrefixDisk::read_folder() {
    std::vector<Found> found;
    std::vector<fs::path> damaged, strange;
    std::error_code error;
    for (fs::directory_iterator item(folder_, error), end; !error && item != end; item.increment(error)) {
        std::error_code ignored;
        const fs::path path = item->path();
        const std::string name = path.filename().string();
        if (!fs::is_regular_file(item->symlink_status(ignored))) continue;
        if (is_unfinished_prefix_file(name)) {
            if (is_abandoned(path)) fs::remove(path, ignored);
            continue;
        }
        const auto key = prefix_file_key(name);
        if (!key) {
            strange.push_back(path);
            continue;
        }
        File file{};
        file.bytes = static_cast<int64_t>(item->file_size(ignored));
        PrefixFileHead head{};
        const PrefixFileState state = look_at_prefix_file(path, head);
        if (state == PrefixFileState::kWhole) {
            file.parent = head.parent;
            file.position = head.position;
        }
        if (state == PrefixFileState::kDamaged || (state == PrefixFileState::kWhole && head.key != *key)) {
            damaged.push_back(path);
            continue;
        }
        found.push_back({item->last_write_time(ignored), *key, file});
    }
    if (error) log::warn("--kv-disk {}: cannot be read ({})", folder_.string(), error.message());
    for (const fs::path& path : damaged) fs::remove(path, error);
    if (!damaged.empty())
        log::warn("--kv-disk {}: {} damaged files are not used, {} for one", folder_.string(), damaged.size(),
                  damaged.front().filename().string());
    if (!strange.empty())
        log::warn("--kv-disk {}: {} files are none of ours and left alone, {} for one", folder_.string(),
                  strange.size(), printable(strange.front().filename().string(), 100));
    std::sort(found.begin(), found.end(), [](const Found& a, const Found& b) { return a.used < b.used; });
    return found;
}

void PrefixDisk::scan() {
    const std::vector<Found> found = read_folder();
    for (const Found& one : found) files_.emplace(one.key, one.file);
    std::vector<PrefixKey> orphans;
    for (const Found& one : found) {
        File& file = files_.at(one.key);
        file.last_use = ++uses_;
        positions_.insert(file.position);
        bytes_ += file.bytes;
        if (file.parent == PrefixKey{}) continue;
        if (const auto parent = parent_of(file); parent != files_.end())
            ++parent->second.children;
        else
            orphans.push_back(one.key);
    }
    for (const PrefixKey& orphan : orphans) remove_with_children(orphan);
}

/// Under the lock, or before the thread runs. Those that follow, too.
void PrefixDisk::add(const PrefixKey& key, const File& file) {
    files_.emplace(key, file);
    positions_.insert(file.position);
    bytes_ += file.bytes;
    if (const auto parent = parent_of(file); parent != files_.end()) ++parent->second.children;
}

/// Its file goes with delete_removed().
void PrefixDisk::remove(const PrefixKey& key) {
    const auto found = files_.find(key);
    if (found == files_.end()) return;
    const File file = found->second;
    files_.erase(found);
    positions_.erase(positions_.find(file.position));
    bytes_ -= file.bytes;
    if (const auto parent = parent_of(file); parent != files_.end()) --parent->second.children;
    removed_.push_back(key);
}

/// The end if it has none. A parent holds fewer tokens, whatever a damaged file says.
PrefixDisk::Files::iterator PrefixDisk::parent_of(const File& file) {
    const auto parent = files_.find(file.parent);
    return parent != files_.end() && parent->second.position < file.position ? parent : files_.end();
}

bool PrefixDisk::is_child_of(const PrefixKey& key, const PrefixKey& ancestor) {
    for (auto at = files_.find(key); at != files_.end(); at = parent_of(at->second))
        if (at->second.parent == ancestor) return true;
    return false;
}

void PrefixDisk::remove_with_children(const PrefixKey& key) {
    std::vector<PrefixKey> below;
    for (const auto& [other, file] : files_)
        if (is_child_of(other, key)) below.push_back(other);
    for (const PrefixKey& other : below) remove(other);
    remove(key);
}

/// Without the lock: deleting large files takes time.
void PrefixDisk::delete_removed() {
    std::vector<PrefixKey> removed;
    {
        const std::lock_guard lock(mutex_);
        removed.swap(removed_);
    }
    std::error_code ignored;
    for (const PrefixKey& key : removed) fs::remove(path_of(key), ignored);
}

int64_t PrefixDisk::find(const std::string& salt, std::span<const int32_t> tokens, int64_t limit) const {
    limit = std::min(limit, std::ssize(tokens));
    Chain chain(model_, salt);
    int64_t best = 0, hashed = 0;
    const std::lock_guard lock(mutex_);
    for (auto at = positions_.begin(); at != positions_.end() && *at <= limit; at = positions_.upper_bound(*at)) {
        chain.add(tokens.subspan(static_cast<size_t>(hashed), static_cast<size_t>(*at - hashed)));
        hashed = *at;
        if (files_.contains(chain.key())) best = hashed;
    }
    return best;
}

void PrefixDisk::enqueue(Job job) {
    {
        const std::lock_guard lock(mutex_);
        jobs_.push_back(std::move(job));
    }
    wake_.notify_all();
}

void PrefixDisk::load(std::string salt, std::vector<int32_t> tokens,
                      std::function<void(std::optional<StoredState>)> done) {
    enqueue({std::move(salt), std::move(tokens), {}, std::move(done)});
}

void PrefixDisk::save(std::string salt, std::vector<int32_t> tokens, StoredState state) {
    CHECK(state.position == std::ssize(tokens));
    const int64_t bytes = size_of(state);
    {
        const std::lock_guard lock(mutex_);
        if (waiting_bytes_ + bytes > kMostWaitingBytes) return;
        waiting_bytes_ += bytes;
    }
    enqueue({std::move(salt), std::move(tokens), std::move(state), nullptr});
}

void PrefixDisk::flush() {
    std::unique_lock lock(mutex_);
    idle_.wait(lock, [&] { return jobs_.empty() && !busy_; });
}

int64_t PrefixDisk::bytes() const {
    const std::lock_guard lock(mutex_);
    return bytes_;
}

int64_t PrefixDisk::files() const {
    const std::lock_guard lock(mutex_);
    return static_cast<int64_t>(files_.size());
}

void PrefixDisk::run() {
    sigset_t too_large;  // a limit on the size of files is an error like others
    sigemptyset(&too_large);
    sigaddset(&too_large, SIGXFSZ);
    ::pthread_sigmask(SIG_BLOCK, &too_large, nullptr);
    while (true) {
        Job job;
        {
            std::unique_lock lock(mutex_);
            busy_ = false;
            if (jobs_.empty()) idle_.notify_all();
            wake_.wait(lock, [&] { return stopping_ || !jobs_.empty(); });
            if (jobs_.empty()) return;
            // Somebody waits for a load, nobody for a save.
            auto next = std::find_if(jobs_.begin(), jobs_.end(), [](const Job& one) { return one.loaded != nullptr; });
            if (next == jobs_.end()) next = jobs_.begin();
            job = std::move(*next);
            jobs_.erase(next);
            busy_ = true;
        }
        try {
            if (job.loaded)
                job.loaded(read(job));
            else
                write(job);
        } catch (const std::exception& error) {  // out of memory
            warn(error.what());
            if (job.loaded) job.loaded(std::nullopt);
        }
        if (job.loaded) continue;
        const std::lock_guard lock(mutex_);
        waiting_bytes_ -= size_of(job.state);
    }
}

void PrefixDisk::warn(const std::string& what) {
    if (!std::exchange(warned_, true)) log::warn("--kv-disk {}: {}; not said again", folder_.string(), what);
}

void PrefixDisk::cannot_write(int error) {
    warn("cannot write (" + std::string(std::strerror(error)) + "), requests go on and what is there is used");
}

std::optional<StoredState> PrefixDisk::read(const Job& job) {
    Chain chain(model_, job.salt);
    chain.add(job.tokens);
    std::vector<PrefixKey> keys;  // from the state to the first of its parents
    {
        const std::lock_guard lock(mutex_);
        const auto last = files_.find(chain.key());
        if (last == files_.end() || last->second.position != std::ssize(job.tokens)) return std::nullopt;
        for (PrefixKey key = chain.key(); key != PrefixKey{};) {
            const auto found = files_.find(key);
            if (found == files_.end() || keys.size() > files_.size()) return std::nullopt;
            found->second.last_use = ++uses_;
            keys.push_back(key);
            key = found->second.parent;
        }
    }
    StoredState state;
    for (auto key = keys.rbegin(); key != keys.rend(); ++key) {
        if (read_prefix_file(path_of(*key), model_, *key, job.salt, job.tokens, state)) continue;
        std::error_code ignored;
        if (fs::exists(path_of(*key), ignored)) log::warn("{}: damaged, removed", path_of(*key).string());
        {
            const std::lock_guard lock(mutex_);
            remove_with_children(*key);
        }
        delete_removed();
        return std::nullopt;
    }
    return state;
}

void PrefixDisk::write(const Job& job) {
    const int64_t position = job.state.position;
    Chain chain(model_, job.salt);
    chain.add(job.tokens);
    const PrefixKey key = chain.key();
    const int64_t before = find(job.salt, job.tokens, position - 1);
    Chain parent(model_, job.salt);
    parent.add(std::span(job.tokens).first(static_cast<size_t>(before)));
    const File file{before > 0 ? parent.key() : PrefixKey{}, position, 0, 0};
    const std::vector<std::byte> bytes = prefix_file_bytes(
        {model_, key, file.parent, before / PrefixTree::kBlockTokens * PrefixTree::kBlockTokens, position}, job.salt,
        job.tokens, job.state);
    bool has_room = false;
    {
        const std::lock_guard lock(mutex_);
        if (files_.contains(key)) return;
        has_room = make_room(std::ssize(bytes), file.parent);
    }
    delete_removed();
    if (!has_room) return;
    if (const int error = write_prefix_file(path_of(key), bytes); error != 0) return cannot_write(error);
    const std::lock_guard lock(mutex_);
    add(key, {file.parent, position, std::ssize(bytes), ++uses_});
}

/// Removes the files that were not used for the longest time and that no other needs, but none that `parent` needs.
/// False, and nothing is removed, if there is no room even so. Under the lock, or before the thread runs.
bool PrefixDisk::make_room(int64_t bytes, const PrefixKey& parent) {
    std::set<PrefixKey> needed;
    int64_t needed_bytes = 0;
    for (auto at = files_.find(parent); at != files_.end(); at = parent_of(at->second)) {
        needed.insert(at->first);
        needed_bytes += at->second.bytes;
    }
    if (parent != PrefixKey{} && needed.empty()) return false;  // it was removed meanwhile
    if (needed_bytes + bytes > budget_) return false;
    while (bytes_ + bytes > budget_) {
        auto oldest = files_.end();
        for (auto at = files_.begin(); at != files_.end(); ++at)
            if (at->second.children == 0 && !needed.contains(at->first) &&
                (oldest == files_.end() || at->second.last_use < oldest->second.last_use))
                oldest = at;
        if (oldest == files_.end()) return false;
        remove(PrefixKey(oldest->first));
    }
    return true;
}

}  // namespace thermocline::memory
