// The storeys of architecture.md section 2: an include may only point down, packages enter through one file, ISA and
// backend choices never stand in an #ifdef.
#include <filesystem>
#include <fstream>
#include <gtest/gtest.h>
#include <map>
#include <regex>
#include <set>
#include <string>
#include <vector>

namespace {

namespace fs = std::filesystem;

/// What each room may include from the others; a room may always include itself.
const std::map<std::string, std::set<std::string>> kMayInclude = {
    {"src/base", {}},
    {"src/quant", {"src/base"}},
    {"src/ops", {"src/base", "src/quant"}},
    {"src/text", {"src/base"}},
    {"src/model", {"src/base", "src/quant", "src/ops"}},
    {"memory", {"src/base", "src/quant", "src/ops"}},
    {"cpu", {"src/base", "src/quant", "src/ops"}},
    {"cuda", {"src/base", "src/quant", "src/ops"}},
    {"scheduler", {"src/base", "src/quant", "src/ops", "src/model", "memory", "cpu", "cuda"}},
    {"src/engine", {"src/base", "src/quant", "src/ops", "src/text", "src/model", "memory", "cpu", "scheduler"}},
    {"src/server", {"src/base", "src/text", "src/engine"}},
    {"src/app",
     {"src/base", "src/quant", "src/ops", "src/text", "src/model", "memory", "cpu", "cuda", "scheduler", "src/engine",
      "src/server"}},
};

/// Package header -> the only place that may name it: a file, or a folder ending in '/'.
const std::vector<std::pair<std::regex, std::string>> kPackages = {
    {std::regex("^hwloc"), "scheduler/topology.cpp"},
    {std::regex("^numa"), "memory/numa.cpp"},
    {std::regex("^nccl"), "cuda/comm.cpp"},
    {std::regex("^cblas"), "cpu/blas.cpp"},
    {std::regex("^spdlog/"), "src/base/log"},
    {std::regex("^nlohmann/"), "src/base/json.h"},
    {std::regex("^CLI/"), "src/app/"},
    {std::regex("^httplib"), "src/server/http.cpp"},
    {std::regex("^boost/"), "cuda/emulation/block.cpp"},
};

std::string room_of(const std::string& path) {
    for (const auto& [room, unused] : kMayInclude)
        if (path.rfind(room + "/", 0) == 0) return room;
    return "";
}

struct Include {
    std::string file;    // from the repository root
    std::string target;  // as written
    bool quoted;
};

std::vector<std::string> sources() {
    std::vector<std::string> paths;
    const fs::path root = THERMOCLINE_SOURCE_DIR;
    for (const auto& [room, unused] : kMayInclude) {
        if (!fs::exists(root / room)) continue;
        for (const auto& entry : fs::recursive_directory_iterator(root / room)) {
            const std::string extension = entry.path().extension();
            if (std::set<std::string>{".h", ".cpp", ".inl", ".cu", ".cuh"}.count(extension))
                paths.push_back(fs::relative(entry.path(), root).string());
        }
    }
    return paths;
}

std::vector<Include> includes() {
    static const std::regex kInclude(R"re(^\s*#\s*include\s*(["<])([^">]+)[">])re");
    std::vector<Include> all;
    for (const std::string& path : sources()) {
        std::ifstream file(fs::path(THERMOCLINE_SOURCE_DIR) / path);
        for (std::string line; std::getline(file, line);) {
            std::smatch match;
            if (std::regex_search(line, match, kInclude)) all.push_back({path, match[2], match[1] == "\""});
        }
    }
    return all;
}

TEST(Layers, IncludesPointDown) {
    const auto all = includes();
    ASSERT_GT(all.size(), 200u);
    for (const Include& include : all) {
        if (!include.quoted) continue;
        const std::string from = room_of(include.file), to = room_of(include.target);
        ASSERT_FALSE(to.empty()) << include.file << " includes \"" << include.target << "\": not written from the root";
        if (from != to) {
            EXPECT_TRUE(kMayInclude.at(from).count(to))
                << include.file << " includes " << include.target << " sideways or up";
        }
    }
}

TEST(Layers, PackagesEnterThroughOneFile) {
    for (const Include& include : includes())
        for (const auto& [header, place] : kPackages)
            if (!include.quoted && std::regex_search(include.target, header)) {
                EXPECT_EQ(include.file.rfind(place, 0), 0u) << include.file << " includes <" << include.target << ">";
            }
}

TEST(Layers, NoBackendIsChosenByThePreprocessor) {
    static const std::regex kChoice(R"(^\s*#\s*(if|ifdef|ifndef|elif)\b.*(CUDA|AVX|HAVE_|USE_))");
    for (const std::string& path : sources()) {
        std::ifstream file(fs::path(THERMOCLINE_SOURCE_DIR) / path);
        for (std::string line; std::getline(file, line);)
            EXPECT_FALSE(std::regex_search(line, kChoice)) << path << ": " << line;
    }
}

}  // namespace
