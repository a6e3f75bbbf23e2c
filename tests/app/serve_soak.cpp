// Many clients at once on a server with the demo model, most of them rude: they cancel, leave in the middle of a
// request, read slowly, send broken bodies and prompts that are too long. Every complete answer must be what the same
// request got alone; at the end nothing runs, no cache is held, no file is open, and memory is what it was after half
// of the requests. Exit status 0 when all that holds.
//
//   serve_soak --binary build/release/src/app/thermocline --requests 20000
#include "src/base/error.h"
#include "src/base/json.h"
#include "src/base/random.h"
#include "tests/app/serve_process.h"

#include <CLI/CLI.hpp>
#include <arpa/inet.h>
#include <array>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <httplib.h>
#include <map>
#include <mutex>
#include <netinet/in.h>
#include <string>
#include <sys/socket.h>
#include <thread>
#include <unistd.h>
#include <vector>

namespace thermocline::app {
namespace {

using std::chrono::milliseconds;

struct Options {
    std::string binary;
    std::vector<std::string> arguments;  // more, for `serve`
    int64_t requests = 1000, clients = 64, growth_mib = 24;
    uint64_t seed = 1;
};

constexpr int64_t kContext = 512;
constexpr size_t kMaxBody = 200000;

// ---- what is asked, and how an answer reads ------------------------------------------------------------------------

struct Question {
    std::string path;
    Json body;
    std::string answer;  // alone
};

std::string words(uint64_t seed, int64_t count) {
    constexpr std::array<const char*, 12> kWords = {"And",  "the",   "LORD", "said", "unto", "sea",
                                                    "king", "house", "of",   "day",  "he",   "shall"};
    std::string text;
    for (int64_t i = 0; i < count; ++i)
        text += std::string(i == 0 ? "" : " ") +
                kWords[static_cast<size_t>(random_uniform(seed, static_cast<uint64_t>(i)) * kWords.size())];
    return text;
}

/// Greedy requests of every shape and many sizes.
std::vector<Question> questions(uint64_t seed) {
    std::vector<Question> all;
    for (uint64_t i = 0; i < 32; ++i) {
        const std::string text = words(seed + i, 3 + static_cast<int64_t>(i * i) / 10);
        Json body = {{"temperature", 0}, {"max_tokens", 1 + i % 10}, {"cache_prompt", i % 3 != 0}};
        const Json messages = Json::array({{{"role", "user"}, {"content", text}}});
        std::string path = "/v1/completions";
        if (i % 4 == 0) {
            body["prompt"] = text;
            body["logprobs"] = 2;
        } else if (i % 4 == 1) {
            body["prompt"] = Json::array();
            for (uint64_t id = 0; id < 5 + 6 * i; ++id) body["prompt"].push_back(100 + (id * id + i) % 400);
            body["n"] = 1 + i % 3;
        } else if (i % 4 == 2) {
            path = "/v1/chat/completions";
            body["messages"] = messages;
            body["thinking"] = {{"type", i % 8 == 2 ? "enabled" : "disabled"}};
        } else {
            path = "/v1/messages";
            body["messages"] = messages;
        }
        all.push_back({path, std::move(body), ""});
    }
    return all;
}

std::string string_or_nothing(const Json& object, const char* key) {
    const auto found = object.find(key);
    return found != object.end() && found->is_string() ? found->get<std::string>() : "";
}

/// The texts of a choice, of its message or delta, or of a content block.
std::string texts_of(const Json& part) {
    std::string out;
    for (const char* key : {"text", "reasoning_content", "content", "thinking"}) out += string_or_nothing(part, key);
    return out;
}

std::string whole_answer(const Json& reply) {
    std::string out;
    for (const Json& choice : reply.value("choices", Json::array()))
        out += texts_of(choice.contains("message") ? choice["message"] : choice) + "|";
    for (const Json& block : reply.value("content", Json::array())) out += texts_of(block);
    return out;
}

std::string streamed_answer(const std::string& stream) {
    std::map<int64_t, std::string> choices;
    std::string blocks;
    for (size_t at = 0, end; (end = stream.find("\n\n", at)) != std::string::npos; at = end + 2) {
        const size_t data = stream.find("data: {", at);
        if (data == std::string::npos || data > end) continue;
        const Json event = parse_json(std::string_view(stream).substr(data + 6, end - data - 6), "event");
        if (event.contains("error")) fail("the stream says ", dump_json(event));
        for (const Json& choice : event.value("choices", Json::array()))
            choices[choice.at("index").get<int64_t>()] += texts_of(choice.contains("delta") ? choice["delta"] : choice);
        if (event.value("type", "") == "content_block_delta") blocks += texts_of(event.at("delta"));
    }
    std::string out;
    for (const auto& [index, text] : choices) out += text + "|";
    return out + blocks;
}

// ---- connections
// -----------------------------------------------------------------------------------------------------

/// A plain socket that can end a connection in the middle of anything.
class Connection {
public:
    explicit Connection(int port) : fd_(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)) {
        sockaddr_in address{};
        address.sin_family = AF_INET;
        address.sin_port = htons(static_cast<uint16_t>(port));
        address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
        if (::connect(fd_, reinterpret_cast<sockaddr*>(&address), sizeof address) != 0) fail("cannot connect");
        const timeval limit{120, 0};
        ::setsockopt(fd_, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
    }
    ~Connection() { ::close(fd_); }
    Connection(const Connection&) = delete;
    Connection& operator=(const Connection&) = delete;

    void send(std::string_view bytes) const { ::send(fd_, bytes.data(), bytes.size(), MSG_NOSIGNAL); }
    /// Reads until `mark` came or the other side ended.
    std::string read_until(const std::string& mark) const {
        std::string seen;
        std::array<char, 4096> buffer;
        while (seen.find(mark) == std::string::npos) {
            const ssize_t got = ::recv(fd_, buffer.data(), buffer.size(), 0);
            if (got <= 0) break;
            seen.append(buffer.data(), static_cast<size_t>(got));
        }
        return seen;
    }
    /// The end will be a reset, not a farewell.
    void end_abruptly() const {
        const linger now{1, 0};
        ::setsockopt(fd_, SOL_SOCKET, SO_LINGER, &now, sizeof now);
    }

private:
    int fd_;
};

std::string http_post(const std::string& path, const std::string& body) {
    return "POST " + path +
           " HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: " + std::to_string(body.size()) +
           "\r\n\r\n" + body;
}

struct Reply {
    int status;
    std::string body;
};

/// Reads the reply piece by piece, with a pause after each.
Reply post(httplib::Client& client, const std::string& path, const Json& body, milliseconds pause = milliseconds(0)) {
    Reply reply{};
    httplib::Request request;
    request.method = "POST";
    request.path = path;
    request.set_header("Content-Type", "application/json");
    request.body = dump_json(body);
    request.content_receiver = [&](const char* data, size_t size, uint64_t, uint64_t) {
        reply.body.append(data, size);
        std::this_thread::sleep_for(pause);
        return true;
    };
    const httplib::Result result = client.send(request);
    if (!result) fail(path, ": ", httplib::to_string(result.error()));
    reply.status = result->status;
    return reply;
}

// ---- the visitors
// ----------------------------------------------------------------------------------------------------

class Soak {
public:
    Soak(const Options& options, const ServeProcess& server)
        : options_(options), server_(server), questions_(questions(options.seed)) {}

