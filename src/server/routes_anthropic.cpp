// The routes of Anthropic's API.
#include "src/server/anthropic.h"
#include "src/server/server.h"

#include <memory>
#include <string>

namespace thermocline::server {
namespace {

constexpr FieldName kMessageNames[] = {{"response_format.json_schema", "output_config.format"},
                                       {"response_format", "output_config.format"},
                                       {"reasoning_effort", "output_config.effort"},
                                       {"thinking_token_budget", "thinking.budget_tokens"},
                                       {"stop", "stop_sequences"}};

ChatCall message_call(const Json& body, const ServedModel& model) {
    return chat_call(chat_body_from_messages(body, model.anthropic_thinks), model);
}

}  // namespace

void Server::add_anthropic_routes() {
    for (const char* base : {"/v1", ""}) {
        add("POST", std::string(base) + "/messages", [this](const HttpRequest& request) {
            const Backend& served = backend();
            const Json body = parse_body(request.body);
            return run(request, in_words_of(kMessageNames, [&] {
                           return std::make_shared<MessageJob>(asked_by(request, message_call(body, served.model)),
                                                               served);
                       }));
        });
        add_post(std::string(base) + "/messages/count_tokens", [](const Json& body, const Backend& served) {
            return in_words_of(kMessageNames, [&] {
                return Json{{"input_tokens", chat_prompt(message_call(body, served.model), served).ids.size()}};
            });
        });
    }
}

}  // namespace thermocline::server
