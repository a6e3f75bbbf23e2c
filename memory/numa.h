// Where memory lies on machines with several NUMA nodes. The only file that speaks to libnuma. Nodes have the numbers
// of the operating system. Containers commonly forbid these calls (seccomp without CAP_SYS_NICE): that is an answer,
// not an error. Safe from any thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <span>
#include <system_error>

namespace thermocline::memory {

/// Puts whole pages [bytes], those that exist and those to come, on a node, or interleaves them over several. Returns
/// why the system forbids it, if it does: the pages then lie where they are touched first. Throws Error if it has no
/// such node.
std::error_code bind_pages(std::span<std::byte> bytes, std::span<const int> nodes);

struct PagesByNode {
    std::map<int, int64_t> pages;  // node -> pages on it, of those looked at
    int64_t absent = 0;            // never touched
    std::error_code refused;       // by the system: nothing is known
};

/// Looks at no more than `most` pages, evenly spread.
PagesByNode pages_by_node(std::span<const std::byte> bytes, int64_t most = 4096);

}  // namespace thermocline::memory
