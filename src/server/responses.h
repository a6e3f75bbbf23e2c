// OpenAI's Responses API, the stateless subset that coding agents use (serving-api.md section 6): a request becomes the
// chat-completions body that asks for the same, the answer becomes output items and numbered events. Pure; a wrong
// request is a RequestError that names the field.
#pragma once

#include "src/server/job.h"

#include <cstdint>
#include <map>
#include <memory>
#include <string>

namespace thermocline::server {

struct ResponseRequest {
    Json chat;  // the chat body
    Json echo;  // members of the response that repeat the request
    struct Name {
        std::string name, space;
    };
    std::map<std::string, Name> namespaced;  // by the name that the model sees: NAMESPACE__NAME
};

ResponseRequest read_response_request(const Json& body);

/// One answer, put together while it streams.
class ResponseStream : public EventStream {
public:
    /// `request` outlives the stream.
    ResponseStream(ReplyHead head, const ChatCall& call, Tally tally, const ResponseRequest& request)
        : EventStream(std::move(head), call, tally), request_(request) {}
    std::string on(Delta delta) override;
    std::string end() override { return ""; }
    std::string failure(const RequestError& error, const std::string& request_id) override;
    /// The whole response; status "in_progress" before the last delta.
    Json response() const;

private:
    std::string event(const std::string& type, Json members);
    /// An event about the open item.
    std::string item_event(const std::string& type, Json members);
    std::string begin();
    std::string add(const text::OutputEvent& event);
    std::string open(const std::string& type, const std::string& id_prefix, Json members);
    std::string close();
    Json usage() const;

    const ResponseRequest& request_;
    int64_t sequence_number_ = 0;
    bool has_begun_ = false;
    Json output_ = Json::array();
    bool is_open_ = false;  // the last item
    std::string text_;      // of the open item so far: reasoning, output text or arguments
    std::string status_ = "in_progress";
    Json error_;
};

/// POST /v1/responses.
class ResponseJob : public ChatJob {
public:
    ResponseJob(ChatCall call, ResponseRequest request, const Backend& served);
    std::unique_ptr<EventStream> new_stream() override;
    void add(Delta delta) override { whole_.on(std::move(delta)); }
    Json reply() override { return whole_.response(); }

private:
    const ResponseRequest request_;
    ResponseStream whole_;
};

}  // namespace thermocline::server
