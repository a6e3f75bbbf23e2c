// Puts a running server under load and says what its clients see: time to the first token (TTFT), time per output token
// (TPOT), the gaps between events (ITL) and tokens/s of all together. Closed loop (--clients): so many clients, each
// asks again as soon as it has its answer. Open loop (--rate): requests come as a Poisson process, however long the
// earlier ones take; times count from when a request came.
//
//   serve_load --clients 1,2,4,8,16       serve_load --rate 2,4 --requests 100 --json
#include "bench/timed_request.h"
#include "src/base/error.h"
#include "src/base/random.h"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdio>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

namespace thermocline::bench {
namespace {

struct Options {
    std::string url = "http://127.0.0.1:8000", route = "completions", model, api_key;
    std::vector<int64_t> clients;
    std::vector<double> rates;
    int64_t requests = 32, prompt_words = 64, shared_words = 0, max_tokens = 64;
    uint64_t seed = 1;
    bool json = false;
};

/// All that is measured under one load.
struct Level {
    int64_t clients = 0;  // closed loop
    double rate = 0;      // open loop: requests per second
    double seconds = 0;
    std::vector<TimedRequest> requests;
};

/// Words that mean nothing and differ from request to request, so that no prefix cache has them.
std::string prompt_text(const Options& options, uint64_t number) {
    constexpr std::string_view kVowels = "aeiou", kConsonants = "bdfghklmnprstvw";
    std::string text;
    const auto word = [&](uint64_t stream, int64_t position) {
        uint64_t draw = static_cast<uint64_t>(random_uniform(stream, static_cast<uint64_t>(position)) * 0x1.0p+32);
        for (int i = 0; i < 2; ++i, draw /= 75) {
            text += kConsonants[draw % 15];
            text += kVowels[draw / 15 % 5];
        }
        text += ' ';
    };
    for (int64_t i = 0; i < options.shared_words; ++i) word(options.seed << 32, i);
    for (int64_t i = options.shared_words; i < options.prompt_words; ++i) word((options.seed << 32) + number + 1, i);
    return text;
}

Json request_body(const Options& options, uint64_t number) {
    Json body = {
        {"max_tokens", options.max_tokens}, {"temperature", 0}, {"ignore_eos", true}, {"sse_ping_interval", -1}};
    if (!options.model.empty()) body["model"] = options.model;
    if (options.route == "chat")
        body["messages"] = Json::array({{{"role", "user"}, {"content", prompt_text(options, number)}}});
    else
        body["prompt"] = prompt_text(options, number);
    return body;
}

class Load {
public:
    explicit Load(const Options& options) : options_(options) {
        if (!options.api_key.empty()) headers_.emplace("Authorization", "Bearer " + options.api_key);
    }

    Level closed_loop(int64_t clients) {
        Level level;
        level.clients = clients;
        level.requests.resize(static_cast<size_t>(options_.requests));
        std::atomic<size_t> next = 0;
        const auto start = Clock::now();
        std::vector<std::thread> threads;
        for (int64_t i = 0; i < clients; ++i) {
            threads.emplace_back([&] {
                httplib::Client client = connect();
                for (size_t at; (at = next++) < level.requests.size();)
                    level.requests[at] = run(client, first_number_ + at, Clock::now());
            });
        }
        finish(level, threads, start);
        return level;
    }

    Level open_loop(double rate) {
        Level level;
        level.rate = rate;
        level.requests.resize(static_cast<size_t>(options_.requests));
        const auto start = Clock::now();
        auto arrival = start;
        std::vector<std::thread> threads;
        for (size_t at = 0; at < level.requests.size(); ++at) {
            std::this_thread::sleep_until(arrival);
            threads.emplace_back([this, at, arrival, &level] {
                httplib::Client client = connect();
                level.requests[at] = run(client, first_number_ + at, arrival);
            });
            const double gap = -std::log(1.0 - random_uniform(options_.seed, first_number_ + at)) / rate;
            arrival += std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(gap));
        }
        finish(level, threads, start);
        return level;
    }

private:
    httplib::Client connect() const {
        httplib::Client client(options_.url);
        client.set_keep_alive(true);
        client.set_tcp_nodelay(true);
        client.set_read_timeout(600);
        return client;
    }
    TimedRequest run(httplib::Client& client, uint64_t number, Clock::time_point start) const {
        const std::string path = options_.route == "chat" ? "/v1/chat/completions" : "/v1/completions";
        return run_timed(client, path, headers_, request_body(options_, number), start);
    }
    void finish(Level& level, std::vector<std::thread>& threads, Clock::time_point start) {
        for (std::thread& thread : threads) thread.join();
        level.seconds = std::chrono::duration<double>(Clock::now() - start).count();
        first_number_ += level.requests.size();
    }

