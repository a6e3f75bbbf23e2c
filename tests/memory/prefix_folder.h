// A folder of states whose bytes are their tokens, for the tests of the prefix cache on disk.
#pragma once

#include "memory/prefix_disk.h"

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <future>
#include <gtest/gtest.h>
#include <iterator>
#include <numeric>
#include <string>
#include <vector>

namespace thermocline::memory {

namespace fs = std::filesystem;
using Tokens = std::vector<int32_t>;

constexpr int64_t kPlenty = int64_t{1} << 30;
constexpr uint64_t kModel = 42;

inline Tokens counting(int64_t count, int32_t first = 0) {
    Tokens tokens(static_cast<size_t>(count));
    std::iota(tokens.begin(), tokens.end(), first);
    return tokens;
}

inline SharedBytes bytes_of(std::span<const int32_t> tokens) {
    const auto bytes = std::as_bytes(tokens);
    return std::make_shared<const std::vector<std::byte>>(bytes.begin(), bytes.end());
}

/// Entries are the tokens themselves, the tail is the last of them.
inline StoredState state_of(const Tokens& tokens) {
    StoredState state;
    state.position = std::ssize(tokens);
    for (size_t begin = 0; begin < tokens.size(); begin += PrefixTree::kBlockTokens)
        state.entries.push_back(bytes_of(
            std::span(tokens).subspan(begin, std::min<size_t>(PrefixTree::kBlockTokens, tokens.size() - begin))));
    state.tail = bytes_of(std::span(tokens).last(1));
    return state;
}

class PrefixFolder : public ::testing::Test {
protected:
    PrefixFolder() {
        std::string pattern = (fs::temp_directory_path() / "prefix-disk-XXXXXX").string();
        folder = ::mkdtemp(pattern.data());
    }
    ~PrefixFolder() override { fs::remove_all(folder); }

    static void save(PrefixDisk& disk, const Tokens& tokens, const std::string& salt = "") {
        disk.save(salt, tokens, state_of(tokens));
        disk.flush();
    }
    static bool loads(PrefixDisk& disk, const Tokens& tokens, const std::string& salt = "") {
        std::promise<std::optional<StoredState>> promise;
        disk.load(salt, tokens, [&](std::optional<StoredState> state) { promise.set_value(std::move(state)); });
        const std::optional<StoredState> got = promise.get_future().get();
        if (!got) return false;
        const StoredState expected = state_of(tokens);
        EXPECT_EQ(got->position, expected.position);
        EXPECT_EQ(*got->tail, *expected.tail);
        EXPECT_EQ(got->entries.size(), expected.entries.size());
        for (size_t i = 0; i < std::min(got->entries.size(), expected.entries.size()); ++i)
            EXPECT_EQ(*got->entries[i], *expected.entries[i]);
        return true;
    }
    std::vector<fs::path> files() const {
        std::vector<fs::path> out;
        for (const auto& item : fs::directory_iterator(folder)) out.push_back(item.path());
        std::sort(out.begin(), out.end());
        return out;
    }
    static std::string content(const fs::path& path) {
        std::ifstream in(path, std::ios::binary);
        return {std::istreambuf_iterator<char>(in), {}};
    }
    static void replace(const fs::path& path, const std::string& bytes) {
        std::ofstream(path, std::ios::binary | std::ios::trunc) << bytes;
    }

    fs::path folder;
};

}  // namespace thermocline::memory
