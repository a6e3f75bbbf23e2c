// The server as a process, ended in every way: what it has written outlives it, and what was being written harms
// nobody.
#include "src/base/error.h"
#include "src/base/file.h"
#include "src/base/json.h"

#include <chrono>
#include <csignal>
#include <fcntl.h>
#include <filesystem>
#include <fstream>
#include <gtest/gtest.h>
#include <httplib.h>
#include <random>
#include <string>
#include <sys/ptrace.h>
#include <sys/wait.h>
#include <thread>
#include <unistd.h>
#include <vector>

namespace thermocline::app {
namespace {

namespace fs = std::filesystem;

/// `thermocline serve` with the demo model.
class Process {
public:
    Process(const fs::path& log, std::vector<std::string> more) : log_(log) {
        std::vector<std::string> arguments{THERMOCLINE_BINARY, "serve", "--port",    "0",
                                           "--max-model-len",  "2048",  "--threads", "1",
                                           "--max-num-seqs",   "2"};
        arguments.insert(arguments.end(), more.begin(), more.end());
        std::vector<char*> pointers;
        for (std::string& argument : arguments) pointers.push_back(argument.data());
        pointers.push_back(nullptr);
        pid_ = ::fork();
        if (pid_ == 0) {
            const int file = ::open(log_.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0600);
            ::dup2(file, STDERR_FILENO);
            ::execv(THERMOCLINE_BINARY, pointers.data());
            ::_exit(127);
        }
        for (int i = 0; i < 6000 && port_ == 0; ++i) {
            std::this_thread::sleep_for(std::chrono::milliseconds(10));
            const std::string said = this->said(), mark = "listening on http://127.0.0.1:";
            const size_t at = said.find(mark);
            if (at != std::string::npos && said.find('\n', at) != std::string::npos)
                port_ = std::stoi(said.substr(at + mark.size()));
        }
    }
    ~Process() {
        if (pid_ > 0) end(SIGKILL);
    }
    Process(const Process&) = delete;
    Process& operator=(const Process&) = delete;

    /// Exit status; -1 when a signal ended it. Signal 0: it ends by itself.
    int end(int signal) {
        ::kill(pid_, signal);
        int status = 0;
        ::waitpid(pid_, &status, 0);
        pid_ = -1;
        return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
    }
    /// The thread of that name; -1: there is none.
    pid_t thread(const std::string& name) const {
        for (const auto& task : fs::directory_iterator("/proc/" + std::to_string(pid_) + "/task")) {
            std::string own;
            std::getline(std::ifstream(task.path() / "comm"), own);
            if (own == name) return std::stoi(task.path().filename());
        }
        return -1;
    }
    std::string said() const { return fs::exists(log_) ? read_text(log_) : ""; }
    Json ask(const std::string& prompt) const {
        const Json body = {
            {"prompt", prompt}, {"max_tokens", 8}, {"temperature", 0}, {"logprobs", 1}, {"ignore_eos", true}};
        httplib::Client client("127.0.0.1", port_);
        client.set_read_timeout(600);  // the machine may be busy
        const auto result = client.Post("/v1/completions", dump_json(body), "application/json");
        if (!result || result->status != 200) fail(result ? result->body : "no answer", "\n", said());
        return parse_json(result->body, "reply");
    }
    Json get(const std::string& path) const {
        return parse_json(httplib::Client("127.0.0.1", port_).Get(path)->body, "reply");
    }

private:
    fs::path log_;
    pid_t pid_ = -1;
    int port_ = 0;
};

/// What must be the same to the bit.
std::string answer(const Json& reply) {
    return reply["choices"][0]["text"].get<std::string>() + dump_json(reply["choices"][0]["logprobs"]);
}

int64_t cached(const Json& reply) { return reply["usage"]["prompt_tokens_details"]["cached_tokens"].get<int64_t>(); }
int64_t prompt_tokens(const Json& reply) { return reply["usage"]["prompt_tokens"].get<int64_t>(); }

/// About 600 tokens; every seed tells another story.
std::string story(uint32_t seed) {
    static const std::vector<std::string> kWords = {"and", "the", "king", "went", "up", "to", "water", "stone", "of"};
    std::mt19937 random(seed);
    std::string out;
    for (int i = 0; i < 500; ++i) out += kWords[random() % kWords.size()] + " ";
    return out;
}

class Restart : public ::testing::Test {
protected:
    Restart() {
        std::string pattern = (fs::temp_directory_path() / "restart-XXXXXX").string();
        folder = ::mkdtemp(pattern.data());
    }
    ~Restart() override { fs::remove_all(folder); }