    /// Asks every question alone.
    void learn() {
        httplib::Client client("127.0.0.1", server_.port());
        client.set_read_timeout(300);
        for (Question& question : questions_) {
            const Reply reply = post(client, question.path, question.body);
            if (reply.status != 200) fail(question.path, " answers ", reply.status, ": ", reply.body);
            question.answer = whole_answer(parse_json(reply.body, "reply"));
        }
    }

    /// All requests; memory is noted on the way.
    void run() {
        std::vector<std::thread> threads;
        for (int64_t i = 0; i < options_.clients; ++i)
            threads.emplace_back([this] {
                for (int64_t number; (number = next_++) < options_.requests;) visit(static_cast<uint64_t>(number));
            });
        int64_t noted = 0;
        while (noted < 10) {
            std::this_thread::sleep_for(milliseconds(20));
            const int64_t begun = std::min(next_.load(), options_.requests);
            if (begun * 10 < (noted + 1) * options_.requests) continue;
            ++noted;
            resident_.push_back(server_.resident_bytes());
            std::printf("  %lld requests: %.1f MiB\n", static_cast<long long>(begun), mib(resident_.back()));
            std::fflush(stdout);
        }
        for (std::thread& thread : threads) thread.join();
    }

    int64_t growth_mib() const { return (resident_.back() - resident_[resident_.size() / 2 - 1]) >> 20; }
    const std::map<std::string, int64_t>& counts() const { return counts_; }
    const std::vector<std::string>& faults() const { return faults_; }

    static double mib(int64_t bytes) { return static_cast<double>(bytes) / (1 << 20); }

private:
    /// A number from 0 to `below` - 1 that belongs to this visit.
    uint64_t draw(uint64_t number, uint64_t what, uint64_t below) const {
        return static_cast<uint64_t>(random_uniform(options_.seed, number * 8 + what) * static_cast<double>(below));
    }

