// States on disk: found again by the next process, refused when damaged, bounded, and no harm when the disk fails.
#include "tests/memory/prefix_folder.h"

#include <algorithm>
#include <csignal>
#include <fcntl.h>
#include <sched.h>
#include <sys/file.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

namespace thermocline::memory {
namespace {

using PrefixDiskTest = PrefixFolder;

TEST_F(PrefixDiskTest, TheNextProcessFindsThem) {
    {
        PrefixDisk disk(folder / "new" / "folders", kPlenty, kModel);
        for (const int64_t length : {100, 128, 300, 700}) save(disk, counting(length));
        save(disk, counting(200), "salt");
        EXPECT_EQ(disk.files(), 5);
        EXPECT_TRUE(loads(disk, counting(700)));
    }
    PrefixDisk disk(folder / "new" / "folders", kPlenty, kModel);
    EXPECT_EQ(disk.files(), 5);
    EXPECT_EQ(disk.find("", counting(1000), 1000), 700);
    EXPECT_EQ(disk.find("", counting(1000), 699), 300);
    EXPECT_EQ(disk.find("", counting(127), 1000), 100);
    EXPECT_EQ(disk.find("", counting(1000, 1), 1000), 0);
    EXPECT_EQ(disk.find("salt", counting(1000), 1000), 200);
    EXPECT_EQ(disk.find("pepper", counting(1000), 1000), 0);
    for (const int64_t length : {100, 128, 300, 700}) EXPECT_TRUE(loads(disk, counting(length))) << length;
    EXPECT_TRUE(loads(disk, counting(200), "salt"));
    EXPECT_FALSE(loads(disk, counting(200)));
    EXPECT_EQ(disk.files(), 5) << "what is not there is no damage";
}

TEST_F(PrefixDiskTest, AFileHoldsWhatItsParentDoesNot) {
    PrefixDisk disk(folder, kPlenty, kModel);
    save(disk, counting(10000));
    const int64_t before = disk.bytes();
    save(disk, counting(10200));
    EXPECT_LT(disk.bytes() - before, 4000);
    save(disk, counting(10200));
    EXPECT_EQ(disk.files(), 2) << "it was there";
    EXPECT_TRUE(loads(disk, counting(10200)));
}

TEST_F(PrefixDiskTest, EveryFlippedBitIsRefused) {
    {
        PrefixDisk disk(folder, kPlenty, kModel);
        save(disk, counting(140), "salt");
    }
    const fs::path path = files().at(0);
    const std::string good = content(path);
    for (size_t i = 0; i < good.size(); i += i < 200 ? 1 : 7) {
        std::string bad = good;
        bad[i] = static_cast<char>(bad[i] ^ (1 << (i % 8)));
        replace(path, bad);
        PrefixDisk disk(folder, kPlenty, kModel);
        EXPECT_FALSE(loads(disk, counting(140), "salt")) << "byte " << i;
        const bool is_version = i >= 8 && i < 12;
        EXPECT_EQ(disk.files(), is_version ? 1 : 0);
        EXPECT_EQ(files().empty(), !is_version) << "byte " << i << " of " << good.size();
    }
    replace(path, good);
    PrefixDisk disk(folder, kPlenty, kModel);
    EXPECT_TRUE(loads(disk, counting(140), "salt"));
}

TEST_F(PrefixDiskTest, EveryTruncationIsRefused) {
    {
        PrefixDisk disk(folder, kPlenty, kModel);
        save(disk, counting(140));
    }
    const fs::path path = files().at(0);
    const std::string good = content(path);
    for (size_t size = 0; size < good.size(); size += 5) {
        replace(path, good.substr(0, size));
        PrefixDisk disk(folder, kPlenty, kModel);
        EXPECT_EQ(disk.files(), 0) << size;
        EXPECT_TRUE(files().empty());
    }
    replace(path, good + "x");
    EXPECT_EQ(PrefixDisk(folder, kPlenty, kModel).files(), 0);
    replace(path, good);
    PrefixDisk disk(folder, kPlenty, kModel);
    replace(path, good.substr(0, good.size() / 2));
    EXPECT_FALSE(loads(disk, counting(140))) << "truncated while it was known";
    EXPECT_EQ(disk.files(), 0);
}

TEST_F(PrefixDiskTest, AFileUnderTheNameOfAnotherIsRefused) {
    {
        PrefixDisk disk(folder, kPlenty, kModel);
        save(disk, counting(140));
    }
    const fs::path path = files().at(0);
    fs::rename(path, folder / (std::string(32, 'a') + ".prefix"));
    PrefixDisk disk(folder, kPlenty, kModel);
    EXPECT_EQ(disk.files(), 0);
}

TEST_F(PrefixDiskTest, FilesOfOtherModelsAreNotUsedButCounted) {
    {
        PrefixDisk disk(folder, kPlenty, kModel);
        save(disk, counting(300));
    }
    const int64_t size = PrefixDisk(folder, kPlenty, kModel).bytes();
    {
        PrefixDisk other(folder, 2 * size, kModel + 1);
        EXPECT_EQ(other.files(), 1);
        EXPECT_EQ(other.find("", counting(300), 300), 0);
        EXPECT_FALSE(loads(other, counting(300)));
        save(other, counting(300));
        EXPECT_EQ(other.files(), 2);
    }
    {
        PrefixDisk disk(folder, kPlenty, kModel);
        EXPECT_TRUE(loads(disk, counting(300)));
    }
    PrefixDisk other(folder, 2 * size, kModel + 1);
    save(other, counting(300, 7));
    EXPECT_TRUE(loads(other, counting(300, 7)));
    EXPECT_FALSE(loads(other, counting(300))) << "its own, but not used for the longest time";
    EXPECT_EQ(PrefixDisk(folder, kPlenty, kModel).find("", counting(300), 300), 300);
}

TEST_F(PrefixDiskTest, AFolderThatHoldsTooMuchShrinksAtTheStart) {
    {
        PrefixDisk disk(folder, kPlenty, kModel);
        for (int32_t i = 0; i < 10; ++i) save(disk, counting(300, i));
    }
    const PrefixDisk disk(folder, 10000, kModel + 1);
    EXPECT_GT(disk.files(), 0);
    EXPECT_LE(disk.bytes(), 10000);
    EXPECT_EQ(std::ssize(files()), disk.files());
}

TEST_F(PrefixDiskTest, WhatIsNotOursIsLeftAlone) {
    const std::string name = std::string(32, 'a') + ".prefix";
    replace(folder / "notes.txt", "mine");
    replace(folder / "x.prefix", "mine");
    fs::create_directory(folder / name);
    ASSERT_EQ(::mkfifo((folder / ("b" + name.substr(1))).c_str(), 0600), 0);
    fs::create_symlink(folder / "notes.txt", folder / ("c" + name.substr(1)));
    ::testing::internal::CaptureStdout();
    {
        PrefixDisk disk(folder, 1, kModel);
        EXPECT_EQ(disk.files(), 0);
    }
    const std::string said = ::testing::internal::GetCapturedStdout();
    EXPECT_EQ(files().size(), 5u);
    EXPECT_NE(said.find("2 files are none of ours"), std::string::npos) << said;
    EXPECT_EQ(std::count(said.begin(), said.end(), '\n'), 1) << said;
}

TEST_F(PrefixDiskTest, AnotherVersionsFilesAreNotUsedAndNotDamaged) {
    {
        PrefixDisk disk(folder, kPlenty, kModel);
        save(disk, counting(300));
    }
    std::string bytes = content(files().at(0));
    bytes[8] = 77;  // the version stands behind the magic
    replace(files().at(0), bytes);
    {
        PrefixDisk disk(folder, kPlenty, kModel);
        EXPECT_EQ(disk.files(), 1);
        EXPECT_EQ(disk.find("", counting(300), 300), 0);
        EXPECT_EQ(content(files().at(0)), bytes);
    }
    EXPECT_EQ(PrefixDisk(folder, 10, kModel).files(), 0) << "it goes when there is no room for it";
    EXPECT_TRUE(files().empty());
}

TEST_F(PrefixDiskTest, ChildrenGoWithTheirParent) {
    {
        PrefixDisk disk(folder, kPlenty, kModel);
        save(disk, counting(200));
    }
    const fs::path parent = files().at(0);
    {
        PrefixDisk disk(folder, kPlenty, kModel);
        save(disk, counting(400));
        save(disk, counting(600));
        save(disk, counting(50, 7));
    }
    fs::remove(parent);
    PrefixDisk disk(folder, kPlenty, kModel);
    EXPECT_EQ(disk.files(), 1);
    EXPECT_EQ(files().size(), 1u);
    EXPECT_TRUE(loads(disk, counting(50, 7)));
}

TEST_F(PrefixDiskTest, KeepsToItsBudget) {
    PrefixDisk disk(folder, 20000, kModel);
    const auto story = [](int32_t which) { return counting(300, which * 1000); };
    save(disk, story(0));
    for (int32_t i = 1; i < 30; ++i) {
        EXPECT_TRUE(loads(disk, story(0))) << "in use all the time";
        save(disk, story(i));
        EXPECT_LE(disk.bytes(), 20000);
        EXPECT_EQ(std::ssize(files()), disk.files());
    }
    EXPECT_GT(disk.files(), 3);
    EXPECT_FALSE(loads(disk, story(1)));
    EXPECT_TRUE(loads(disk, story(29)));
    const int64_t before = disk.files();
    save(disk, counting(10000, 7));
    EXPECT_EQ(disk.find("", counting(10000, 7), 10000), 0) << "larger than the budget";
    EXPECT_EQ(disk.files(), before) << "and nothing goes for it";
    int64_t bytes = 0;
    for (const fs::path& path : files()) bytes += static_cast<int64_t>(fs::file_size(path));
    EXPECT_EQ(bytes, disk.bytes());
}

TEST_F(PrefixDiskTest, UnfinishedFilesOfTheDeadAreRemoved) {
    const std::string name = std::string(32, '0') + ".prefix.unfinished-";
    const fs::path dead = folder / (name + "1"), living = folder / (name + "2");
    replace(dead, "half a file");
    replace(living, "half a file");
    const int writer = ::open(living.c_str(), O_WRONLY | O_CLOEXEC);
    ASSERT_EQ(::flock(writer, LOCK_EX), 0);
    { const PrefixDisk disk(folder, kPlenty, kModel); }
    EXPECT_FALSE(fs::exists(dead));
    EXPECT_TRUE(fs::exists(living)) << "its writer lives";
    ::close(writer);
    { const PrefixDisk disk(folder, kPlenty, kModel); }
    EXPECT_FALSE(fs::exists(living));
}

TEST_F(PrefixDiskTest, ADiskThatTakesNothingIsNoFailure) {
    PrefixDisk disk(folder, kPlenty, kModel);
    save(disk, counting(100));
    rlimit limit{};
    ASSERT_EQ(::getrlimit(RLIMIT_FSIZE, &limit), 0);
    rlimit small = limit;
    small.rlim_cur = 1500;  // the file of a longer state ends in its middle
    ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &small), 0);
    save(disk, counting(900, 5));
    save(disk, counting(900, 6));
    ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &limit), 0);
    EXPECT_EQ(disk.files(), 1);
    EXPECT_EQ(files().size(), 1u) << "nothing unfinished stays";
    EXPECT_TRUE(loads(disk, counting(100)));
    save(disk, counting(900, 5));
    EXPECT_TRUE(loads(disk, counting(900, 5))) << "it is tried again";
    fs::remove_all(folder);
    save(disk, counting(900, 6));
    EXPECT_EQ(disk.find("", counting(900, 6), 900), 0);
}