    std::vector<std::string> with_disk() const {
        return {"--cache-ram", "256MiB", "--kv-disk", (folder / "states").string()};
    }

    fs::path folder;
};

TEST_F(Restart, PrefixesComeFromTheDiskToTheBit) {
    std::string expected;
    {
        Process fresh(folder / "log", {"--cache-ram", "0"});
        expected = answer(fresh.ask(story(1)));
        EXPECT_EQ(fresh.end(SIGTERM), 0);
    }
    {
        Process first(folder / "log", with_disk());
        const Json reply = first.ask(story(1));
        EXPECT_EQ(answer(reply), expected);
        EXPECT_EQ(cached(reply), 0);
        EXPECT_EQ(first.end(SIGTERM), 0);
    }
    Process second(folder / "log", with_disk());
    const Json reply = second.ask(story(1));
    EXPECT_EQ(answer(reply), expected);
    EXPECT_EQ(cached(reply), prompt_tokens(reply) - 1);
    EXPECT_GT(prompt_tokens(reply), 400);
    const Json stats = second.get("/v1/stats")["prefix_cache"];
    EXPECT_EQ(stats["disk_hits"], cached(reply)) << stats;
    EXPECT_EQ(stats["disk_loads"], 1);
    EXPECT_EQ(cached(second.ask(story(1))), prompt_tokens(reply) - 1);
    EXPECT_EQ(second.get("/v1/stats")["prefix_cache"]["disk_loads"], 1) << "from memory, this time";
}

TEST_F(Restart, ServesAfterBeingKilledWhileItWrites) {
    std::vector<std::string> answers;
    for (uint32_t round = 0; round < 10; ++round) {
        Process server(folder / "log", with_disk());
        answers.push_back(answer(server.ask(story(round))));
        std::this_thread::sleep_for(std::chrono::milliseconds(round * 2));  // its states are on their way to the disk
        EXPECT_EQ(server.end(SIGKILL), -1);
    }
    Process last(folder / "log", with_disk());
    int64_t hits = 0;
    for (uint32_t round = 0; round < 10; ++round) {
        const Json reply = last.ask(story(round));
        EXPECT_EQ(answer(reply), answers[round]) << round;
        hits += cached(reply) > 0;
    }
    EXPECT_GT(hits, 0) << "some were whole";
    EXPECT_EQ(last.said().find("damaged"), std::string::npos) << last.said();
    EXPECT_EQ(last.end(SIGTERM), 0);
}

/// Stops one thread of a process, as if it hung in the kernel, while the others go on.
class Stopped {
public:
    explicit Stopped(pid_t thread) : thread_(thread) {
        worked = ::ptrace(PTRACE_SEIZE, thread, nullptr, nullptr) == 0 &&
                 ::ptrace(PTRACE_INTERRUPT, thread, nullptr, nullptr) == 0 &&
                 ::waitpid(thread, nullptr, __WALL) == thread;
    }
    /// Waits for the end of the thread: only when that has been seen is its process at its end.
    void wait() {
        int status = 0;
        while (::waitpid(thread_, &status, __WALL) == thread_ && WIFSTOPPED(status)) continue;
    }
    bool worked = false;

private:
    pid_t thread_;
};

TEST_F(Restart, EndsWhenAWorkerHangs) {
    const std::vector<std::string> flags = {"--threads", "2", "--worker-timeout", "2", "--gpus", "emulated"};
    Process server(folder / "log", flags);
    const std::string expected = answer(server.ask("In the beginning"));
    Stopped worker(server.thread("worker 1"));
    if (!worker.worked) GTEST_SKIP() << "threads cannot be traced here";
    try {
        server.ask("In the beginning God");
        ADD_FAILURE() << "an answer without a worker";
    } catch (const Error& error) {
        EXPECT_NE(std::string(error.what()).find("worker 1 on CPU"), std::string::npos) << error.what();
    }
    worker.wait();
    EXPECT_EQ(server.end(0), 1) << server.said();
    Process next(folder / "log", {"--threads", "2", "--gpus", "emulated"});
    EXPECT_EQ(answer(next.ask("In the beginning")), expected);
}

}  // namespace
}  // namespace thermocline::app
