#include "memory/numa.h"

#include "src/base/check.h"
#include "src/base/error.h"

#include <algorithm>
#include <cerrno>
#include <climits>
#include <numaif.h>
#include <string>
#include <unistd.h>
#include <vector>

namespace thermocline::memory {
namespace {

std::error_code last_error() { return {errno, std::generic_category()}; }

std::string list(std::span<const int> nodes) {
    std::string text;
    for (const int node : nodes) text += (text.empty() ? "" : ", ") + std::to_string(node);
    return text;
}

}  // namespace

std::error_code bind_pages(std::span<std::byte> bytes, std::span<const int> nodes) {
    CHECK(!nodes.empty());
    constexpr auto kBits = static_cast<int>(sizeof(unsigned long) * CHAR_BIT);
    std::vector<unsigned long> mask(static_cast<size_t>(*std::max_element(nodes.begin(), nodes.end()) / kBits + 1));
    for (const int node : nodes) mask[static_cast<size_t>(node / kBits)] |= 1UL << (node % kBits);
    // The kernel takes one bit less than it is told of.
    const unsigned long bits = mask.size() * kBits + 1;
    const int mode = nodes.size() == 1 ? MPOL_BIND : MPOL_INTERLEAVE;
    if (::mbind(bytes.data(), bytes.size(), mode, mask.data(), bits, MPOL_MF_MOVE) == 0) return {};
    const std::error_code error = last_error();
    if (error == std::errc::operation_not_permitted || error == std::errc::function_not_supported) return error;
    fail("cannot put ", bytes.size(), " bytes on NUMA node ", list(nodes), " (mbind: ", error.message(),
         "): does this process have memory there? --numa off does without");
}

PagesByNode pages_by_node(std::span<const std::byte> bytes, int64_t most) {
    const int64_t page = ::sysconf(_SC_PAGESIZE), count = (std::ssize(bytes) + page - 1) / page;
    const int64_t looked_at = std::min(count, most);
    std::vector<void*> addresses(static_cast<size_t>(looked_at));
    for (int64_t i = 0; i < looked_at; ++i)  // const_cast: the call asks, it moves nothing
        addresses[static_cast<size_t>(i)] = const_cast<std::byte*>(bytes.data()) + count * i / looked_at * page;
    std::vector<int> places(addresses.size());
    PagesByNode found;
    if (::move_pages(0, addresses.size(), addresses.data(), nullptr, places.data(), 0) != 0)
        found.refused = last_error();
    else
        for (const int place : places) place >= 0 ? ++found.pages[place] : ++found.absent;
    return found;
}

}  // namespace thermocline::memory
