// Killed at any moment: the next start has every state that was on the disk, and no other.
#include "tests/memory/prefix_folder.h"

#include <csignal>
#include <sys/wait.h>
#include <unistd.h>

namespace thermocline::memory {
namespace {

using PrefixKill = PrefixFolder;

/// Writes states until it is killed, and tells of each that is on the disk.
[[noreturn]] void write_until_killed(const fs::path& folder, int tell) {
    PrefixDisk disk(folder, kPlenty, kModel);
    for (int32_t i = 1;; ++i) {
        const Tokens tokens = counting(300 * i);
        disk.save("", tokens, state_of(tokens));
        disk.flush();
        if (::write(tell, "x", 1) != 1) ::_exit(1);
    }
}

TEST_F(PrefixKill, NothingIsLostButTheFileBeingWrittenWhenKilled) {
    int64_t written = 0, cut = 0;
    for (int round = 0; round < 200; ++round) {
        const fs::path one = folder / std::to_string(round);
        int pipe[2];
        ASSERT_EQ(::pipe(pipe), 0);
        const pid_t child = ::fork();
        if (child == 0) write_until_killed(one, pipe[1]);
        ::close(pipe[1]);
        char byte;
        EXPECT_EQ(::read(pipe[0], &byte, 1), 1);
        ::usleep(static_cast<useconds_t>(round * 53 % 8000));
        ::kill(child, SIGKILL);
        ::waitpid(child, nullptr, 0);
        int64_t told = 1;
        while (::read(pipe[0], &byte, 1) == 1) ++told;
        ::close(pipe[0]);
        for (const auto& item : fs::directory_iterator(one))
            cut += item.path().string().find("unfinished") != std::string::npos;

        PrefixDisk disk(one, kPlenty, kModel);
        EXPECT_GE(disk.files(), told);
        EXPECT_LE(disk.files(), told + 1) << "one may have been written and not told";
        EXPECT_EQ(std::distance(fs::directory_iterator(one), {}), disk.files()) << "nothing unfinished is left";
        for (int64_t i = 1; i <= disk.files(); ++i) EXPECT_TRUE(loads(disk, counting(300 * i))) << i;
        save(disk, counting(50, 7));
        EXPECT_TRUE(loads(disk, counting(50, 7))) << "and it goes on";
        written += told;
    }
    EXPECT_GT(written, 200);
    EXPECT_GT(cut, 5) << "killed between two files only: the test tests nothing";
}

}  // namespace
}  // namespace thermocline::memory
