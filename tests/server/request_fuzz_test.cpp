// Broken requests by thousands against the real server on loopback: bodies of every POST route with wrong types, deep
// nesting, huge numbers, ill-formed UTF-8, cut, doubled and unknown fields, and headers that no client would write.
// Every answer is 2xx or 4xx (501 where the contract refuses a feature by name), every refusal has its JSON body, and
// the server goes on serving.
//
//   request_fuzz_test --requests 100000 --seed 1
#include "src/base/log.h"
#include "tests/server/server_fixture.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <mutex>
#include <random>

namespace thermocline::server {
namespace {

int64_t requests = 20000;
uint64_t seed = 1;

struct Seed {
    const char* path;
    const char* body;
};

/// Valid bodies: between them they hold every field that a route reads.
constexpr Seed kSeeds[] = {
    {"/v1/chat/completions", R"({"messages":[{"role":"user","content":"hello"}],"temperature":0,"max_tokens":4})"},
    {"/chat/completions",
     R"({"model":"tiny","messages":[{"role":"system","content":"be"},{"role":"user","content":[{"type":"text",
        "text":"hi"}]},{"role":"assistant","content":"","reasoning_content":"r","tool_calls":[{"id":"c","type":
        "function","function":{"name":"f","arguments":"{\"a\": 1}"}}]},{"role":"tool","tool_call_id":"c","content":
        "7"}],"tools":[{"type":"function","function":{"name":"f","description":"d","strict":true,"parameters":{"type":
        "object","properties":{"a":{"type":"integer","minimum":0},"b":{"type":"string","pattern":"^a+$"}},"required":
        ["a"],"additionalProperties":false}}}],"tool_choice":"required","parallel_tool_calls":false,"max_tokens":20,
        "temperature":0,"thinking":{"type":"disabled"}})"},
    {"/v1/chat/completions",
     R"({"messages":[{"role":"user","content":"q"}],"max_completion_tokens":6,"top_p":0.5,"top_k":3,"min_p":0.1,"n":2,
        "presence_penalty":1,"frequency_penalty":1,"repetition_penalty":1.1,"logit_bias":{"40":1},"seed":5,"stop":
        ["d","xyz"],"stop_token_ids":[120],"ignore_eos":true,"min_tokens":1,"stream":true,"stream_options":
        {"include_usage":true,"continuous_usage_stats":true},"logprobs":true,"top_logprobs":3,"return_token_ids":true,
        "return_progress":true,"sse_ping_interval":5,"cache_salt":"s","priority":2,"reasoning_effort":"high",
        "include_stop_str_in_output":true,"chat_template_kwargs":{"thinking":true},"reasoning_format":"none"})"},
    {"/beta/v1/chat/completions",
     R"({"messages":[{"role":"user","content":"q"},{"role":"assistant","content":"ab","prefix":true}],"max_tokens":3,
        "response_format":{"type":"json_schema","json_schema":{"name":"n","schema":{"type":"object","properties":{"a":
        {"enum":["x","y"]},"b":{"type":"array","items":{"type":"number"},"maxItems":2},"c":{"$ref":"#/$defs/d"}},
        "required":["a"],"$defs":{"d":{"anyOf":[{"type":"null"},{"type":"string","format":"date"}]}}}}}})"},
    {"/v1/completions", R"({"prompt":"ab","max_tokens":5,"temperature":0,"echo":true,"logprobs":2,"n":2,"best_of":2})"},
    {"/completions",
     R"({"prompt":[[40,41,42],[43]],"max_tokens":3,"add_special_tokens":true,"truncate_prompt_tokens":2,
        "truncation_side":"left","return_tokens_as_token_ids":true,"skip_special_tokens":false,"cache_prompt":false,
        "guided_regex":"[a-c]{1,3}","stream":true})"},
    {"/v1/completions", R"({"prompt":["a","b"],"max_tokens":3,"structured_outputs":{"choice":["ab","cd"]}})"},
    {"/v1/completions", R"({"prompt":"a","max_tokens":5,"grammar":"root ::= \"a\" [b-d]* | x\nx ::= \"q\" x?"})"},
    {"/v1/completions", R"({"prompt":"a","max_tokens":5,"json_schema":{"type":"string","maxLength":3},"seed":-3})"},
    {"/v1/responses",
     R"({"model":"tiny","instructions":"i","input":[{"role":"user","content":[{"type":"input_text","text":"hi"}]},
        {"type":"reasoning","content":[{"type":"reasoning_text","text":"t"}],"summary":[]},{"type":"function_call",
        "call_id":"c","name":"f","namespace":"n","arguments":"{}"},{"type":"function_call_output","call_id":"c",
        "output":"ok"}],"tools":[{"type":"function","name":"g","parameters":{"type":"object"},"strict":false},{"type":
        "namespace","name":"n","tools":[{"type":"function","name":"f"}]},{"type":"web_search"}],"tool_choice":"auto",
        "parallel_tool_calls":true,"max_output_tokens":4,"reasoning":{"effort":"low","summary":"auto"},"store":false,
        "include":[],"metadata":{},"stream":true})"},
    {"/responses",
     R"({"input":"hi","max_output_tokens":8,"temperature":0,"top_p":1,"text":{"format":{"type":"json_schema","name":
        "n","schema":{"type":"object","properties":{"a":{"type":"boolean"}},"required":["a"]}}}})"},
    {"/v1/messages",
     R"({"model":"tiny","max_tokens":5,"system":[{"type":"text","text":"s","cache_control":{"type":"ephemeral"}}],
        "messages":[{"role":"user","content":[{"type":"text","text":"hi"}]},{"role":"assistant","content":[{"type":
        "thinking","thinking":"t","signature":"s"},{"type":"tool_use","id":"c","name":"f","input":{"a":1}}]},{"role":
        "user","content":[{"type":"tool_result","tool_use_id":"c","content":"ok","is_error":false}]}],"tools":
        [{"name":"f","description":"d","input_schema":{"type":"object"}}],"tool_choice":{"type":"auto",
        "disable_parallel_tool_use":true},"stop_sequences":["e"],"top_k":5,"thinking":{"type":"enabled",
        "budget_tokens":1024},"metadata":{"user_id":"u"},"stream":true})"},
    {"/messages",
     R"({"max_tokens":9,"messages":[{"role":"user","content":"hi"}],"output_config":{"effort":"low","format":{"type":
        "json_schema","schema":{"type":"object","properties":{"t":{"type":"string"}}}}}})"},
    {"/v1/messages/count_tokens", R"({"messages":[{"role":"user","content":"hi"}],"system":"s"})"},
    {"/v1/chat/completions/input_tokens", R"({"messages":[{"role":"user","content":"hi"}]})"},
    {"/v1/responses/input_tokens", R"({"input":"hi"})"},
    {"/tokenize", R"({"prompt":"abc","add_special_tokens":true,"return_token_strs":true})"},
    {"/tokenize", R"({"content":"abc","add_special":false,"parse_special":true,"with_pieces":true})"},
    {"/tokenize", R"({"messages":[{"role":"user","content":"hi"}],"add_generation_prompt":true})"},
    {"/detokenize", R"({"tokens":[40,41,262]})"},
    {"/apply-template", R"({"messages":[{"role":"user","content":"hi"}],"continue_final_message":false})"},
};

