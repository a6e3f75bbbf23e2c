#include "memory/prefix_file.h"

#include "src/base/check.h"
#include "src/base/checksum.h"

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <ctime>
#include <fcntl.h>
#include <memory>
#include <random>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

namespace thermocline::memory {
namespace {

namespace fs = std::filesystem;

constexpr int64_t kBlock = PrefixTree::kBlockTokens;
constexpr uint32_t kVersion = 1;
constexpr char kMagic[8] = {'T', 'C', 'P', 'R', 'E', 'F', 'I', 'X'};
constexpr std::string_view kEnding = ".prefix";
constexpr std::string_view kUnfinished = ".unfinished-";
constexpr size_t kKeyDigits = 32;
/// No salt and no state of any model is larger; a header that says so is damaged.
constexpr uint64_t kMostBytes = uint64_t{1} << 40;
/// How files are opened that somebody else may have put there: no links, and no waiting for a pipe.
constexpr int kReadOnly = O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC;

struct Header {
    char magic[8];
    uint32_t version;
    uint32_t header_bytes;
    PrefixFileHead head;
    uint64_t salt_bytes, entries_bytes, tail_bytes;
    uint64_t payload_checksum;
    uint64_t header_checksum;  // of all before it
};
static_assert(sizeof(Header) == 8 + 8 + 8 + 32 + 16 + 24 + 16);

uint64_t checksum_of(const Header& header) {
    return thermocline::checksum_of(
        {reinterpret_cast<const std::byte*>(&header), sizeof header - sizeof header.header_checksum});
}

/// Pieces of entries: whole blocks from head.begin on, then what is left.
int64_t pieces_of(const PrefixFileHead& head) { return (head.position - head.begin + kBlock - 1) / kBlock; }

uint64_t payload_bytes(const Header& header) {
    return static_cast<uint64_t>(pieces_of(header.head)) * 8 + header.salt_bytes +
           static_cast<uint64_t>(header.head.position - header.head.begin) * 4 + header.entries_bytes +
           header.tail_bytes;
}

/// Sets the header of a file that is `size` long and begins with these bytes, if it is whole.
PrefixFileState look(std::span<const std::byte> front, uint64_t size, Header& header) {
    if (front.size() < sizeof header) return PrefixFileState::kDamaged;
    std::memcpy(&header, front.data(), sizeof header);
    if (std::memcmp(header.magic, kMagic, sizeof kMagic) != 0) return PrefixFileState::kDamaged;
    if (header.version != kVersion) return PrefixFileState::kOtherVersion;
    const PrefixFileHead& head = header.head;
    const bool is_whole = header.header_bytes == sizeof header && header.header_checksum == checksum_of(header) &&
                          head.begin >= 0 && head.begin % kBlock == 0 && head.position > head.begin &&
                          static_cast<uint64_t>(head.position) < kMostBytes && header.salt_bytes < kMostBytes &&
                          header.entries_bytes < kMostBytes && header.tail_bytes < kMostBytes &&
                          sizeof header + payload_bytes(header) == size;
    return is_whole ? PrefixFileState::kWhole : PrefixFileState::kDamaged;
}

template <typename T>
void append(std::vector<std::byte>& out, std::span<T> values) {
    const auto bytes = std::as_bytes(values);
    out.insert(out.end(), bytes.begin(), bytes.end());
}

/// Everything to the descriptor and to the disk; errno, or 0.
int write_all(int descriptor, std::span<const std::byte> bytes) {
    while (!bytes.empty()) {
        const ssize_t written = ::write(descriptor, bytes.data(), bytes.size());
        if (written < 0 && errno == EINTR) continue;
        if (written <= 0) return written == 0 ? ENOSPC : errno;
        bytes = bytes.subspan(static_cast<size_t>(written));
    }
    return ::fsync(descriptor) == 0 ? 0 : errno;
}

/// Its new names to the disk.
void sync_folder(const fs::path& folder) {
    const int descriptor = ::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (descriptor < 0) return;
    ::fsync(descriptor);
    ::close(descriptor);
}

/// The first `most` bytes of a regular file, and its size; nothing if it cannot be read.
std::vector<std::byte> read_front(const fs::path& path, uint64_t most, uint64_t& size) {
    std::vector<std::byte> out;
    size = 0;
    const int descriptor = ::open(path.c_str(), kReadOnly);
    if (descriptor < 0) return out;
    struct stat status {};
    if (::fstat(descriptor, &status) == 0 && S_ISREG(status.st_mode)) size = static_cast<uint64_t>(status.st_size);
    try {
        out.resize(std::min(size, most));
    } catch (const std::bad_alloc&) {
        ::close(descriptor);
        throw;
    }
    size_t done = 0;
    while (done < out.size()) {
        const ssize_t count = ::read(descriptor, out.data() + done, out.size() - done);
        if (count < 0 && errno == EINTR) continue;
        if (count <= 0) break;
        done += static_cast<size_t>(count);
    }
    out.resize(done);
    ::close(descriptor);
    return out;
}

/// Hands out bytes from the front.
struct Taker {
    std::span<const std::byte> left;

