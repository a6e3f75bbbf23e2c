#include "tests/app/command.h"

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <fcntl.h>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

namespace thermocline::app {

namespace {

std::string slurp(const std::filesystem::path& path) {
    std::ostringstream text;
    text << std::ifstream(path, std::ios::binary).rdbuf();
    return text.str();
}

void redirect(const std::filesystem::path& path, int flags, int descriptor) {
    const int file = ::open(path.c_str(), flags, 0600);
    if (file < 0 || ::dup2(file, descriptor) < 0) std::_Exit(127);
}

}  // namespace

Ran run_command(const std::vector<std::string>& arguments, const std::string& input) {
    char name[] = "/tmp/thermocline_command_XXXXXX";
    const std::filesystem::path folder = ::mkdtemp(name);
    std::ofstream(folder / "in", std::ios::binary) << input;
    const auto start = std::chrono::steady_clock::now();
    const pid_t child = ::fork();
    if (child == 0) {
        redirect(folder / "in", O_RDONLY, STDIN_FILENO);
        redirect(folder / "out", O_WRONLY | O_CREAT, STDOUT_FILENO);
        redirect(folder / "err", O_WRONLY | O_CREAT, STDERR_FILENO);
        std::vector<char*> argv{const_cast<char*>(THERMOCLINE_BINARY)};
        for (const std::string& argument : arguments) argv.push_back(const_cast<char*>(argument.c_str()));
        argv.push_back(nullptr);
        ::execv(THERMOCLINE_BINARY, argv.data());
        std::_Exit(127);
    }
    int status = 0;
    rusage usage{};
    ::wait4(child, &status, 0, &usage);
    const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    Ran ran{WIFEXITED(status) ? WEXITSTATUS(status) : -1, slurp(folder / "out"), slurp(folder / "err"), seconds,
            usage.ru_maxrss};
    std::filesystem::remove_all(folder);
    return ran;
}

}  // namespace thermocline::app