/// Fields of the contract that the bodies above do not have, and names that nobody knows.
constexpr const char* kFields[] = {"guided_json",
                                   "guided_choice",
                                   "guided_grammar",
                                   "prompt_logprobs",
                                   "suffix",
                                   "echo",
                                   "thinking_token_budget",
                                   "functions",
                                   "modalities",
                                   "min_tokens",
                                   "stop",
                                   "logit_bias",
                                   "tools",
                                   "tool_choice",
                                   "response_format",
                                   "seed",
                                   "structured_outputs",
                                   "model",
                                   "prefix",
                                   "task",
                                   "name",
                                   "reasoning",
                                   "previous_response_id",
                                   "background",
                                   "text",
                                   "include_reasoning",
                                   "output_config",
                                   "user",
                                   "__proto__",
                                   "",
                                   "a.b[0]",
                                   "\xC3\xA9"};

constexpr const char* kValues[] = {"null",
                                   "true",
                                   "false",
                                   "0",
                                   "1",
                                   "-1",
                                   "2",
                                   "7",
                                   "0.5",
                                   "1e308",
                                   "-1e308",
                                   "1e-320",
                                   "4294967296",
                                   "9007199254740993",
                                   "9223372036854775807",
                                   "-9223372036854775808",
                                   "18446744073709551615",
                                   "1e400",
                                   "NaN",
                                   "\"\"",
                                   "\"x\"",
                                   "\"auto\"",
                                   "\"\\u0000\"",
                                   "\"\\ud800\"",
                                   "\"\xF0\x9F\x98\x80\"",
                                   "\"｜DSML｜\"",
                                   "\"</think>\"",
                                   "[]",
                                   "{}",
                                   "[[]]",
                                   "[null]",
                                   "[\"a\",\"b\"]",
                                   "[1,2,3]",
                                   "{\"a\":1}",
                                   "{\"type\":\"object\"}",
                                   R"({"type":"json_object"})",
                                   R"({"type":"text"})",
                                   R"({"json":{"type":"array","items":{"$ref":"#"}}})",
                                   R"({"regex":"(a|b)*c{2,9}"})",
                                   R"("(a*)*(b+)+$")",
                                   R"("[^\\x00-\\x7f]{0,400}")",
                                   R"("root ::= root \"a\" | \"b\"")",
                                   R"({"type":"function","function":{"name":"f"}})",
                                   R"([{"type":"function","function":{"name":"f","strict":true}}])",
                                   R"({"allOf":[{"type":"string"},{"minLength":99999}]})",
                                   R"({"type":["integer","null"],"multipleOf":3})",
                                   R"({"$ref":"#/properties/a","properties":{"a":{"$ref":"#"}}})"};

