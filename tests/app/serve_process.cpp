#include "tests/app/serve_process.h"

#include "src/base/error.h"
#include "src/base/file.h"

#include <chrono>
#include <cstdlib>
#include <fcntl.h>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <sstream>
#include <sys/wait.h>
#include <thread>
#include <unistd.h>

namespace thermocline::app {

ServeProcess::ServeProcess(const std::string& binary, const std::vector<std::string>& arguments) {
    char name[] = "/tmp/thermocline_serve_XXXXXX";
    folder_ = ::mkdtemp(name);
    pid_ = ::fork();
    if (pid_ == 0) {
        const int file = ::open((folder_ + "/log").c_str(), O_WRONLY | O_CREAT, 0600);
        if (file < 0 || ::dup2(file, STDOUT_FILENO) < 0 || ::dup2(file, STDERR_FILENO) < 0) std::_Exit(127);
        ::close(file);
        std::vector<std::string> all = {binary, "serve", "--port", "0"};
        all.insert(all.end(), arguments.begin(), arguments.end());
        std::vector<char*> argv;
        for (std::string& argument : all) argv.push_back(argument.data());
        argv.push_back(nullptr);
        ::execv(binary.c_str(), argv.data());
        std::_Exit(127);
    }
    const std::string mark = "listening on http://127.0.0.1:";
    while (port_ == 0) {
        std::this_thread::sleep_for(std::chrono::milliseconds(20));
        const std::string seen = log();
        const size_t at = seen.find(mark);
        if (at != std::string::npos && seen.find('\n', at) != std::string::npos)
            port_ = std::atoi(seen.c_str() + at + mark.size());
        else if (!is_alive())
            fail("the server did not start: ", seen);
    }
}

ServeProcess::~ServeProcess() {
    if (pid_ > 0) stop();
    std::filesystem::remove_all(folder_);
}

bool ServeProcess::is_alive() const {
    siginfo_t state{};
    return ::waitid(P_PID, static_cast<id_t>(pid_), &state, WEXITED | WNOHANG | WNOWAIT) == 0 && state.si_pid == 0;
}

int64_t ServeProcess::resident_bytes() const {
    int64_t all = 0, resident = 0;
    std::ifstream("/proc/" + std::to_string(pid_) + "/statm") >> all >> resident;
    return resident * ::sysconf(_SC_PAGESIZE);
}

int64_t ServeProcess::open_files() const {
    return std::distance(std::filesystem::directory_iterator("/proc/" + std::to_string(pid_) + "/fd"),
                         std::filesystem::directory_iterator());
}

std::string ServeProcess::log() const {
    std::ostringstream text;
    text << std::ifstream(folder_ + "/log", std::ios::binary).rdbuf();
    return text.str();
}

int ServeProcess::stop() {
    ::kill(pid_, SIGTERM);
    int status = 0;
    ::waitpid(pid_, &status, 0);
    pid_ = -1;
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

}  // namespace thermocline::app