    void visit(uint64_t number) {
        std::string kind;
        try {
            const uint64_t choice = draw(number, 0, 100);
            if (choice < 45)
                kind = ask(number);
            else if (choice < 58)
                kind = cancel(number);
            else if (choice < 68)
                kind = leave(number);
            else if (choice < 78)
                kind = send_nonsense(number);
            else if (choice < 88)
                kind = send_too_much(number);
            else
                kind = break_off(number);
        } catch (const std::exception& error) {
            kind = "fault";
            const std::lock_guard lock(mutex_);
            faults_.push_back("request " + std::to_string(number) + ": " + error.what());
        }
        const std::lock_guard lock(mutex_);
        ++counts_[kind];
    }

    std::string ask(uint64_t number) {
        const Question& question = questions_[draw(number, 1, questions_.size())];
        Json body = question.body;
        const bool streams = draw(number, 2, 2) == 0, is_slow = draw(number, 3, 5) == 0;
        if (streams) body["stream"] = true;
        httplib::Client client("127.0.0.1", server_.port());
        client.set_read_timeout(300);
        if (is_slow) {
            client.set_socket_options([](socket_t fd) {
                const int bytes = 2048;
                ::setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &bytes, sizeof bytes);
            });
        }
        const Reply reply = post(client, question.path, body, milliseconds(is_slow ? draw(number, 4, 40) : 0));
        if (reply.status == 429) return "asked in vain (429)";
        if (reply.status != 200) fail(question.path, " answers ", reply.status, ": ", printable(reply.body, 300));
        const std::string answer =
            streams ? streamed_answer(reply.body) : whole_answer(parse_json(reply.body, "reply"));
        if (answer != question.answer)
            fail(dump_json(body), " answers \"", printable(answer), "\", alone \"", printable(question.answer), "\"");
        return is_slow ? "answered, slow reader" : "answered";
    }

    static Json long_request(uint64_t number) {
        return {{"prompt", words(number, 20)}, {"max_tokens", 300}, {"ignore_eos", true}};
    }

    std::string cancel(uint64_t number) {
        Json body = long_request(number);
        body["stream"] = true;
        const Connection connection(server_.port());
        connection.send(http_post("/v1/completions", dump_json(body)));
        const std::string seen = connection.read_until("data: ");
        if (draw(number, 1, 2) == 0) connection.end_abruptly();
        if (seen.starts_with("HTTP/1.1 429")) return "asked in vain (429)";
        if (!seen.starts_with("HTTP/1.1 200")) fail("a stream begins with \"", printable(seen), "\"");
        return "cancelled stream";
    }

    std::string leave(uint64_t number) {
        const Connection connection(server_.port());
        connection.send(http_post("/v1/completions", dump_json(long_request(number))));
        std::this_thread::sleep_for(milliseconds(draw(number, 1, 60)));
        if (draw(number, 2, 2) == 0) connection.end_abruptly();
        return "left before the answer";
    }

    std::string send_nonsense(uint64_t number) {
        static const std::array<std::string, 8> kBodies = {
            "",
            "{\"prompt\": \"a\"",
            "[1, 2]",
            "{\"prompt\": 5}",
            "{\"prompt\": \"a\", \"temperature\": \"hot\"}",
            "{\"prompt\": \"\xff\xfe\"}",
            "{\"prompt\": " + std::string(300, '[') + std::string(300, ']') + "}",
            "{\"prompt\": [0, 99999999]}"};
        const Connection connection(server_.port());
        connection.send(http_post("/v1/completions", kBodies[draw(number, 1, kBodies.size())]));
        expect(connection, "400");
        return "refused: nonsense";
    }

    std::string send_too_much(uint64_t number) {
        const Connection connection(server_.port());
        if (draw(number, 1, 2) == 0) {
            const Json body = {{"prompt", words(number, 2 * kContext)}, {"max_tokens", 4}};
            connection.send(http_post("/v1/completions", dump_json(body)));
            expect(connection, "400");
        } else {
            connection.send(http_post("/v1/completions", std::string(kMaxBody + 1 + draw(number, 2, 50000), ' ')));
            expect(connection, "413");
        }
        return "refused: too long";
    }

    std::string break_off(uint64_t number) {
        const std::string whole = http_post("/v1/chat/completions", dump_json(long_request(number)));
        const Connection connection(server_.port());
        connection.send(std::string_view(whole).substr(0, draw(number, 1, whole.size())));
        if (draw(number, 2, 2) == 0) connection.end_abruptly();
        return "broken off request";
    }

    static void expect(const Connection& connection, const std::string& status) {
        const std::string seen = connection.read_until("\r\n\r\n");
        if (!seen.starts_with("HTTP/1.1 " + status)) fail("expected ", status, ", got \"", printable(seen), "\"");
    }

    const Options& options_;
    const ServeProcess& server_;
    std::vector<Question> questions_;
    std::atomic<int64_t> next_ = 0;
    std::vector<int64_t> resident_;  // after every tenth of the requests

