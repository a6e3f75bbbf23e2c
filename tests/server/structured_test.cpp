// Structured output through the server: what a model that would say something else is made to say; errors before the
// 200.
#include "src/server/structured.h"

#include "tests/server/server_fixture.h"
#include "tests/text/schema_check.h"

#include <gtest/gtest.h>
#include <regex>

namespace thermocline::server {
namespace {

class StructuredTest : public ServerTest {
protected:
    StructuredTest() {
        stop();
        script->limits.max_tokens = 3000;
        start({});
        serve();
    }
    static std::string body(Json more) {
        Json body = {{"messages", {{{"role", "user"}, {"content", "hello"}}}},
                     {"max_tokens", 900},
                     {"logit_bias", {{std::to_string(byte_id('!')), -100}}}};  // behind it the model computes NaN
        body.update(more);
        return body.dump();
    }
    /// A chat of one question; temperature 1, so that the table of the model does not decide.
    Json chat(Json more, int status = 200) const {
        return post_json("/v1/chat/completions", body(std::move(more)), status);
    }
    static Json tool(const std::string& name, Json parameters, bool strict = false) {
        Json function = {{"name", name}, {"parameters", std::move(parameters)}};
        if (strict) function["strict"] = true;
        return {{"type", "function"}, {"function", std::move(function)}};
    }
};

const Json kOff = {{"type", "disabled"}};

const Json kSchema = {
    {"type", "object"},
    {"properties",
     {{"kind", {{"enum", {"ab", "cd"}}}}, {"n", {{"type", "integer"}, {"minimum", 10}, {"maximum", 99}}}}},
    {"required", {"kind", "n"}},
    {"additionalProperties", false}};

TEST_F(StructuredTest, EveryWayToAskForIt) {
    const Json object = {{"type", "object"}, {"properties", {{"b", {{"type", "boolean"}}}}}, {"required", {"b"}}};
    const std::pair<Json, std::string> cases[] = {
        {{{"structured_outputs", {{"choice", {"left", "right"}}}}}, "left|right"},
        {{{"guided_choice", {"x y"}}}, "x y"},
        {{{"guided_regex", "[x-z]{3}"}}, "[x-z]{3}"},
        {{{"structured_outputs", {{"regex", "^q+w$"}}}}, "q+w"},
        {{{"grammar", "root ::= \"a\" | \"bb\""}}, "a|bb"},
        {{{"guided_grammar", "root ::= [k]{2}"}}, "kk"}};
    for (const auto& [fields, pattern] : cases) {
        Json body = fields;
        body["thinking"] = kOff;
        const Json choice = chat(body)["choices"][0];
        EXPECT_EQ(choice["finish_reason"], "stop");
        EXPECT_TRUE(std::regex_match(choice["message"]["content"].get<std::string>(), std::regex(pattern))) << choice;
    }
    const Json json_cases[] = {
        {{"response_format", {{"type", "json_schema"}, {"json_schema", {{"name", "x"}, {"schema", kSchema}}}}}},
        {{"response_format", {{"type", "json_schema"}, {"schema", kSchema}}}},
        {{"response_format", {{"type", "json_object"}, {"schema", kSchema}}}},
        {{"structured_outputs", {{"json", kSchema}}}},
        {{"structured_outputs", {{"json", kSchema.dump()}}}},
        {{"guided_json", kSchema}},
        {{"json_schema", kSchema}}};
    for (Json body : json_cases) {
        body["thinking"] = kOff;
        const Json choice = chat(body)["choices"][0];
        EXPECT_EQ(choice["finish_reason"], "stop");
        EXPECT_TRUE(satisfies(parse_json(choice["message"]["content"].get<std::string>(), "content"), kSchema))
            << choice;
        body["prompt"] = "hello";
        body["max_tokens"] = 900;
        const Json completion = post_json("/v1/completions", body.dump())["choices"][0];
        EXPECT_TRUE(satisfies(parse_json(completion["text"].get<std::string>(), "text"), kSchema)) << completion;
    }
}

TEST_F(StructuredTest, JsonObjectsAreObjects) {
    for (int seed = 0; seed < 5; ++seed) {
        const Json choice = chat({{"response_format", {{"type", "json_object"}}},
                                  {"thinking", kOff},
                                  {"temperature", 1.5},
                                  {"seed", seed}})["choices"][0];
        if (choice["finish_reason"] != "stop") continue;
        EXPECT_TRUE(parse_json(choice["message"]["content"].get<std::string>(), "x").is_object());
    }
}

TEST_F(StructuredTest, TheReasoningIsFree) {
    const Json choice = chat({{"guided_json", kSchema}, {"temperature", 0}, {"n", 2}})["choices"][1];
    EXPECT_EQ(choice["message"]["reasoning_content"], "hm");
    EXPECT_TRUE(satisfies(parse_json(choice["message"]["content"].get<std::string>(), "content"), kSchema)) << choice;
}

TEST_F(StructuredTest, ForcedCallsAreValid) {
    const Json tools = {tool("edit", kSchema), tool("ping", Json::object())};
    for (const Json& thinking : {kOff, Json{{"type", "enabled"}}}) {
        for (const Json& choice_field :
             {Json("required"), Json{{"type", "function"}, {"function", {{"name", "edit"}}}}}) {
            const Json choice = chat({{"tools", tools},
                                      {"tool_choice", choice_field},
                                      {"thinking", thinking},
                                      {"temperature", 0.5},
                                      {"seed", 1},
                                      {"parallel_tool_calls", false}})["choices"][0];
            EXPECT_EQ(choice["finish_reason"], "tool_calls") << choice;
            ASSERT_EQ(choice["message"]["tool_calls"].size(), 1u) << choice;
            const Json function = choice["message"]["tool_calls"][0]["function"];
            EXPECT_TRUE(choice_field.is_string() || function["name"] == "edit");
            const Json arguments = parse_json(function["arguments"].get<std::string>(), "arguments");
            EXPECT_TRUE(function["name"] != "edit" || satisfies(arguments, kSchema)) << arguments;
        }
    }
}

TEST_F(StructuredTest, StreamsOfSeveralChoicesAreValidEach) {
    const Json tools = Json::array({tool("edit", kSchema)});
    for (const bool calls : {false, true}) {
        Json fields = calls ? Json{{"tools", tools}, {"tool_choice", "required"}, {"parallel_tool_calls", false}}
                            : Json{{"guided_json", kSchema}};
        fields.update({{"stream", true}, {"n", 3}, {"seed", 5}, {"temperature", 0.5}});
        std::vector<std::string> texts(3);
        int finished = 0;
        for (const Json& event : post_stream("/v1/chat/completions", body(fields))) {
            const Json choice = event["choices"][0];
            std::string& text = texts[choice["index"].get<size_t>()];
            const Json& delta = choice["delta"];
            if (!calls && delta.contains("content") && !delta["content"].is_null())
                text += delta["content"].get<std::string>();
            if (calls && delta.contains("tool_calls"))
                text += delta["tool_calls"][0]["function"]["arguments"].get<std::string>();
            if (choice["finish_reason"].is_null()) continue;
            EXPECT_EQ(choice["finish_reason"], calls ? "tool_calls" : "stop");
            ++finished;
        }
        EXPECT_EQ(finished, 3);
        for (const std::string& text : texts) EXPECT_TRUE(satisfies(parse_json(text, "answer"), kSchema)) << text;
        EXPECT_TRUE(texts[0] != texts[1] || texts[1] != texts[2]) << "each choice has a seed of its own";
    }
}

TEST_F(StructuredTest, StrictToolsBindTheModelOnlyInsideTheirCalls) {
    // Left free, the model talks; it never gets to a call.
    const Json free = chat({{"tools", {tool("edit", kSchema, true)}}, {"temperature", 0}})["choices"][0];
    const Json same = chat({{"tools", {tool("edit", kSchema)}}, {"temperature", 0}})["choices"][0];
    EXPECT_EQ(free["message"]["content"], same["message"]["content"]);
}

TEST_F(StructuredTest, OtherRoutesAskForItToo) {
    const Json format = {{"type", "json_schema"}, {"name", "x"}, {"schema", kSchema}};
    const Json response =
        post_json("/v1/responses",
                  Json{{"input", "hello"}, {"reasoning", {{"effort", "none"}}}, {"text", {{"format", format}}}}.dump());
    EXPECT_TRUE(
        satisfies(parse_json(response["output"].back()["content"][0]["text"].get<std::string>(), "response"), kSchema))
        << response;
    const Json message = post_json("/v1/messages", Json{{"messages", {{{"role", "user"}, {"content", "hello"}}}},
                                                        {"max_tokens", 900},
                                                        {"output_config", {{"format", format}}}}
                                                       .dump());
    EXPECT_TRUE(satisfies(parse_json(message["content"].back()["text"].get<std::string>(), "message"), kSchema))
        << message;
}

TEST_F(StructuredTest, WhatTakesTooLongIsTheRequestsFault) {
    std::string many;
    for (int i = 0; i < 5000; ++i) many += "\"k" + std::to_string(i) + "\": 1, ";
    chat({{"guided_json", "{\"default\": {" + many + "\"x\": 1}}"}}, 400);
    chat({{"guided_json", std::string(150, '[')}}, 400);
    chat({{"guided_regex", "((((a?){100}){100}){50})b"}}, 400);
    EXPECT_EQ(chat({{"guided_regex", "a?"}, {"min_tokens", 3}, {"thinking", kOff}, {"stop_token_ids", {byte_id('a')}}},
                   400)["error"]["type"],
              "invalid_request_error");
    chat({{"guided_regex", "a{3}"}, {"thinking", kOff}});
}

TEST_F(StructuredTest, WhatIsWrongIsA400ThatNamesTheField) {
    const std::pair<Json, const char*> cases[] = {
        {{{"guided_json", {{"not", Json::object()}}}}, "guided_json"},
        {{{"guided_json", 3}}, "guided_json"},
        {{{"guided_json", "{"}}, ""},
        {{{"guided_regex", "(a)\\1"}}, "guided_regex"},
        {{{"guided_choice", Json::array()}}, "guided_choice"},
        {{{"guided_choice", {""}}}, "guided_choice"},
        {{{"grammar", "root ::= root"}}, "grammar"},
        {{{"grammar", 1}}, "grammar"},
        {{{"structured_outputs", Json::object()}}, "structured_outputs"},
        {{{"structured_outputs", {{"regex", "a"}, {"json", true}}}}, "structured_outputs"},
        {{{"guided_regex", "a"}, {"grammar", "root ::= \"a\""}}, "grammar"},
        {{{"response_format", {{"type", "json_schema"}}}}, "response_format"},
        {{{"response_format", {{"type", "json_object"}}},
          {"tools", {tool("f", Json::object())}},
          {"tool_choice", "required"}},
         "response_format"},
        {{{"tools", {tool("f", {{"not", Json::object()}})}}, {"tool_choice", "required"}}, "tools"},
        {{{"tools", {tool("f", {{"not", Json::object()}}, true)}}}, "tools"}};
    for (const auto& [fields, param] : cases) {
        const Json error = chat(fields, 400)["error"];
        EXPECT_TRUE(*param == '\0' || error["param"] == param) << fields << error;
    }
    EXPECT_EQ(chat({{"structured_outputs", {{"structural_tag", 1}}}}, 501)["error"]["param"], "structured_outputs");
    // Not strict and not forced: a schema that cannot be compiled has no mask.
    chat({{"tools", {tool("f", {{"not", Json::object()}})}}, {"max_tokens", 3}});
}

}  // namespace
}  // namespace thermocline::server
