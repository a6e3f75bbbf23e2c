// A checksum of bytes: against damage, not against malice.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>

namespace thermocline {

inline constexpr uint64_t kChecksumStart = 0xcbf29ce484222325;

/// FNV-1a over 8-byte words (the tail byte by byte). Bytes that come in parts give the same number as at once if every
/// part but the last is a multiple of 8 bytes and `sum` is what the part before gave.
inline uint64_t checksum_of(std::span<const std::byte> bytes, uint64_t sum = kChecksumStart) {
    constexpr uint64_t kPrime = 0x100000001b3;
    size_t i = 0;
    for (; i + 8 <= bytes.size(); i += 8) {
        uint64_t word;
        std::memcpy(&word, bytes.data() + i, 8);
        sum = (sum ^ word) * kPrime;
        sum ^= sum >> 29;
    }
    for (; i < bytes.size(); ++i) sum = (sum ^ static_cast<uint64_t>(bytes[i])) * kPrime;
    return sum;
}

}  // namespace thermocline