    std::mutex mutex_;  // guards what follows
    std::map<std::string, int64_t> counts_;
    std::vector<std::string> faults_;
};

// ---- before and after
// ------------------------------------------------------------------------------------------------

Json stats(const ServeProcess& server) {
    httplib::Client client("127.0.0.1", server.port());
    const httplib::Result result = client.Get("/v1/stats");
    if (!result || result->status != 200) fail("/v1/stats does not answer");
    return parse_json(result->body, "/v1/stats");
}

/// Waits until nothing runs and the files are as many as given; what is left over after 30 s.
std::string leftover(const ServeProcess& server, int64_t files) {
    std::string left;
    for (int i = 0; i < 300; ++i) {
        const Json now = stats(server);
        const int64_t open = server.open_files();
        left.clear();
        if (now["requests"]["running"] != 0 || now["requests"]["waiting"] != 0) left = dump_json(now["requests"]);
        if (now["kv_cache_usage"] != 0.0) left += " kv_cache_usage " + dump_json(now["kv_cache_usage"]);
        if (open > files) left += " " + std::to_string(open) + " open files, before " + std::to_string(files);
        if (left.empty()) break;
        std::this_thread::sleep_for(milliseconds(100));
    }
    return left;
}

int64_t files_when_idle(const ServeProcess& server) {
    int64_t least = server.open_files();
    for (int i = 0; i < 20; ++i) {
        std::this_thread::sleep_for(milliseconds(50));
        least = std::min(least, server.open_files());
    }
    return least;
}

/// 0 when everything holds.
int soak(const Options& options) {
    std::vector<std::string> arguments = {"--max-model-len",
                                          std::to_string(kContext),
                                          "--max-body-size",
                                          std::to_string(kMaxBody),
                                          "--cache-ram",
                                          "16MiB",
                                          "--max-num-batched-tokens",
                                          "128"};
    arguments.insert(arguments.end(), options.arguments.begin(), options.arguments.end());
    ServeProcess server(options.binary, arguments);
    Soak soak(options, server);
    soak.learn();
    const int64_t files = files_when_idle(server);
    std::printf("%lld requests by %lld clients, %lld files open before\n", static_cast<long long>(options.requests),
                static_cast<long long>(options.clients), static_cast<long long>(files));
    const auto start = std::chrono::steady_clock::now();
    soak.run();
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
    std::printf("%.0f s\n", seconds.count());
    for (const auto& [kind, count] : soak.counts())
        std::printf("  %-24s %lld\n", kind.c_str(), static_cast<long long>(count));

    std::vector<std::string> faults = soak.faults();
    if (!server.is_alive()) {
        faults.push_back("the server has ended: " + server.log());
    } else {
        const std::string left = leftover(server, files);
        if (!left.empty()) faults.push_back("left over: " + left);
        if (soak.growth_mib() > options.growth_mib)
            faults.push_back("memory grew by " + std::to_string(soak.growth_mib()) + " MiB in the second half");
        std::printf("afterwards: %.1f MiB, %lld files open, %s\n", Soak::mib(server.resident_bytes()),
                    static_cast<long long>(server.open_files()), dump_json(stats(server)["finished"]).c_str());
        if (const int status = server.stop(); status != 0)
            faults.push_back("the server ended with status " + std::to_string(status));
    }
    for (size_t i = 0; i < std::min<size_t>(faults.size(), 10); ++i) std::printf("FAULT %s\n", faults[i].c_str());
    std::printf("%zu faults\n", faults.size());
    return faults.empty() ? 0 : 1;
}

}  // namespace
}  // namespace thermocline::app

int main(int argc, char** argv) {
    using namespace thermocline;
    CLI::App cli("Soaks `thermocline serve`. Exit status 1 when an answer was wrong or something leaked.");
    app::Options options;
    cli.add_option("--binary", options.binary, "thermocline")->required();
    cli.add_option("--requests", options.requests)->check(CLI::Range(10, 10000000))->capture_default_str();
    cli.add_option("--clients", options.clients, "at once")->check(CLI::Range(1, 1000))->capture_default_str();
    cli.add_option("--growth", options.growth_mib, "MiB that memory may grow by in the second half")
        ->capture_default_str();
    cli.add_option("--seed", options.seed)->capture_default_str();
    cli.add_option("arguments", options.arguments, "more arguments for `serve`");
    try {
        cli.parse(argc, argv);
        return app::soak(options);
    } catch (const CLI::ParseError& error) {
        return cli.exit(error) == 0 ? 0 : 2;
    } catch (const std::exception& error) {
        std::fprintf(stderr, "serve_soak: %s\n", error.what());
        return 1;
    }
}
