// A set of Unicode characters as sorted ranges; surrogates are no characters and never inside. Value type, any thread.
#pragma once

#include <string_view>
#include <utility>
#include <vector>

namespace thermocline::text {

class CharSet {
public:
    using Range = std::pair<char32_t, char32_t>;  // both ends inside

    CharSet() = default;
    CharSet(std::initializer_list<Range> ranges) : ranges_(ranges) { tidy(); }
    explicit CharSet(std::vector<Range> ranges) : ranges_(std::move(ranges)) { tidy(); }
    static CharSet all() { return {{0, 0x10FFFF}}; }
    /// The characters of an ASCII text.
    static CharSet of(std::string_view ascii);

    CharSet operator|(const CharSet& other) const;
    CharSet operator-(const CharSet& other) const;
    CharSet complement() const;

    bool empty() const { return ranges_.empty(); }
    bool contains(char32_t c) const;
    const std::vector<Range>& ranges() const { return ranges_; }

private:
    void tidy();

    std::vector<Range> ranges_;  // ascending, apart from each other
};

}  // namespace thermocline::text
