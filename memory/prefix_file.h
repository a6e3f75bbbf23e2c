// One file of the prefix cache on disk: its name, its layout, how it is written so that it appears whole or not at all,
// and how it is read without believing a byte before its checksums are right. Behind the header lie the sizes of the
// pieces, the salt, the tokens, the pieces and the tail. Free functions, any thread; errors are values: a file that is
// not what it should be is what these functions are for.
#pragma once

#include "memory/prefix_tree.h"

#include <array>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace thermocline::memory {

using PrefixKey = std::array<uint64_t, 2>;

/// What a file says it holds: entries of tokens [begin, position) and the tail at position. `begin` is the end of a
/// block; `parent` names the file with what comes before, zeros: none.
struct PrefixFileHead {
    uint64_t model;
    PrefixKey key, parent;
    int64_t begin, position;
};

std::string prefix_file_name(const PrefixKey& key);
/// Nothing if no file of ours has such a name.
std::optional<PrefixKey> prefix_file_key(std::string_view name);
/// A name under which write_prefix_file writes before it renames.
bool is_unfinished_prefix_file(std::string_view name);
/// Whether no process writes it: writers hold a lock.
bool is_abandoned(const std::filesystem::path& unfinished);

enum class PrefixFileState { kWhole, kOtherVersion, kDamaged };
/// Reads the header only; sets `head` if it is whole.
PrefixFileState look_at_prefix_file(const std::filesystem::path& path, PrefixFileHead& head);

/// The bytes of a file. `state.entries` holds all pieces, of which those from `head.begin` on are taken.
std::vector<std::byte> prefix_file_bytes(const PrefixFileHead& head, const std::string& salt,
                                         std::span<const int32_t> tokens, const StoredState& state);
/// To the disk, under another name first. Returns errno, or 0.
int write_prefix_file(const std::filesystem::path& path, std::span<const std::byte> bytes);

/// Brings a state that holds what the parents hold to that of the file; false if the file is not that of this model,
/// key and salt and of the first of these tokens.
bool read_prefix_file(const std::filesystem::path& path, uint64_t model, const PrefixKey& key, const std::string& salt,
                      std::span<const int32_t> tokens, StoredState& state);

}  // namespace thermocline::memory
