#include "src/text/utf8_ranges.h"

#include "src/text/unicode.h"

#include <algorithm>
#include <string>

namespace thermocline::text {

namespace {

constexpr char32_t kLastOfLength[] = {0x7F, 0x7FF, 0xFFFF, 0x10FFFF};

/// Splits [low, high], all of one length, until every byte varies on its own.
void add_ranges(char32_t low, char32_t high, std::vector<std::vector<ByteRange>>& out) {
    for (int tail = 1; tail <= 3; ++tail) {
        const char32_t mask = (char32_t{1} << 6 * tail) - 1;  // bits of the last `tail` bytes
        if (high <= 0x7F || (low & ~mask) == (high & ~mask)) continue;
        if ((low & mask) != 0) {
            add_ranges(low, low | mask, out);
            return add_ranges((low | mask) + 1, high, out);
        }
        if ((high & mask) != mask) {
            add_ranges(low, (high & ~mask) - 1, out);
            return add_ranges(high & ~mask, high, out);
        }
    }
    std::string first, last;
    append_code_point(low, first);
    append_code_point(high, last);
    std::vector<ByteRange> bytes;
    for (size_t i = 0; i < first.size(); ++i)
        bytes.push_back({static_cast<uint8_t>(first[i]), static_cast<uint8_t>(last[i])});
    out.push_back(std::move(bytes));
}

}  // namespace

std::vector<std::vector<ByteRange>> utf8_ranges(const CharSet& set) {
    std::vector<std::vector<ByteRange>> out;
    for (auto [low, high] : set.ranges()) {
        for (const char32_t last : kLastOfLength) {
            if (low > last) continue;
            add_ranges(low, std::min(high, last), out);
            if (high <= last) break;
            low = last + 1;
        }
    }
    return out;
}

}  // namespace thermocline::text
