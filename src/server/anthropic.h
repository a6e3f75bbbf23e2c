// The Anthropic Messages API (serving-api.md section 7): a request becomes the chat-completions body that asks for the
// same, so that every check and every feature is that of /v1/chat/completions; the answer becomes content blocks and
// named events. Pure; a wrong request is a RequestError that names the field.
#pragma once

#include "src/server/job.h"

#include <memory>
#include <string>

namespace thermocline::server {

/// `think_by_default`: for requests without `thinking`, which by Anthropic's meaning do not want any.
Json chat_body_from_messages(const Json& body, bool think_by_default);

/// One answer, put together while it streams.
class MessageStream : public EventStream {
public:
    MessageStream(ReplyHead head, const ChatCall& call, Tally tally) : EventStream(std::move(head), call, tally) {}
    std::string on(Delta delta) override;
    std::string end() override { return ""; }
    std::string ping() const override;
    std::string failure(const RequestError& error, const std::string& request_id) override;
    /// The whole message; `stop_reason` is null before the last delta.
    Json message() const;

private:
    std::string begin();
    std::string add(const text::OutputEvent& event);
    std::string open(const std::string& type, Json block);
    std::string append(const std::string& delta_type, const std::string& key, const std::string& text);
    std::string close();
    Json usage() const;
    Json block_json(const Json& block) const;

    bool has_begun_ = false;
    Json blocks_ = Json::array();  // as in the answer, but the input of a tool_use is its text so far
    bool is_open_ = false;         // the last block
    int64_t cached_tokens_ = 0;
    Json stop_reason_, stop_sequence_;
};

/// POST /v1/messages.
class MessageJob : public ChatJob {
public:
    MessageJob(ChatCall call, const Backend& served);
    std::unique_ptr<EventStream> new_stream() override;
    void add(Delta delta) override { whole_.on(std::move(delta)); }
    Json reply() override { return whole_.message(); }

private:
    MessageStream whole_;
};

}  // namespace thermocline::server