class Fuzzer {
public:
    explicit Fuzzer(uint64_t key) : random_(key) {}

    size_t below(size_t end) { return static_cast<size_t>(random_() % end); }
    bool chance(int percent) { return below(100) < static_cast<size_t>(percent); }
    template <typename T, size_t N>
    const T& one_of(const T (&list)[N]) {
        return list[below(N)];
    }

    std::string body(const Seed& valid) {
        if (chance(4)) return valid.body;
        std::string text = fields_changed(valid.body);
        if (chance(25)) text = bytes_changed(std::move(text));
        return text;
    }

private:
    std::string value() {
        if (chance(4)) return nested();
        if (chance(2)) return "\"" + std::string(below(60000), 'a') + "\"";
        if (chance(3)) return "\"" + random_bytes(8) + "\"";
        return one_of(kValues);
    }
    std::string nested() {
        static const size_t kDepths[] = {10, 60, 63, 64, 65, 100, 201, 5000};
        const size_t depth = one_of(kDepths);
        std::string open, close;
        const bool objects = chance(50);
        for (size_t i = 0; i < depth; ++i) {
            open += objects ? "{\"a\":" : "[";
            close += objects ? "}" : "]";
        }
        return open + "1" + close;
    }
    std::string random_bytes(size_t most) {
        std::string bytes(below(most) + 1, 0);
        for (char& byte : bytes) byte = static_cast<char>(below(256));
        return bytes;
    }

    /// Replaces, adds, doubles and takes out members anywhere in the tree; as text, so that what JSON libraries would
    /// not write gets in.
    std::string fields_changed(const std::string& text) {
        const Json json = Json::parse(text);
        std::vector<std::string> keys;
        for (const auto& [key, unused] : json.items()) keys.push_back(key);
        left_ = 1 + below(3);
        std::string out = write(json, 0);
        if (chance(30))
            out.insert(1, "\"" + std::string(one_of(kFields)) + "\":" + value() + (json.empty() ? "" : ","));
        if (chance(10)) out.insert(1, "\"" + keys[below(keys.size())] + "\":" + value() + ",");
        return out;
    }
    std::string write(const Json& json, int depth) {
        if (left_ > 0 && depth > 0 && chance(12)) {
            --left_;
            return value();
        }
        if (!json.is_structured()) return dump_json(json);
        std::string out;
        for (const auto& [key, member] : json.items()) {
            if (left_ > 0 && chance(3)) {
                --left_;
                continue;
            }
            if (!out.empty()) out += ",";
            if (json.is_object()) out += dump_json(Json(key)) + ":";
            out += write(member, depth + 1);
        }
        return (json.is_object() ? "{" : "[") + out + (json.is_object() ? "}" : "]");
    }
    std::string bytes_changed(std::string text) {
        const size_t at = below(text.size()), size = below(20) + 1;
        switch (below(6)) {
            case 0:
                return text.substr(0, at);
            case 1:
                text[at] = static_cast<char>(below(256));
                break;
            case 2:
                text.insert(at, random_bytes(6));
                break;
            case 3:
                text.insert(at, text.substr(below(text.size()), size));
                break;
            case 4:
                text.erase(at, size);
                break;
            default:
                text += random_bytes(30);
        }
        return text;
    }

