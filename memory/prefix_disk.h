// States of sequences on disk, for the prefix cache: they outlive the process. One file a state, named by a hash of the
// model, the salt and all tokens; it holds the tokens and entries since the state before it of the same tokens (its
// parent, another file) and its own tail. A file appears complete or not at all: it is written under a temporary name,
// forced to disk and renamed. Nothing in a file is believed before its checksums are right, and its model, salt and
// tokens are those that were asked for. Files with names like ours are ours: damaged ones are removed, and the one that
// was not used for the longest time when the folder holds too much, whatever model or version it is of. Nothing else in
// the folder is touched.
//
// A thread of its own reads, writes and removes; find(), load() and save() may be called from any thread and never wait
// for the disk. A folder that cannot be written is warned of once; what is in it already still serves. Several
// processes may share a folder; each sees what was there at its start and what it wrote.
#pragma once

#include "memory/prefix_file.h"
#include "memory/prefix_tree.h"

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <filesystem>
#include <functional>
#include <map>
#include <mutex>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <thread>
#include <vector>

namespace thermocline::memory {

class PrefixDisk {
public:
    /// Makes the folder if it is not there, reads the headers of its files, removes damaged and unfinished ones.
    /// `budget`: bytes of all files. `model`: a hash of all that a state depends on besides its tokens. Throws Error if
    /// there can be no such folder.
    PrefixDisk(const std::filesystem::path& folder, int64_t budget, uint64_t model);
    /// Writes what waits, then ends the thread.
    ~PrefixDisk();
    PrefixDisk(const PrefixDisk&) = delete;
    PrefixDisk& operator=(const PrefixDisk&) = delete;

    /// Position of the longest state of a prefix of at most `limit` of the tokens; 0: none.
    int64_t find(const std::string& salt, std::span<const int32_t> tokens, int64_t limit) const;
    /// Reads the state after all the tokens and hands it to `done` on the disk thread; nothing if its files are gone or
    /// damaged (they are removed then).
    void load(std::string salt, std::vector<int32_t> tokens, std::function<void(std::optional<StoredState>)> done);
    /// Writes the state after all the tokens, unless it is there or too much waits already.
    void save(std::string salt, std::vector<int32_t> tokens, StoredState state);
    /// Waits until nothing is left to read or write.
    void flush();

    /// Of all files, those of other models too.
    int64_t bytes() const;
    int64_t files() const;

private:
    struct File {
        PrefixKey parent;  // zeros: none
        int64_t position;
        int64_t bytes;
        int64_t last_use;
        int64_t children = 0;
    };
    struct Job {
        std::string salt;
        std::vector<int32_t> tokens;
        StoredState state;                                       // to save
        std::function<void(std::optional<StoredState>)> loaded;  // or: to load
    };
    using Files = std::map<PrefixKey, File>;
    class Chain;  // of hashes along tokens
    struct Found;

    std::filesystem::path path_of(const PrefixKey& key) const;
    void make_folder() const;
    void scan();
    std::vector<Found> read_folder();
    void add(const PrefixKey& key, const File& file);
    void remove(const PrefixKey& key);
    void remove_with_children(const PrefixKey& key);
    void delete_removed();
    Files::iterator parent_of(const File& file);
    bool is_child_of(const PrefixKey& key, const PrefixKey& ancestor);
    void run();
    void enqueue(Job job);
    std::optional<StoredState> read(const Job& job);
    void write(const Job& job);
    bool make_room(int64_t bytes, const PrefixKey& parent);
    void warn(const std::string& what);
    void cannot_write(int error);

    const std::filesystem::path folder_;
    const int64_t budget_;
    const uint64_t model_;
    bool warned_ = false;  // disk thread

    mutable std::mutex mutex_;  // guards what follows
    std::condition_variable wake_, idle_;
    Files files_;
    std::multiset<int64_t> positions_;  // of all files
    std::vector<PrefixKey> removed_;    // no longer in files_, still on disk
    int64_t bytes_ = 0;
    int64_t uses_ = 0;
    std::deque<Job> jobs_;
    int64_t waiting_bytes_ = 0;  // of states to save
    bool busy_ = false, stopping_ = false;

    std::thread thread_;  // last
};

}  // namespace thermocline::memory