    std::span<const std::byte> take(uint64_t count) {
        const auto taken = left.first(static_cast<size_t>(count));
        left = left.subspan(static_cast<size_t>(count));
        return taken;
    }
    /// Whether the next bytes are these values.
    template <typename T>
    bool take_same(std::span<const T> values) {
        const auto expected = std::as_bytes(values);
        if (left.size() < expected.size()) return false;
        const auto taken = take(expected.size());
        return std::equal(taken.begin(), taken.end(), expected.begin());
    }
    SharedBytes take_shared(uint64_t count) {
        const auto taken = take(count);
        return std::make_shared<const std::vector<std::byte>>(taken.begin(), taken.end());
    }
};

/// For the next start, by the fine clock: the kernel's own stamps are a timer tick apart, too coarse to compare by.
void stamp_last_use(const fs::path& path) {
    std::array<timespec, 2> now{};
    ::clock_gettime(CLOCK_REALTIME, &now[0]);
    now[1] = now[0];
    ::utimensat(AT_FDCWD, path.c_str(), now.data(), 0);
}

}  // namespace

std::string prefix_file_name(const PrefixKey& key) {
    char name[kKeyDigits + 1];
    std::snprintf(name, sizeof name, "%016llx%016llx", static_cast<unsigned long long>(key[0]),
                  static_cast<unsigned long long>(key[1]));
    return name + std::string(kEnding);
}

std::optional<PrefixKey> prefix_file_key(std::string_view name) {
    if (name.size() != kKeyDigits + kEnding.size() || !name.ends_with(kEnding)) return std::nullopt;
    PrefixKey key{};
    for (size_t i = 0; i < kKeyDigits; ++i) {
        const size_t digit = std::string_view("0123456789abcdef").find(name[i]);
        if (digit == std::string_view::npos) return std::nullopt;
        key[i / 16] = key[i / 16] << 4 | digit;
    }
    return key;
}

bool is_unfinished_prefix_file(std::string_view name) {
    const size_t at = name.find(kUnfinished);
    return at != std::string_view::npos && prefix_file_key(name.substr(0, at));
}

bool is_abandoned(const fs::path& unfinished) {
    const int descriptor = ::open(unfinished.c_str(), kReadOnly);
    if (descriptor < 0) return false;
    const bool is_free = ::flock(descriptor, LOCK_EX | LOCK_NB) == 0;
    ::close(descriptor);
    return is_free;
}

PrefixFileState look_at_prefix_file(const fs::path& path, PrefixFileHead& head) {
    Header header;
    uint64_t size = 0;
    const std::vector<std::byte> front = read_front(path, sizeof header, size);
    const PrefixFileState state = look(front, size, header);
    if (state == PrefixFileState::kWhole) head = header.head;
    return state;
}

std::vector<std::byte> prefix_file_bytes(const PrefixFileHead& head, const std::string& salt,
                                         std::span<const int32_t> tokens, const StoredState& state) {
    Header header{};
    std::memcpy(header.magic, kMagic, sizeof kMagic);
    header.version = kVersion;
    header.header_bytes = sizeof header;
    header.head = head;
    const auto pieces = std::span(state.entries).subspan(static_cast<size_t>(head.begin / kBlock));
    CHECK(std::ssize(pieces) == pieces_of(head));
    std::vector<std::byte> out(sizeof header);
    for (const SharedBytes& piece : pieces) {
        const uint64_t size = piece->size();
        append(out, std::span(&size, 1));
        header.entries_bytes += size;
    }
    append(out, std::span(salt.data(), salt.size()));
    append(out, tokens.subspan(static_cast<size_t>(head.begin)));
    for (const SharedBytes& piece : pieces) append(out, std::span(*piece));
    append(out, std::span(*state.tail));
    header.salt_bytes = salt.size();
    header.tail_bytes = state.tail->size();
    header.payload_checksum = thermocline::checksum_of(std::span(out).subspan(sizeof header));
    header.header_checksum = checksum_of(header);
    std::memcpy(out.data(), &header, sizeof header);
    return out;
}

int write_prefix_file(const fs::path& path, std::span<const std::byte> bytes) {
    std::error_code unknown;
    const fs::space_info space = fs::space(path.parent_path(), unknown);
    if (!unknown && space.available < bytes.size()) return ENOSPC;  // without filling up what others need
    thread_local std::random_device entropy;
    const fs::path unfinished = path.string() + std::string(kUnfinished) + std::to_string(entropy());
    const int descriptor = ::open(unfinished.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
    if (descriptor < 0) return errno;
    ::flock(descriptor, LOCK_EX | LOCK_NB);  // says that its writer lives; a disk without locks does without
    int error = write_all(descriptor, bytes);
    stamp_last_use(unfinished);
    if (error == 0 && ::rename(unfinished.c_str(), path.c_str()) != 0) error = errno;
    if (error != 0) ::unlink(unfinished.c_str());
    ::close(descriptor);
    sync_folder(path.parent_path());
    return error;
}

bool read_prefix_file(const fs::path& path, uint64_t model, const PrefixKey& key, const std::string& salt,
                      std::span<const int32_t> tokens, StoredState& state) {
    Header header;
    uint64_t size = 0;
    const std::vector<std::byte> bytes = read_front(path, kMostBytes, size);
    if (look(bytes, bytes.size(), header) != PrefixFileState::kWhole) return false;
    const PrefixFileHead& head = header.head;
    if (head.model != model || head.key != key) return false;
    if (head.position > std::ssize(tokens) || head.begin / kBlock > std::ssize(state.entries)) return false;
    Taker taker{std::span(bytes).subspan(sizeof header)};
    if (thermocline::checksum_of(taker.left) != header.payload_checksum) return false;
    const auto sizes = taker.take(static_cast<uint64_t>(pieces_of(head)) * 8);
    const auto own = tokens.subspan(static_cast<size_t>(head.begin), static_cast<size_t>(head.position - head.begin));
    if (header.salt_bytes != salt.size() || !taker.take_same(std::span(salt.data(), salt.size())) ||
        !taker.take_same(own))
        return false;
    state.entries.resize(static_cast<size_t>(head.begin / kBlock));
    for (size_t i = 0; i < sizes.size(); i += 8) {
        uint64_t piece;
        std::memcpy(&piece, sizes.data() + i, 8);
        if (piece > taker.left.size()) return false;
        state.entries.push_back(taker.take_shared(piece));
    }
    if (taker.left.size() != header.tail_bytes) return false;
    state.tail = taker.take_shared(header.tail_bytes);
    state.position = head.position;
    stamp_last_use(path);
    return true;
}

}  // namespace thermocline::memory
