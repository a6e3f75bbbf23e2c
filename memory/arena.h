// Memory in slices: one address range of which every NUMA node in use has an equal stretch, so that one stride leads
// from a slice to the next. The pages are huge: those that were set aside for that if there are enough, else
// transparent ones. Owned by one place; who works in it takes care of its own order.
#pragma once

#include "memory/numa.h"
#include "src/base/pages.h"

#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <system_error>
#include <thread>
#include <vector>

namespace thermocline::memory {

/// A part of every weight matrix: where it lies and which cores compute with it.
struct Slice {
    std::vector<int> nodes;  // one, or several to interleave over, ascending; empty: where it is touched first
    std::vector<int> cpus;   // one logical CPU of every core, not empty
};

/// A thread on every core of every slice; each runs body(slice). Pages that no node is set for, or may not be
/// (containers), come to lie on that of their slice if its threads touch them first.
std::vector<std::jthread> start_on_cores(std::span<const Slice> slices, const std::function<void(size_t slice)>& body);

class Arena {
public:
    /// Room for `bytes` in every slice in transparent huge pages. Throws Error if the system has no such room or node.
    Arena(int64_t bytes, std::span<const Slice> slices);
    /// The same in pages set aside by the administrator, 1 GiB each, else 2 MiB; nothing if too few are free where they
    /// are wanted. All cores clear them, which takes a while.
    static std::optional<Arena> reserved(int64_t bytes, std::span<const Slice> slices);

    std::byte* slice(int64_t index) const { return pages_.bytes().data() + index * stride_; }
    /// All slices.
    std::span<std::byte> bytes() const { return pages_.bytes(); }
    /// From the start of a slice to that of the next.
    int64_t stride() const { return stride_; }
    /// Of a page set aside; 0: transparent.
    int64_t page_bytes() const { return page_bytes_; }
    /// Why the system forbids to put slices on nodes, if it does.
    std::error_code refused() const { return refused_; }

    /// The share of the pages, of those that exist, which lie on the nodes of their slice; 1 for slices without nodes.
    /// Nothing if the system does not say.
    std::optional<double> share_in_place() const;

private:
    Arena(Pages pages, int64_t stride, int64_t page_bytes, std::span<const Slice> slices);
    bool fill_all() const;
    std::span<std::byte> bytes_of(size_t index) const {
        return pages_.bytes().subspan(index * static_cast<size_t>(stride_), static_cast<size_t>(stride_));
    }

    Pages pages_;
    int64_t stride_, page_bytes_;
    std::vector<Slice> slices_;
    std::error_code refused_;
};

}  // namespace thermocline::memory
