// The byte form of a snapshot: magic, version, fingerprint of what it may be restored into, payload, checksum.
// Little-endian. The reader trusts nothing: it checks the whole buffer before it hands out a byte.
#pragma once

#include "src/base/checksum.h"
#include "src/base/error.h"

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <vector>

namespace thermocline::memory {

struct SnapshotHeader {
    char magic[8];  // "TCSNAP\0\0"
    uint32_t version;
    uint32_t header_bytes;
    uint64_t fingerprint;
    uint64_t payload_bytes;
    uint64_t checksum;  // of the payload
};
static_assert(sizeof(SnapshotHeader) == 40);

class SnapshotWriter {
public:
    SnapshotWriter(uint32_t version, uint64_t fingerprint) : out_(sizeof(SnapshotHeader)) {
        header_ = {{'T', 'C', 'S', 'N', 'A', 'P', 0, 0}, version, sizeof(SnapshotHeader), fingerprint, 0, 0};
    }
    void bytes(std::span<const std::byte> data) { out_.insert(out_.end(), data.begin(), data.end()); }
    void number(int64_t value) { bytes({reinterpret_cast<const std::byte*>(&value), sizeof value}); }
    /// Room for `count` more bytes, to be filled before the next call.
    std::byte* room(int64_t count) {
        out_.resize(out_.size() + static_cast<size_t>(count));
        return out_.data() + out_.size() - count;
    }
    std::vector<std::byte> finish() {
        const std::span payload = std::span(out_).subspan(sizeof(SnapshotHeader));
        header_.payload_bytes = payload.size();
        header_.checksum = checksum_of(payload);
        std::memcpy(out_.data(), &header_, sizeof header_);
        return std::move(out_);
    }

private:
    SnapshotHeader header_;
    std::vector<std::byte> out_;
};

class SnapshotReader {
public:
    SnapshotReader(std::span<const std::byte> data, uint32_t version, uint64_t fingerprint) {
        SnapshotHeader header;
        if (data.size() < sizeof header) fail("snapshot: ", data.size(), " bytes, shorter than its header");
        std::memcpy(&header, data.data(), sizeof header);
        if (std::memcmp(header.magic, "TCSNAP\0\0", 8) != 0) fail("snapshot: wrong magic, not a Thermocline snapshot");
        if (header.version != version || header.header_bytes != sizeof header)
            fail("snapshot: version ", header.version, ", expected ", version);
        if (header.fingerprint != fingerprint) fail("snapshot: made for another model or cache format");
        left_ = data.subspan(sizeof header);
        if (header.payload_bytes != left_.size())
            fail("snapshot: payload of ", left_.size(), " bytes, expected ", header.payload_bytes);
        if (checksum_of(left_) != header.checksum) fail("snapshot: checksum mismatch, the data is damaged");
    }
    /// The next `count` bytes.
    const std::byte* next(int64_t count) {
        if (count > std::ssize(left_)) fail("snapshot: ends early");
        const std::byte* at = left_.data();
        left_ = left_.subspan(static_cast<size_t>(count));
        return at;
    }
    int64_t number() {
        int64_t value;
        std::memcpy(&value, next(sizeof value), sizeof value);
        return value;
    }
    void expect_left(int64_t count) const {
        if (static_cast<int64_t>(left_.size()) != count)
            fail("snapshot: ", left_.size(), " bytes of rows, expected ", count);
    }

private:
    std::span<const std::byte> left_;
};

}  // namespace thermocline::memory
