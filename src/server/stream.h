// Server-sent events: deltas in, the text to write out; and the two OpenAI streams (serving-api.md sections 3.4 and 4).
// Pure; one object per HTTP request, one thread.
#pragma once

#include "src/server/errors.h"
#include "src/server/reply.h"

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

namespace thermocline::server {

/// "data: JSON\n\n".
std::string sse_event(const Json& data);
/// "event: TYPE\ndata: JSON\n\n", the type being that of the JSON.
std::string named_sse_event(const Json& data);

class EventStream {
public:
    EventStream(ReplyHead head, const Call& call, Tally tally) : head_(std::move(head)), call_(call), tally_(tally) {}
    virtual ~EventStream() = default;
    /// What to send for the next delta; may be empty.
    virtual std::string on(Delta delta) = 0;
    /// After the last delta.
    virtual std::string end() = 0;
    /// Sent when nothing else was for a while.
    virtual std::string ping() const { return ": ping\n\n"; }
    /// The end of a stream that broke.
    virtual std::string failure(const RequestError& error, const std::string& request_id) = 0;

protected:
    const ReplyHead head_;
    const Call& call_;
    Tally tally_;
};

/// The two OpenAI streams: events without names, [DONE] at the end.
class ChunkStream : public EventStream {
public:
    using EventStream::EventStream;
    /// The usage chunk, if asked for, and [DONE].
    std::string end() override;
    std::string failure(const RequestError& error, const std::string& request_id) override;

protected:
    virtual const char* object() const = 0;
    virtual bool is_chat() const = 0;
    /// A chunk with these choices, as an event.
    std::string chunk(Json choices, bool is_last = false);
    std::string progress(const Delta& delta);
};

class ChatStream : public ChunkStream {
public:
    ChatStream(ReplyHead head, const ChatCall& call, Tally tally, bool starts_in_reasoning,
               std::vector<int32_t> prompt);
    std::string on(Delta delta) override;

private:
    struct Choice {
        ReasoningView view;
        bool has_role = false;
        std::vector<engine::Token> unsent;  // whose text is held back: their logprobs ride on the next chunk
        std::vector<int32_t> unsent_ids;
    };

    const char* object() const override { return "chat.completion.chunk"; }
    bool is_chat() const override { return true; }
    std::string piece(int32_t index, Json delta, const Ending* ending = nullptr);

    const ChatCall& chat_;
    std::vector<Choice> choices_;
    std::vector<int32_t> prompt_;  // ids, sent with the first chunk when asked for
    bool is_first_ = true;
    size_t ended_ = 0;
};

class CompletionStream : public ChunkStream {
public:
    /// `echoes`: the text to put in front, by prompt; empty without echo.
    CompletionStream(ReplyHead head, const CompletionCall& call, Tally tally, std::vector<std::string> echoes,
                     std::vector<std::vector<int32_t>> prompts);
    std::string on(Delta delta) override;

private:
    struct Choice {
        CompletionLogprobs logprobs;
        bool has_begun = false;
        Json unsent;  // arrays of tokens whose text is held back
        std::vector<int32_t> unsent_ids;
    };

    const char* object() const override { return "text_completion"; }
    bool is_chat() const override { return false; }

    const CompletionCall& completion_;
    std::vector<Choice> choices_;
    std::vector<std::string> echoes_;
    std::vector<std::vector<int32_t>> prompts_;
    size_t ended_ = 0;
};

}  // namespace thermocline::server
