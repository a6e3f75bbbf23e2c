// The routes that generate nothing (serving-api.md section 5): tokenizer, template, facts. Pure functions from body to
// reply; a wrong body is a RequestError or Error.
#pragma once

#include "src/engine/engine.h"
#include "src/engine/expert_admin.h"
#include "src/engine/expert_use.h"
#include "src/server/openai.h"
#include "src/text/tokenizer.h"

#include <string>
#include <vector>

namespace thermocline::server {

/// The prompt of a chat as token ids, `truncate` as in Call::truncate_prompt.
std::vector<int32_t> truncated(std::vector<int32_t> ids, const Call& call, int64_t max_model_len);

Json tokenize_reply(const Json& body, const ServedModel& model, const text::Tokenizer& tokenizer);
Json detokenize_reply(const Json& body, const text::Tokenizer& tokenizer);
Json template_reply(const Json& body, const ServedModel& model);
Json tokenizer_facts(const ServedModel& model, const text::Tokenizer& tokenizer);
/// GET /slots: one object for every sequence that can run at once.
Json slot_list(const std::vector<engine::Engine::Slot>& slots, const ServedModel& model);
/// GET /v1/experts.
Json expert_atlas(const engine::ExpertUse& use);
/// POST /v1/experts/record {"file": NAME, or null to end}, /pin {"pin": [[layer, expert], ...], "release": [...]},
/// /place {"profile": NAME} or {"placement": NAME}.
Json record_reply(const Json& body, engine::ExpertAdmin& admin);
Json pin_reply(const Json& body, engine::ExpertAdmin& admin);
Json place_reply(const Json& body, engine::ExpertAdmin& admin);
/// GET /props; `slots`: sequences that may run at once.
Json server_facts(const ServedModel& model, int64_t slots, const std::string& version);

}  // namespace thermocline::server