constexpr int kNoMounts = 77;

/// In a process of its own with a disk of its own, of 64 KiB: 0, or the number of what did not hold.
int saves_to_a_full_disk(const fs::path& folder) {
    if (::unshare(CLONE_NEWNS | (::geteuid() == 0 ? 0 : CLONE_NEWUSER)) != 0) return kNoMounts;
    // What is mounted from here on is seen by this process alone.
    if (::mount(nullptr, "/", nullptr, MS_REC | MS_PRIVATE, nullptr) != 0) return kNoMounts;
    if (::mount("tmpfs", folder.c_str(), "tmpfs", 0, "size=64k") != 0) return kNoMounts;
    ::testing::internal::CaptureStdout();
    PrefixDisk disk(folder, kPlenty, kModel);
    for (int32_t i = 0; i < 40; ++i) {
        const Tokens tokens = counting(900, i);
        disk.save("", tokens, state_of(tokens));
        disk.flush();
    }
    const std::string said = ::testing::internal::GetCapturedStdout();
    if (said.find("cannot write (No space left on device)") == std::string::npos) return 1;
    if (std::count(said.begin(), said.end(), '\n') != 1) return 2;  // said once
    const int64_t files = disk.files();
    if (files < 5 || files >= 40) return 3;
    if (std::distance(fs::directory_iterator(folder), fs::directory_iterator()) != files) return 4;  // none unfinished
    std::promise<bool> loaded;
    disk.load("", counting(900), [&](std::optional<StoredState> state) { loaded.set_value(state.has_value()); });
    return loaded.get_future().get() ? 0 : 5;
}

