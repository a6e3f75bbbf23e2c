// The routes of Anthropic's API.
#include "src/server/anthropic.h"
#include "src/server/server.h"

#include <memory>
#include <string>

namespace thermocline::server {
namespace {

ChatCall message_call(const Json& body, const ServedModel& model) {
    return chat_call(chat_body_from_messages(body, model.anthropic_thinks), model);
}

}  // namespace

void Server::add_anthropic_routes() {
    for (const char* base : {"/v1", ""}) {
        add("POST", std::string(base) + "/messages", [this](const HttpRequest& request) {
            const Backend& served = backend();
            return run(request, std::make_shared<MessageJob>(
                                    isolated(message_call(parse_body(request.body), served.model), request), served));
        });
        add_post(std::string(base) + "/messages/count_tokens", [](const Json& body, const Backend& served) {
            return Json{{"input_tokens", chat_prompt(message_call(body, served.model), served).ids.size()}};
        });
    }
}

}  // namespace thermocline::server
