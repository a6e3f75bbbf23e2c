#include "src/text/char_set.h"

#include <algorithm>

namespace thermocline::text {

namespace {

constexpr char32_t kBelowSurrogates = 0xD7FF, kAboveSurrogates = 0xE000, kLast = 0x10FFFF;

}  // namespace

CharSet CharSet::of(std::string_view ascii) {
    CharSet set;
    for (const char c : ascii) set.ranges_.emplace_back(static_cast<unsigned char>(c), static_cast<unsigned char>(c));
    set.tidy();
    return set;
}

/// Sorts, cuts the surrogates out, joins what touches.
void CharSet::tidy() {
    std::vector<Range> parts;
    for (const auto& [low, high] : ranges_) {
        if (low <= kBelowSurrogates) parts.emplace_back(low, std::min(high, kBelowSurrogates));
        if (high >= kAboveSurrogates) parts.emplace_back(std::max(low, kAboveSurrogates), std::min(high, kLast));
    }
    std::erase_if(parts, [](const Range& range) { return range.first > range.second; });
    std::sort(parts.begin(), parts.end());
    ranges_.clear();
    for (const Range& part : parts) {
        const bool touches = !ranges_.empty() && part.first <= ranges_.back().second + 1;
        if (touches)
            ranges_.back().second = std::max(ranges_.back().second, part.second);
        else
            ranges_.push_back(part);
    }
}

CharSet CharSet::operator|(const CharSet& other) const {
    CharSet sum = *this;
    sum.ranges_.insert(sum.ranges_.end(), other.ranges_.begin(), other.ranges_.end());
    sum.tidy();
    return sum;
}

CharSet CharSet::complement() const {
    CharSet rest;
    char32_t next = 0;
    for (const auto& [low, high] : ranges_) {
        if (low > next) rest.ranges_.emplace_back(next, low - 1);
        next = high + 1;
    }
    if (next <= kLast) rest.ranges_.emplace_back(next, kLast);
    rest.tidy();
    return rest;
}

CharSet CharSet::operator-(const CharSet& other) const { return (complement() | other).complement(); }

bool CharSet::contains(char32_t c) const {
    return std::any_of(ranges_.begin(), ranges_.end(),
                       [c](const Range& range) { return range.first <= c && c <= range.second; });
}

}  // namespace thermocline::text
