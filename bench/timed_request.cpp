#include "bench/timed_request.h"

#include "src/base/error.h"

#include <string_view>

namespace thermocline::bench {
namespace {

/// Puts a stream together from the pieces that the network delivers.
class Reader {
public:
    Reader(TimedRequest& out, Clock::time_point start) : out_(out), start_(start) {}

    void take(std::string_view bytes) {
        unread_ += bytes;
        size_t at = 0;
        for (size_t end; (end = unread_.find("\n\n", at)) != std::string::npos; at = end + 2) {
            const std::string_view event = std::string_view(unread_).substr(at, end - at);
            if (event == "data: [DONE]")
                ended_ = true;
            else if (event.starts_with("data: "))
                take_json(parse_json(event.substr(6), "event"));
        }
        unread_.erase(0, at);
    }
    bool ended() const { return ended_; }
    /// What is not an event: the body of a refusal.
    const std::string& rest() const { return unread_; }

private:
    void take_json(const Json& event) {
        if (event.contains("error")) fail(event["error"].value("message", "error event"));
        if (const auto usage = event.find("usage"); usage != event.end() && usage->is_object()) {
            out_.prompt_tokens = usage->value("prompt_tokens", int64_t{0});
            out_.output_tokens = usage->value("completion_tokens", int64_t{0});
        }
        std::string text;
        for (const Json& choice : event.value("choices", Json::array())) {
            const Json& source = choice.contains("delta") ? choice["delta"] : choice;
            for (const char* key : {"text", "reasoning_content", "content"})
                if (const auto piece = source.find(key); piece != source.end() && piece->is_string())
                    text += piece->get<std::string>();
        }
        if (text.empty()) return;
        const double now = std::chrono::duration<double>(Clock::now() - start_).count();
        if (out_.text.empty())
            out_.first_seconds = now;
        else
            out_.gaps_seconds.push_back(now - out_.last_seconds);
        out_.last_seconds = now;
        out_.text += text;
    }

    TimedRequest& out_;
    const Clock::time_point start_;
    std::string unread_;
    bool ended_ = false;
};

}  // namespace

double TimedRequest::per_token_seconds() const {
    return output_tokens > 1 ? (last_seconds - first_seconds) / static_cast<double>(output_tokens - 1) : 0.0;
}

TimedRequest run_timed(httplib::Client& client, const std::string& path, const httplib::Headers& headers, Json body,
                       Clock::time_point start) {
    TimedRequest out;
    Reader reader(out, start);
    body["stream"] = true;
    body["stream_options"] = {{"include_usage", true}};
    httplib::Request request;
    request.method = "POST";
    request.path = path;
    request.headers = headers;
    request.set_header("Content-Type", "application/json");
    request.body = dump_json(body);
    request.content_receiver = [&](const char* data, size_t size, uint64_t, uint64_t) {
        try {
            reader.take({data, size});
        } catch (const std::exception& error) {
            out.error = error.what();
        }
        return out.error.empty();
    };
    const httplib::Result result = client.send(request);
    if (!out.error.empty()) return out;
    if (!result)
        out.error = httplib::to_string(result.error());
    else if (result->status != 200)
        out.error = "status " + std::to_string(result->status) + ": " + printable(reader.rest() + result->body, 200);
    else if (!reader.ended())
        out.error = "the stream has no end";
    return out;
}

}  // namespace thermocline::bench