    std::mt19937_64 random_;
    size_t left_ = 0;  // changes to make
};

struct Answer {
    int status = 0;  // 0: the connection ended without one
    std::string body;
};

/// One connection, kept while the server keeps it.
class Wire {
public:
    explicit Wire(int port) : port_(port) {}
    ~Wire() { disconnect(); }

    Answer exchange(const std::string& request) {
        const bool is_fresh = fd_ < 0;
        if (is_fresh) reconnect();
        Answer answer = try_exchange(request);
        if (answer.status != 0 || is_fresh) return answer;
        reconnect();  // the server had closed what was kept
        return try_exchange(request);
    }
    /// On a connection of its own, for an answer within that time: the request may promise more than it brings.
    Answer exchange_once(const std::string& request, int milliseconds) {
        reconnect(milliseconds);
        Answer answer = try_exchange(request);
        disconnect();
        return answer;
    }

private:
    Answer try_exchange(const std::string& request) {
        ::send(fd_, request.data(), request.size(), MSG_NOSIGNAL);
        seen_.clear();
        const bool has_body = !request.starts_with("HEAD ");
        Answer answer = read_answer(has_body);
        while (answer.status == 100) answer = read_answer(has_body);
        if (answer.status == 0) disconnect();
        return answer;
    }
    void reconnect(int milliseconds = 30000) {
        disconnect();
        sockaddr_in address{};
        address.sin_family = AF_INET;
        address.sin_port = htons(static_cast<uint16_t>(port_));
        address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
        fd_ = socket(AF_INET, SOCK_STREAM, 0);
        ASSERT_EQ(connect(fd_, reinterpret_cast<sockaddr*>(&address), sizeof address), 0) << "the server is down";
        timeval limit{milliseconds / 1000, milliseconds % 1000 * 1000};
        setsockopt(fd_, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
    }
    void disconnect() {
        if (fd_ >= 0) close(fd_);
        fd_ = -1;
    }
    bool receive() {
        char buffer[16384];
        const ssize_t got = recv(fd_, buffer, sizeof buffer, 0);
        if (got > 0) seen_.append(buffer, static_cast<size_t>(got));
        return got > 0;
    }
    /// Everything up to the end of `mark`, taken out of what was seen; "" if it does not come.
    std::string take_until(const std::string& mark) {
        size_t at;
        while ((at = seen_.find(mark)) == std::string::npos)
            if (!receive()) return "";
        std::string front = seen_.substr(0, at + mark.size());
        seen_.erase(0, front.size());
        return front;
    }
    std::string take(size_t size) {
        while (seen_.size() < size && receive()) {
        }
        std::string front = seen_.substr(0, size);
        seen_.erase(0, front.size());
        return front;
    }
    Answer read_answer(bool has_body) {
        const std::string head = take_until("\r\n\r\n");
        Answer answer;
        if (head.size() < 12 || !head.starts_with("HTTP/1.1 ")) return answer;
        answer.status = std::atoi(head.c_str() + 9);
        if (answer.status == 100 || !has_body) return answer;
        const size_t length = head.find("Content-Length: ");
        if (head.find("Transfer-Encoding: chunked") != std::string::npos) {
            while (true) {
                const size_t size = std::strtoul(take_until("\r\n").c_str(), nullptr, 16);
                answer.body += take(size);
                take(2);
                if (size == 0) break;
            }
        } else if (length != std::string::npos) {
            answer.body = take(std::strtoul(head.c_str() + length + 16, nullptr, 10));
        }
        if (head.find("Connection: close") != std::string::npos) disconnect();
        return answer;
    }

    int port_;
    int fd_ = -1;
    std::string seen_;
};

std::string framed(const std::string& line, const std::string& headers, const std::string& body) {
    return line + "\r\nHost: x\r\n" + headers + "Content-Length: " + std::to_string(body.size()) + "\r\n\r\n" + body;
}

std::string chunked(Fuzzer& fuzzer, const std::string& body) {
    std::string out;
    for (size_t at = 0; at < body.size();) {
        const size_t size = std::min(body.size() - at, fuzzer.below(300) + 1);
        char line[32];
        std::snprintf(line, sizeof line, "%zx\r\n", size);
        out += line + body.substr(at, size) + "\r\n";
        at += size;
    }
    return out + (fuzzer.chance(20) ? "zz\r\n" : fuzzer.chance(20) ? "" : "0\r\n\r\n");
}

/// A request whose body may be fine, in headers that are not. `is_whole`: it brings what it promises.
std::string oddly_framed(Fuzzer& fuzzer, const std::string& path, const std::string& body, bool& is_whole) {
    static constexpr const char* kMethods[] = {"GET", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS", "post", "BREW", ""};
    static constexpr const char* kPaths[] = {
        "/",    "//", "/v1/v1/completions", "/%00",           "/..%2f..%2fetc/passwd",
        "/%zz", "*",  "http://x/",          "/v1/models/%ff", "/\xFF",
        "/v1",  "?",  "/metrics/"};
    static constexpr const char* kLengths[] = {
        "-5", "x", "", "99999999999999999999", "18446744073709551615", "0x10", "1e3", " 12", "5, 5", "100000000"};
    static constexpr const char* kHeaders[] = {"x-request-id: \x01\x02 a\r\n",
                                               "Authorization: Bearer\r\n",
                                               "Range: bytes=0-1\r\n",
                                               ": empty\r\n",
                                               "no colon\r\n",
                                               "Expect: 100-continue\r\n",
                                               "Accept-Encoding: gzip, br\r\n",
                                               "Connection: close, Upgrade\r\n",
                                               "Content-Type: multipart/form-data; boundary=\r\n",
                                               "Content-Type: application/x-www-form-urlencoded\r\n",
                                               "Content-Type: multipart/form-data\r\n",
                                               "Content-Encoding: gzip\r\n",
                                               "Cookie: \xFF\xFE\r\n",
                                               "Range: bytes=9999999999999999999999-\r\n",
                                               "X: \r\n folded\r\n",
                                               "Upgrade: h2c\r\n",
                                               "x-api-key: \xC3\r\n",
                                               "Transfer-Encoding: identity\r\n",
                                               "Content-Length: 3\r\n",
                                               "Content-Encoding: br\r\n"};
    const std::string line = "POST " + path + " HTTP/1.1";
    const size_t kind = fuzzer.below(8);
    is_whole = kind != 2 && kind != 5 && kind != 7;
    switch (kind) {
        case 0:
            return framed(std::string(fuzzer.one_of(kMethods)) + " " + path + " HTTP/1.1", "", body);
        case 1:
            return framed("POST " + std::string(fuzzer.one_of(kPaths)) + " HTTP/1.1", "", body);
        case 2:
            return line + "\r\nContent-Length: " + fuzzer.one_of(kLengths) + "\r\n\r\n" + body;
        case 3:
            return framed(line, "X-Long: " + std::string(fuzzer.below(80000), 'h') + "\r\n", body);
        case 4: {
            std::string many;
            for (size_t i = fuzzer.below(300); i > 0; --i) many += "X-" + std::to_string(i) + ": v\r\n";
            return framed(line, many, body);
        }
        case 5:
            return line + "\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n" + chunked(fuzzer, body);
        case 6:
            return framed("POST " + path + (fuzzer.chance(50) ? "/" : "?a=%00&b[]=1") +
                              (fuzzer.chance(50) ? " HTTP/1.0" : " HTTP/9.9"),
                          "", body);
        default:
            return framed(line, std::string(fuzzer.one_of(kHeaders)) + fuzzer.one_of(kHeaders), body);
    }
}

class RequestFuzz : public ServerTest {
protected:
    RequestFuzz() {
        stop();
        script->limits = {.max_rows = 64, .max_outputs = 16, .max_tokens = 3000};
        start({});
    }
    /// Everything that must hold of an answer.
    void expect_fine(const Answer& answer, bool is_well_framed, const std::string& request) {
        const std::string shown = printable(request, 1500) + "\n-> " + printable(answer.body, 500);
        if (answer.status == 0) {
            EXPECT_FALSE(is_well_framed) << "no answer to " << shown;
        } else if (answer.status == 501) {
            EXPECT_NE(answer.body.find("not_supported_error"), std::string::npos) << shown;
        } else {
            EXPECT_TRUE(answer.status >= 200 && answer.status < 500) << answer.status << " to " << shown;
        }
        if (answer.status >= 400 && is_well_framed) {
            EXPECT_TRUE(Json::parse(answer.body, nullptr, false).contains("error")) << shown;
        }
        for (const char* fault : {R"("type":"server_error")", R"("type":"api_error")"})
            EXPECT_EQ(answer.body.find(fault), std::string::npos) << shown;
        const std::lock_guard lock(mutex_);
        ++statuses_[answer.status];
    }

    void fuzz(uint64_t key, int64_t count) {
        Fuzzer fuzzer(key);
        Wire wire(port);
        for (int64_t i = 0; i < count && !HasFailure(); ++i) {
            const Seed& valid = fuzzer.one_of(kSeeds);
            const std::string body = fuzzer.body(valid);
            const bool is_well_framed = fuzzer.chance(80);
            bool is_whole = true;
            const std::string request = is_well_framed
                                            ? framed(std::string("POST ") + valid.path + " HTTP/1.1", "", body)
                                            : oddly_framed(fuzzer, valid.path, body, is_whole);
            const Answer answer =
                is_well_framed ? wire.exchange(request) : wire.exchange_once(request, is_whole ? 2000 : 20);
            expect_fine(answer, is_well_framed, request);
        }
    }
    void expect_good_request_is_served() {
        const Json reply = post_json("/v1/completions", completion_body("a", R"(, "max_tokens": 3)"));
        EXPECT_EQ(reply["choices"][0]["text"], "bcd");
    }

    std::mutex mutex_;  // guards what follows
    std::map<int, int64_t> statuses_;
};

TEST_F(RequestFuzz, SeedsAreValid) {
    serve();
    for (const Seed& valid : kSeeds) {
        const auto result = post(valid.path, valid.body);
        ASSERT_TRUE(result) << valid.body;
        EXPECT_EQ(result->status, 200) << valid.path << " " << valid.body << "\n" << result->body;
    }
}

TEST_F(RequestFuzz, NothingBreaksTheServer) {
    script->computes_nan = false;
    serve();
    std::vector<std::thread> clients;
    constexpr int64_t kClients = 4;
    for (int64_t i = 0; i < kClients; ++i)
        clients.emplace_back([&, i] { fuzz(seed * kClients + static_cast<uint64_t>(i), requests / kClients); });
    for (std::thread& client : clients) client.join();
    expect_good_request_is_served();
    wait_until_idle();
    for (const auto& [status, count] : statuses_) std::printf("status %d: %ld\n", status, static_cast<long>(count));
    EXPECT_GT(statuses_[200], requests / 20) << "most mutations should leave something to compute";
    EXPECT_GT(statuses_[400], requests / 20);
}

}  // namespace
}  // namespace thermocline::server

int main(int argc, char** argv) {
    testing::InitGoogleTest(&argc, argv);
    for (int i = 1; i + 1 < argc; i += 2) {
        if (std::string(argv[i]) == "--requests") thermocline::server::requests = std::atoll(argv[i + 1]);
        if (std::string(argv[i]) == "--seed") thermocline::server::seed = std::strtoull(argv[i + 1], nullptr, 10);
    }
    thermocline::log::start("off");
    return RUN_ALL_TESTS();
}