TEST_F(PrefixDiskTest, AFullDiskIsWarnedOfOnce) {
    const pid_t child = ::fork();
    if (child == 0) ::_exit(saves_to_a_full_disk(folder));
    int status = 0;
    ASSERT_EQ(::waitpid(child, &status, 0), child);
    ASSERT_TRUE(WIFEXITED(status));
    if (WEXITSTATUS(status) == kNoMounts) GTEST_SKIP() << "this account may not mount a small disk";
    EXPECT_EQ(WEXITSTATUS(status), 0);
}

TEST_F(PrefixDiskTest, AFileInItsPlaceIsRefusedAtOnce) {
    replace(folder / "file", "");
    EXPECT_THROW(PrefixDisk(folder / "file", kPlenty, kModel), std::exception);
}

/// Not as root, who may write anywhere.
struct Nobody {
    Nobody() {
        if (::geteuid() != 0) return;
        EXPECT_EQ(::seteuid(65534), 0);
    }
    ~Nobody() {
        if (::getuid() != 0) return;
        EXPECT_EQ(::seteuid(0), 0);
    }
};

TEST_F(PrefixDiskTest, AFolderThatCannotBeWrittenIsWarnedOfOnce) {
    {
        PrefixDisk disk(folder, kPlenty, kModel);
        save(disk, counting(300));
    }
    fs::permissions(files().at(0), fs::perms(0444));
    fs::permissions(folder, fs::perms(0555));
    ::testing::internal::CaptureStdout();
    {
        const Nobody nobody;
        PrefixDisk disk(folder, kPlenty, kModel);
        for (int32_t i = 1; i < 5; ++i) save(disk, counting(300, i));
        EXPECT_TRUE(loads(disk, counting(300))) << "what is there serves";
        EXPECT_EQ(disk.files(), 1);
    }
    const std::string said = ::testing::internal::GetCapturedStdout();
    fs::permissions(folder, fs::perms::owner_all);
    EXPECT_EQ(files().size(), 1u);
    EXPECT_NE(said.find("cannot write (Permission denied)"), std::string::npos) << said;
    EXPECT_EQ(std::count(said.begin(), said.end(), '\n'), 1) << said;
}

}  // namespace
}  // namespace thermocline::memory
