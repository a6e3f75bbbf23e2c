// Binding, asking where pages lie, and arenas: what a machine with one node can show of them. Their answers where the
// system forbids such calls (containers) are as good.
#include "memory/numa.h"

#include "memory/arena.h"
#include "src/base/error.h"

#include <cstring>
#include <gtest/gtest.h>

namespace thermocline::memory {
namespace {

bool forbidden(std::error_code error) {
    return error == std::errc::operation_not_permitted || error == std::errc::function_not_supported;
}

TEST(Numa, TouchedPagesAreOnANode) {
    const Pages pages(size_t{16} << 20);
    EXPECT_EQ(pages_by_node(pages.bytes()).pages.size(), 0u);
    std::memset(pages.bytes().data(), 1, pages.bytes().size() / 2);
    const PagesByNode found = pages_by_node(pages.bytes(), 64);
    if (found.refused) {
        EXPECT_TRUE(forbidden(found.refused)) << found.refused.message();
        return;
    }
    int64_t there = 0;
    for (const auto& [node, count] : found.pages) there += count;
    EXPECT_EQ(there, 32);
    EXPECT_EQ(found.absent, 32);
}

TEST(Numa, PagesAreBoundBeforeAndAfterTheyAreTouched) {
    const Pages pages(size_t{4} << 20);
    const int node[] = {0};
    for (int pass = 0; pass < 2; ++pass) {
        if (const std::error_code refused = bind_pages(pages.bytes(), node)) {
            EXPECT_TRUE(forbidden(refused)) << refused.message();
            return;
        }
        std::memset(pages.bytes().data(), 1, pages.bytes().size());
        EXPECT_EQ(pages_by_node(pages.bytes(), 100).pages, (std::map<int, int64_t>{{0, 100}}));
    }
}

TEST(Numa, ANodeThatDoesNotExistIsAnError) {
    const Pages pages(size_t{1} << 20);
    for (const int node : {63, 64, 1000}) {
        const int nodes[] = {node};
        try {
            EXPECT_TRUE(forbidden(bind_pages(pages.bytes(), nodes))) << node;
        } catch (const Error& error) {
            EXPECT_NE(std::string(error.what()).find("NUMA node " + std::to_string(node)), std::string::npos)
                << error.what();
        }
    }
}

TEST(Arena, SlicesAreEquallyFarApart) {
    const Slice slices[] = {{{}, {0}}, {{}, {0}}, {{}, {0}}};
    const Arena arena(3 << 20, slices);
    EXPECT_EQ(arena.stride(), 4 << 20);
    EXPECT_EQ(arena.slice(2) - arena.slice(0), 2 * arena.stride());
    EXPECT_EQ(reinterpret_cast<uintptr_t>(arena.slice(1)) % Pages::kHuge, 0u);
    EXPECT_EQ(arena.page_bytes(), 0);
    std::memset(arena.slice(0), 1, static_cast<size_t>(3 * arena.stride()));
    EXPECT_EQ(arena.share_in_place(), 1.0);
}

TEST(Arena, BoundSlicesAreInPlace) {
    const Slice slices[] = {{{0}, {0}}, {{0}, {0}}};
    const Arena arena(1 << 20, slices);
    std::memset(arena.slice(1), 1, 1 << 20);
    if (arena.refused())
        EXPECT_TRUE(forbidden(arena.refused()));
    else
        EXPECT_EQ(arena.share_in_place(), 1.0);
}

// Two nodes of which this machine has one: the pages cannot be where they belong.
TEST(Arena, PagesElsewhereAreSeen) {
    const Slice on_first[] = {{{0}, {0}}};
    if (Arena(1, on_first).refused()) return;
    const Slice elsewhere[] = {{{0, 1000}, {0}}};  // interleaved over those of them that exist
    const Arena arena(1 << 20, elsewhere);
    std::memset(arena.slice(0), 1, 1 << 20);
    EXPECT_EQ(arena.share_in_place(), 1.0);
    EXPECT_EQ(pages_by_node({arena.slice(0), 1 << 20}).pages.count(1000), 0u);
}

// Most machines have no pages set aside: then there is none of these arenas.
TEST(Arena, ReservedPagesAreTakenIfThereAreEnough) {
    const Slice slices[] = {{{}, {0}}, {{}, {0, 1}}};
    EXPECT_FALSE(Arena::reserved(1 << 20, slices));           // a page would be half empty
    EXPECT_FALSE(Arena::reserved(int64_t{1} << 45, slices));  // nobody has that many
    if (const std::optional<Arena> arena = Arena::reserved(5 << 20, slices)) {
        EXPECT_EQ(arena->page_bytes(), int64_t{Pages::kHuge});
        EXPECT_EQ(arena->stride(), 6 << 20);
        std::memset(arena->slice(0), 1, 12 << 20);
    }
}

}  // namespace
}  // namespace thermocline::memory