    const Options options_;
    httplib::Headers headers_;
    uint64_t first_number_ = 0;  // no two requests of a run have the same prompt
};

/// Of a list in any order, the value that a part `share` of it does not exceed (nearest rank).
double percentile(std::vector<double> values, double share) {
    if (values.empty()) return 0;
    const auto rank = static_cast<size_t>(std::ceil(share * static_cast<double>(values.size())));
    const auto at = values.begin() + static_cast<std::ptrdiff_t>(std::max<size_t>(rank, 1) - 1);
    std::nth_element(values.begin(), at, values.end());
    return *at;
}

Json percentiles(const std::vector<double>& seconds) {
    Json out;
    for (const auto& [name, share] : {std::pair("p50", 0.5), std::pair("p90", 0.9), std::pair("p99", 0.99)})
        out[name] = percentile(seconds, share) * 1e3;
    return out;
}

Json summary(const Level& level) {
    std::vector<double> first, per_token, gaps;
    int64_t failed = 0, prompt_tokens = 0, output_tokens = 0;
    std::string error;
    for (const TimedRequest& request : level.requests) {
        if (!request.error.empty()) {
            ++failed;
            error = request.error;
            continue;
        }
        first.push_back(request.first_seconds);
        if (request.output_tokens > 1) per_token.push_back(request.per_token_seconds());
        gaps.insert(gaps.end(), request.gaps_seconds.begin(), request.gaps_seconds.end());
        prompt_tokens += request.prompt_tokens;
        output_tokens += request.output_tokens;
    }
    Json out;
    if (level.clients > 0)
        out["clients"] = level.clients;
    else
        out["rate"] = level.rate;
    out["requests"] = level.requests.size();
    out["failed"] = failed;
    out["seconds"] = level.seconds;
    out["prompt_tokens"] = prompt_tokens;
    out["output_tokens"] = output_tokens;
    out["output_tokens_per_s"] = static_cast<double>(output_tokens) / level.seconds;
    out["ttft_ms"] = percentiles(first);
    out["tpot_ms"] = percentiles(per_token);
    out["itl_ms"] = percentiles(gaps);
    if (failed > 0) out["last_error"] = error;
    return out;
}

void print_row(const Json& row) {
    const auto triple = [&](const char* key) {
        char text[64];
        const Json& of = row[key];
        std::snprintf(text, sizeof text, "%7.1f %7.1f %7.1f", of["p50"].get<double>(), of["p90"].get<double>(),
                      of["p99"].get<double>());
        return std::string(text);
    };
    const bool is_closed = row.contains("clients");
    std::printf("%3s %6.4g  %8lld %6lld  %9.1f  %s  %s  %s\n", is_closed ? "N" : "1/s",
                row[is_closed ? "clients" : "rate"].get<double>(), row["requests"].get<long long>(),
                row["failed"].get<long long>(), row["output_tokens_per_s"].get<double>(), triple("ttft_ms").c_str(),
                triple("tpot_ms").c_str(), triple("itl_ms").c_str());
    if (row.contains("last_error")) std::printf("    %s\n", row["last_error"].get<std::string>().c_str());
    std::fflush(stdout);
}

/// 0 when no request failed.
int measure(const Options& options) {
    Load load(options);
    Json rows = Json::array();
    if (!options.json)
        std::printf("    load  requests failed   output/s  %s  %s  %s\n", "TTFT ms p50     p90     p99",
                    "TPOT ms p50 p90     p99", "ITL ms p50  p90     p99");
    const auto take = [&](const Level& level) {
        rows.push_back(summary(level));
        if (!options.json) print_row(rows.back());
    };
    for (const int64_t clients : options.clients) take(load.closed_loop(clients));
    for (const double rate : options.rates) take(load.open_loop(rate));
    if (options.json)
        std::printf("%s\n", dump_json({{"url", options.url},
                                       {"route", options.route},
                                       {"prompt_words", options.prompt_words},
                                       {"shared_words", options.shared_words},
                                       {"max_tokens", options.max_tokens},
                                       {"seed", options.seed},
                                       {"loads", rows}})
                                .c_str());
    return std::all_of(rows.begin(), rows.end(), [](const Json& row) { return row["failed"] == 0; }) ? 0 : 1;
}

void declare(CLI::App& app, Options& options) {
    app.add_option("--url", options.url, "of the server")->capture_default_str();
    app.add_option("--route", options.route, "completions or chat")
        ->check(CLI::IsMember({"completions", "chat"}))
        ->capture_default_str();
    app.add_option("--model", options.model, "name of the model; none: whatever is served");
    app.add_option("--api-key", options.api_key, "sent as bearer token");
    app.add_option("--clients", options.clients, "closed loop: clients at once, one row each")
        ->delimiter(',')
        ->check(CLI::Range(1, 1024));
    app.add_option("--rate", options.rates, "open loop: requests per second, one row each")
        ->delimiter(',')
        ->check(CLI::Range(1e-3, 1e4));
    app.add_option("--requests", options.requests, "per row")->check(CLI::Range(1, 10000))->capture_default_str();
    app.add_option("--prompt-words", options.prompt_words, "words of a prompt, all made up")
        ->check(CLI::Range(1, 1000000))
        ->capture_default_str();
    app.add_option("--shared-words", options.shared_words, "words that all prompts begin with")
        ->check(CLI::NonNegativeNumber)
        ->capture_default_str();
    app.add_option("--max-tokens", options.max_tokens, "that every request generates")
        ->check(CLI::PositiveNumber)
        ->capture_default_str();
    app.add_option("--seed", options.seed, "of prompts and arrivals")->capture_default_str();
    app.add_flag("--json", options.json, "one JSON document instead of a table");
}

}  // namespace
}  // namespace thermocline::bench

int main(int argc, char** argv) {
    using namespace thermocline::bench;
    CLI::App app("Load on a server with OpenAI's API: what its clients see. Exit status 1 when a request failed.");
    Options options;
    declare(app, options);
    try {
        app.parse(argc, argv);
        if (options.clients.empty() && options.rates.empty()) options.clients = {1, 2, 4, 8, 16};
        return measure(options);
    } catch (const CLI::ParseError& error) {
        return app.exit(error) == 0 ? 0 : 2;
    }
}
