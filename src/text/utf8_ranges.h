// The UTF-8 forms of a set of characters as a few sequences of byte ranges. Pure, any thread.
#pragma once

#include "src/text/char_set.h"

#include <compare>
#include <cstdint>
#include <vector>

namespace thermocline::text {

struct ByteRange {
    uint8_t low, high;  // both inside
    auto operator<=>(const ByteRange&) const = default;
};

/// Every sequence is one way to spell: any byte of its first range, then any of the second ... No text is spelled by
/// two.
std::vector<std::vector<ByteRange>> utf8_ranges(const CharSet& set);

}  // namespace thermocline::text
