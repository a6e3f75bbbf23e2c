// The routes of OpenAI's API.
#include "src/server/responses.h"
#include "src/server/server.h"

#include <memory>
#include <string>
#include <utility>

namespace thermocline::server {
namespace {

constexpr FieldName kResponseNames[] = {{"response_format.json_schema", "text.format"},
                                        {"response_format", "text.format"},
                                        {"reasoning_effort", "reasoning.effort"},
                                        {"max_tokens", "max_output_tokens"},
                                        {"messages", "input"}};

Json input_tokens(const ChatCall& call, const Backend& served) {
    return {{"object", "response.input_tokens"}, {"input_tokens", chat_prompt(call, served).ids.size()}};
}

}  // namespace

void Server::add_openai_routes() {
    for (const char* base : {"/v1", "", "/beta/v1", "/beta"}) {
        add("POST", std::string(base) + "/chat/completions", [this](const HttpRequest& request) {
            const Backend& served = backend();
            return run(request,
                       std::make_shared<ChatJob>(asked_by(request, chat_call(parse_body(request.body), served.model)),
                                                 served, "chatcmpl-"));
        });
        add("POST", std::string(base) + "/completions", [this](const HttpRequest& request) {
            const Backend& served = backend();
            return run(request,
                       std::make_shared<CompletionJob>(
                           asked_by(request, completion_call(parse_body(request.body), served.model)), served));
        });
    }
    for (const char* base : {"/v1", ""}) {
        add("POST", std::string(base) + "/responses", [this](const HttpRequest& request) {
            const Backend& served = backend();
            ResponseRequest asked = read_response_request(parse_body(request.body));
            return run(request, in_words_of(kResponseNames, [&] {
                           ChatCall call = asked_by(request, chat_call(asked.chat, served.model));
                           return std::make_shared<ResponseJob>(std::move(call), std::move(asked), served);
                       }));
        });
        add("GET", std::string(base) + "/responses/*",
            [](const HttpRequest&) -> HttpReply { throw RequestError(404, "this server stores no responses"); });
        add_post(std::string(base) + "/chat/completions/input_tokens", [](const Json& body, const Backend& served) {
            return input_tokens(chat_call(body, served.model), served);
        });
        add_post(std::string(base) + "/responses/input_tokens", [](const Json& body, const Backend& served) {
            const ResponseRequest asked = read_response_request(body);
            return in_words_of(kResponseNames,
                               [&] { return input_tokens(chat_call(asked.chat, served.model), served); });
        });
        add("GET", std::string(base) + "/models",
            [this](const HttpRequest&) { return json_reply(model_list(backend().model)); });
        const size_t skip = std::string(base).size() + std::string("/models/").size();
        add("GET", std::string(base) + "/models/*", [this, skip](const HttpRequest& request) {
            const std::string id = request.path.substr(skip);
            const Json entry = model_entry(backend().model, id);
            if (entry.is_null())
                throw RequestError(404, "The model `" + printable(id, 200) + "` does not exist.", "model");
            return json_reply(entry);
        });
    }
}

}  // namespace thermocline::server
