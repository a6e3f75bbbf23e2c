#include "src/engine/new_folder.h"

#include "src/base/error.h"

#include <cerrno>
#include <cstring>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

namespace thermocline::engine {
namespace {

namespace fs = std::filesystem;

[[noreturn]] void fail_errno(const fs::path& path, const char* what, int error) {
    fail(printable(path.string(), 400), ": ", what, " (", std::strerror(error), ")");
}

/// The entries of a directory to the disk.
void sync_folder(const fs::path& path) {
    const int folder = ::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (folder < 0) fail_errno(path, "cannot open", errno);
    const int failed = ::fsync(folder) == 0 ? 0 : errno;
    ::close(folder);
    if (failed != 0 && failed != EINVAL) fail_errno(path, "cannot write", failed);
}

/// Where files written beside `destination` would not be renamed to it.
bool is_mount_point(const fs::path& destination) {
    struct stat own {
    }, parent{};
    return ::stat(destination.c_str(), &own) == 0 && ::stat(destination.parent_path().c_str(), &parent) == 0 &&
           own.st_dev != parent.st_dev;
}

}  // namespace

NewFile::NewFile(const fs::path& path, int64_t size)
    : path_(path), descriptor_(::open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644)) {
    if (descriptor_ < 0) fail_errno(path_, "cannot create", errno);
    // File systems that cannot reserve are written as they come.
    if (size == 0 || ::fallocate(descriptor_, 0, 0, size) == 0 || errno == EOPNOTSUPP || errno == ENOSYS) return;
    const int error = errno;
    ::close(descriptor_);
    fail_errno(path_, ("cannot take " + std::to_string(size) + " bytes").c_str(), error);
}

NewFile::~NewFile() { ::close(descriptor_); }

void NewFile::write(int64_t offset, std::span<const std::byte> bytes) const {
    while (!bytes.empty()) {
        const ssize_t written = ::pwrite(descriptor_, bytes.data(), bytes.size(), offset);
        if (written < 0 && errno == EINTR) continue;
        if (written <= 0) fail_errno(path_, "cannot write", written == 0 ? ENOSPC : errno);
        offset += written;
        bytes = bytes.subspan(static_cast<size_t>(written));
    }
}

void NewFile::finish() {
    if (::fsync(descriptor_) != 0) fail_errno(path_, "cannot write", errno);
}

NewFolder::NewFolder(const fs::path& destination, int64_t bytes) {
    std::error_code error;
    destination_ = fs::weakly_canonical(destination, error);
    if (!destination_.has_filename()) destination_ = destination_.parent_path();  // "DIR/"
    const std::string name = printable(destination_.string(), 400);
    const fs::path parent = destination_.parent_path();
    if (!fs::is_directory(parent, error)) fail(printable(parent.string(), 400), ": no such directory");
    if (fs::exists(destination_, error)) {
        if (!fs::is_directory(destination_, error)) fail(name, ": is there and no directory");
        if (!fs::is_empty(destination_, error)) fail(name, ": is not empty, expected a new or an empty directory");
        if (is_mount_point(destination_)) fail(name, ": is a mount point, give a directory in it");
    }
    const fs::space_info space = fs::space(parent, error);
    if (!error && space.available < static_cast<uint64_t>(bytes))
        fail(name, ": needs ", bytes / 1'000'000, " MB, ", space.available / 1'000'000, " MB are free on its disk");
    std::string pattern = destination_.string() + ".partial-XXXXXX";
    if (::mkdtemp(pattern.data()) == nullptr) fail_errno(parent, "cannot create a directory in it", errno);
    temporary_ = pattern;
    ::chmod(temporary_.c_str(), 0755);
}

NewFolder::~NewFolder() {
    std::error_code ignored;
    if (!temporary_.empty()) fs::remove_all(temporary_, ignored);
}

void NewFolder::write(const std::string& name, std::string_view bytes) const {
    std::error_code ignored;  // what hinders this hinders the file too
    fs::create_directories((temporary_ / name).parent_path(), ignored);
    NewFile file(temporary_ / name, static_cast<int64_t>(bytes.size()));
    file.write(0, {reinterpret_cast<const std::byte*>(bytes.data()), bytes.size()});
    file.finish();
}

void NewFolder::finish() {
    sync_folder(temporary_);
    if (::rename(temporary_.c_str(), destination_.c_str()) != 0)
        fail_errno(destination_, "cannot be given its name", errno);
    temporary_.clear();
    sync_folder(destination_.parent_path());
}

}  // namespace thermocline::engine
