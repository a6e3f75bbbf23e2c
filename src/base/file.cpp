#include "src/base/file.h"

#include "src/base/error.h"

#include <cerrno>
#include <cstring>
#include <fcntl.h>
#include <fstream>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#include <utility>

namespace thermocline {

namespace {

struct OpenFile {
    int descriptor;
    ~OpenFile() { ::close(descriptor); }
};

}  // namespace

std::shared_ptr<const MappedFile> MappedFile::open(const std::filesystem::path& path) {
    OpenFile file{::open(path.c_str(), O_RDONLY | O_CLOEXEC)};
    if (file.descriptor < 0) fail(printable(path.string()), ": cannot open (", std::strerror(errno), ")");
    struct stat status {};
    if (::fstat(file.descriptor, &status) != 0 || !S_ISREG(status.st_mode))
        fail(printable(path.string()), ": not a regular file");
    const auto size = static_cast<size_t>(status.st_size);
    if (size == 0) return std::shared_ptr<const MappedFile>(new MappedFile(path, nullptr, 0, true));
    void* data = ::mmap(nullptr, size, PROT_READ, MAP_SHARED, file.descriptor, 0);
    if (data == MAP_FAILED)
        fail(printable(path.string()), ": cannot map ", size, " bytes (", std::strerror(errno), ")");
    return std::shared_ptr<const MappedFile>(new MappedFile(path, static_cast<const std::byte*>(data), size, true));
}

std::shared_ptr<const MappedFile> MappedFile::from_bytes(std::string_view bytes, const std::string& name) {
    auto* copy = new std::byte[bytes.size() + 1];
    if (!bytes.empty()) std::memcpy(copy, bytes.data(), bytes.size());
    return std::shared_ptr<const MappedFile>(new MappedFile(name, copy, bytes.size(), false));
}

std::shared_ptr<const MappedFile> MappedFile::from_pages(Pages pages, const std::string& name) {
    const std::span<std::byte> bytes = pages.bytes();
    auto* file = new MappedFile(name, bytes.data(), bytes.size(), false);
    file->pages_.emplace(std::move(pages));
    return std::shared_ptr<const MappedFile>(file);
}

MappedFile::~MappedFile() {
    if (pages_) return;
    if (!mapped_)
        delete[] data_;
    else if (data_ != nullptr)
        ::munmap(const_cast<std::byte*>(data_), size_);
}

void MappedFile::will_need(size_t offset, size_t size) const {
    if (!mapped_ || data_ == nullptr) return;
    const auto page = static_cast<size_t>(::sysconf(_SC_PAGESIZE));
    const size_t begin = offset / page * page;
    ::madvise(const_cast<std::byte*>(data_) + begin, offset + size - begin, MADV_WILLNEED);
}

std::string read_text(const std::filesystem::path& path, size_t limit) {
    const auto file = MappedFile::open(path);
    if (file->size() > limit) fail(printable(path.string()), ": ", file->size(), " bytes, expected at most ", limit);
    return std::string(file->text());
}

void write_text(const std::filesystem::path& path, std::string_view text) {
    std::filesystem::path beside = path;
    beside += ".part";
    std::ofstream out(beside, std::ios::binary | std::ios::trunc);
    out << text;
    out.close();
    std::error_code failed;
    if (out) std::filesystem::rename(beside, path, failed);
    if (out && !failed) return;
    std::error_code ignored;
    std::filesystem::remove(beside, ignored);
    fail(printable(path.string()), ": cannot write");
}

}  // namespace thermocline
