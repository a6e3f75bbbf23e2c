#include "src/server/openai.h"

#include "src/server/errors.h"
#include "src/server/fields.h"
#include "src/server/reply.h"
#include "tests/engine/fake_model.h"

#include <gtest/gtest.h>

namespace thermocline::server {
namespace {

ServedModel served() {
    ServedModel model;
    model.name = "tiny";
    model.aliases = {"small"};
    model.root = "tiny";
    model.max_model_len = 100;
    model.vocab = testing::kVocab;
    model.sampling.temperature = 0.7f;
    return model;
}

Json chat_body(const std::string& more = "") {
    return parse_body(R"({"messages": [{"role": "user", "content": "hi"}])" + more + "}");
}

ChatCall chat(const std::string& more) { return chat_call(chat_body(more), served()); }

CompletionCall completion(const std::string& fields) {
    return completion_call(parse_body("{" + fields + "}"), served());
}

/// The error of a refused chat request: status and param.
std::pair<int, std::string> refusal(const std::string& more) {
    try {
        chat(more);
    } catch (const RequestError& error) {
        return {error.status(), error.param()};
    } catch (const Error& error) {
        const RequestError request_error = bad_request(error);
        return {request_error.status(), request_error.param()};
    }
    return {200, ""};
}

std::pair<int, std::string> completion_refusal(const std::string& fields) {
    try {
        completion(fields);
    } catch (const RequestError& error) {
        return {error.status(), error.param()};
    }
    return {200, ""};
}

using Refusal = std::pair<int, std::string>;

TEST(Body, MustBeAnObjectOfSaneSize) {
    for (const char* bad : {"", "{", "[]", "3", "null", "{\"a\": NaN}", "{\"a\": \"\xFF\"}", "{\"a\": 1e999}", "{} x"})
        EXPECT_THROW(parse_body(bad), RequestError) << bad;
    const auto nested = [](int depth) { return "{\"a\": " + std::string(depth, '[') + std::string(depth, ']') + "}"; };
    EXPECT_NO_THROW(parse_body(nested(63)));
    EXPECT_THROW(parse_body(nested(64)), RequestError);
    EXPECT_THROW(parse_body(std::string(1000000, '[')), RequestError);
    std::string wide = "{\"a\": 0";
    for (int i = 0; i < 100000; ++i) wide += ",\"k" + std::to_string(i) + "\": 0";
    EXPECT_THROW(parse_body(wide + "}"), RequestError) << "an ordered object of that size takes quadratic time";
    std::string array = "{\"a\": [0";
    for (int i = 0; i < 100000; ++i) array += ",0";
    EXPECT_NO_THROW(parse_body(array + "]}"));
}

TEST(Chat, DefaultsAreThoseOfTheModel) {
    const ChatCall call = chat("");
    EXPECT_FLOAT_EQ(call.request.sampling.temperature, 0.7f);
    EXPECT_EQ(call.request.max_tokens, -1);
    EXPECT_EQ(call.request.logprobs, -1);
    EXPECT_EQ(call.choices, 1);
    EXPECT_TRUE(call.random_seed);
    EXPECT_FALSE(call.stream);
    EXPECT_TRUE(call.split_reasoning);
    ASSERT_EQ(call.chat.messages.size(), 1u);
    EXPECT_EQ(call.chat.messages[0].content, "hi");
}

TEST(Chat, ReadsEveryField) {
    const ChatCall call = chat(R"(, "model": "small", "max_tokens": 9, "max_completion_tokens": 5, "temperature": 0,
        "top_p": 0.5, "top_k": 3.0, "min_p": 0.25, "n": 2, "presence_penalty": -1, "frequency_penalty": 2,
        "repeat_penalty": 1.5, "logit_bias": {"5": 200, "6": -1}, "seed": -7, "stop": ["a", "b"],
        "stop_token_ids": [4], "ignore_eos": true, "stream": true,
        "stream_options": {"include_usage": true, "continuous_usage_stats": true}, "logprobs": true, "top_logprobs": 20,
        "cache_prompt": false, "cache_salt": "s", "return_progress": true, "sse_ping_interval": -1, "return_token_ids": true,
        "include_reasoning": false, "reasoning_format": "none", "unknown_thing": {"a": 1}, "user": null, "tools": [])");
    const engine::SamplingParams& params = call.request.sampling;
    EXPECT_EQ(call.request.max_tokens, 5) << "max_completion_tokens wins";
    EXPECT_EQ(params.temperature, 0);
    EXPECT_EQ(params.top_p, 0.5f);
    EXPECT_EQ(params.top_k, 3);
    EXPECT_EQ(params.min_p, 0.25f);
    EXPECT_EQ(params.presence_penalty, -1);
    EXPECT_EQ(params.frequency_penalty, 2);
    EXPECT_EQ(params.repetition_penalty, 1.5f);
    EXPECT_EQ(params.logit_bias, (std::vector<std::pair<int32_t, float>>{{5, 100.0f}, {6, -1.0f}})) << "clamped";
    EXPECT_EQ(params.seed, static_cast<uint64_t>(-7));
    EXPECT_FALSE(call.random_seed);
    EXPECT_EQ(call.stop, (std::vector<std::string>{"a", "b"}));
    EXPECT_EQ(call.request.stop_tokens, (std::vector<int32_t>{4}));
    EXPECT_TRUE(call.request.ignore_eos);
    EXPECT_TRUE(call.stream && call.include_usage && call.continuous_usage && call.return_progress);
    EXPECT_EQ(call.request.logprobs, 20);
    EXPECT_FALSE(call.request.reuse_prefix);
    EXPECT_EQ(call.request.cache_salt, "s");
    EXPECT_EQ(call.ping_seconds, -1);
    EXPECT_EQ(call.choices, 2);
    EXPECT_FALSE(call.include_reasoning);
    EXPECT_FALSE(call.split_reasoning);
}

TEST(Chat, MinusOneAndNullMeanAbsent) {
    EXPECT_EQ(chat(R"(, "max_tokens": -1)").request.max_tokens, -1);
    EXPECT_TRUE(chat(R"(, "seed": -1)").random_seed);
    EXPECT_NE(chat("").request.sampling.seed, chat("").request.sampling.seed);
    const ChatCall call = chat(R"(, "stop": null, "temperature": null, "logit_bias": null, "stream_options": null)");
    EXPECT_TRUE(call.stop.empty());
    EXPECT_FLOAT_EQ(call.request.sampling.temperature, 0.7f);
    EXPECT_EQ(chat(R"(, "stop": "x")").stop, std::vector<std::string>{"x"});
}

TEST(Chat, RefusesWhatIsOutOfRangeAndNamesTheField) {
    const std::pair<const char*, const char*> cases[] = {
        {R"("temperature": 2.5)", "temperature"},
        {R"("temperature": "1")", "temperature"},
        {R"("temperature": true)", "temperature"},
        {R"("top_p": 0)", "top_p"},
        {R"("top_p": 1.1)", "top_p"},
        {R"("top_k": -2)", "top_k"},
        {R"("top_k": 1.5)", "top_k"},
        {R"("min_p": -0.1)", "min_p"},
        {R"("presence_penalty": 3)", "presence_penalty"},
        {R"("frequency_penalty": -3)", "frequency_penalty"},
        {R"("repetition_penalty": 0)", "repetition_penalty"},
        {R"("n": 0)", "n"},
        {R"("n": 129)", "n"},
        {R"("max_tokens": 0)", "max_tokens"},
        {R"("max_tokens": -2)", "max_tokens"},
        {R"("max_completion_tokens": 0)", "max_completion_tokens"},
        {R"("max_tokens": 1e300)", "max_tokens"},
        {R"("seed": 18446744073709551615)", "seed"},
        {R"("seed": "x")", "seed"},
        {R"("stop": "")", "stop"},
        {R"("stop": [1])", "stop"},
        {R"("stop": {})", "stop"},
        {R"("stop": ["1","2","3","4","5","6","7","8","9","10","11","12","13","14","15","16","17"])", "stop"},
        {R"("stop_token_ids": [263])", "stop_token_ids"},
        {R"("stop_token_ids": "a")", "stop_token_ids"},
        {R"("logit_bias": {"263": 1})", "logit_bias"},
        {R"("logit_bias": {"a": 1})", "logit_bias"},
        {R"("logit_bias": {"1": "x"})", "logit_bias"},
        {R"("logit_bias": [1])", "logit_bias"},
        {R"("stream": 1)", "stream"},
        {R"("stream_options": {"include_usage": true})", "stream_options"},
        {R"("stream": true, "stream_options": {"include_usage": 1})", "stream_options.include_usage"},
        {R"("logprobs": 1)", "logprobs"},
        {R"("top_logprobs": 2)", "top_logprobs"},
        {R"("logprobs": true, "top_logprobs": 21)", "top_logprobs"},
        {R"("min_tokens": 5, "max_tokens": 4)", "min_tokens"},
        {R"("prompt_logprobs": -2)", "prompt_logprobs"},
        {R"("prompt_logprobs": 21)", "prompt_logprobs"},
        {R"("prompt_logprobs": true)", "prompt_logprobs"},
        {R"("prompt_logprobs": 1, "stream": true)", "prompt_logprobs"},
        {R"("thinking_token_budget": -1)", "thinking_token_budget"},
        {R"("echo": 1)", "echo"},
        {R"("cache_salt": "")", "cache_salt"},
        {R"("functions": [{"name": "f"}])", "functions"},
        {R"("modalities": ["text", "audio"])", "modalities"},
        {R"("response_format": {"type": "xml"})", "response_format"},
        {R"("response_format": "json")", "response_format"},
        {R"("reasoning_format": "loud")", "reasoning_format"},
        {R"("reasoning_effort": "extreme")", "reasoning_effort"},
        {R"("tool_choice": "required")", "tool_choice"},
        {R"("truncate_prompt_tokens": 0)", "truncate_prompt_tokens"}};
    for (const auto& [fields, param] : cases)
        EXPECT_EQ(refusal(std::string(", ") + fields), Refusal(400, param)) << fields;
}

TEST(Chat, RefusesWhatIsNotBuilt) {
    const std::pair<const char*, const char*> cases[] = {
        {R"("structured_outputs": {"structural_tag": {}})", "structured_outputs"}};
    for (const auto& [fields, param] : cases)
        EXPECT_EQ(refusal(std::string(", ") + fields), Refusal(501, param)) << fields;
}

TEST(Chat, MessagesAreChecked) {
    const auto refused = [](const std::string& messages) {
        try {
            chat_call(parse_body("{" + messages + "}"), served());
        } catch (const Error& error) {
            return bad_request(error).param();
        }
        return std::string("accepted");
    };
    EXPECT_EQ(refused(""), "messages");
    EXPECT_EQ(refused(R"("messages": [])"), "messages");
    EXPECT_EQ(refused(R"("messages": "hi")"), "messages");
    EXPECT_EQ(refused(R"("messages": [{"role": "wizard", "content": "x"}])"), "messages");
    EXPECT_EQ(refused(R"("messages": [{"role": "user"}])"), "messages");
    EXPECT_EQ(refused(R"("messages": [{"role": "user", "content": [{"type": "image_url"}]}])"), "messages");
    EXPECT_EQ(refused(R"("messages": [{"role": "user", "content": [{"type": "text", "text": "x"}]}])"), "accepted");
}

TEST(Chat, ModelNames) {
    EXPECT_EQ(refusal(R"(, "model": "tiny")").first, 200);
    EXPECT_EQ(refusal(R"(, "model": "gpt-9")"), Refusal(404, "model"));
    EXPECT_EQ(refusal(R"(, "model": 3)"), Refusal(400, "model"));
    ServedModel any = served();
    any.aliases = {"*"};
    EXPECT_NO_THROW(chat_call(chat_body(R"(, "model": "gpt-9")"), any));
}

TEST(Completion, PromptsOfEveryKind) {
    using Ids = std::vector<int32_t>;
    EXPECT_EQ(completion(R"("prompt": "ab")").prompts, (std::vector<PromptInput>{"ab"}));
    EXPECT_EQ(completion(R"("prompt": ["ab", "c"])").prompts, (std::vector<PromptInput>{"ab", "c"}));
    EXPECT_EQ(completion(R"("prompt": [1, 2.0])").prompts, (std::vector<PromptInput>{Ids{1, 2}}));
    EXPECT_EQ(completion(R"("prompt": [[1], [2, 3]])").prompts, (std::vector<PromptInput>{Ids{1}, Ids{2, 3}}));
    for (const char* bad : {R"("prompt": "")", R"("prompt": [])", R"("prompt": [[]])", R"("prompt": [""])", R"("x": 1)",
                            R"("prompt": {"a": 1})", R"("prompt": 5)", R"("prompt": [1, "a"])", R"("prompt": [1.5])",
                            R"("prompt": [263])", R"("prompt": [-1])", R"("prompt": null)", R"("prompt": [[1], 2])"})
        EXPECT_EQ(completion_refusal(bad), Refusal(400, "prompt")) << bad;
    std::string many = R"("prompt": ["x")";
    for (int i = 0; i < 1024; ++i) many += R"(,"x")";
    EXPECT_EQ(completion_refusal(many + "]"), Refusal(400, "prompt"));
}

TEST(Completion, FieldsOfItsOwn) {
    EXPECT_EQ(completion(R"("prompt": "a")").request.max_tokens, 16);
    EXPECT_EQ(completion_refusal(R"("prompt": "a", "max_tokens": 0)"), Refusal(400, "max_tokens"));
    const CompletionCall scoring = completion(R"("prompt": "a", "max_tokens": 0, "echo": true, "logprobs": 1)");
    EXPECT_EQ(scoring.request.prompt_logprobs, 1);
    EXPECT_EQ(scoring.request.logprobs, 1);
    EXPECT_EQ(completion(R"("prompt": "a", "logprobs": true)").request.logprobs, 1);
    EXPECT_EQ(completion(R"("prompt": "a", "logprobs": null)").request.logprobs, -1);
    EXPECT_EQ(completion(R"("prompt": "a", "logprobs": 3)").request.prompt_logprobs, -1);
    const CompletionCall both = completion(R"("prompt": "a", "logprobs": 1, "echo": true, "prompt_logprobs": 4)");
    EXPECT_EQ(both.request.prompt_logprobs, 4) << "enough for both";
    EXPECT_EQ(both.request.logprobs, 1);
    EXPECT_EQ(completion_refusal(R"("prompt": "a", "logprobs": 21)"), Refusal(400, "logprobs"));
    EXPECT_EQ(completion_refusal(R"("prompt": "a", "best_of": 3)"), Refusal(400, "best_of"));
    EXPECT_EQ(completion_refusal(R"("prompt": "a", "best_of": 2, "n": 2)").first, 200);
    EXPECT_EQ(completion(R"("prompt": "a", "suffix": "b")").suffix, "b");
    EXPECT_FALSE(completion(R"("prompt": "a", "suffix": "")").suffix);
    EXPECT_EQ(completion_refusal(R"("prompt": "a", "suffix": "b", "echo": true)"), Refusal(400, "echo"));
    EXPECT_EQ(completion_refusal(R"("prompt": "a", "suffix": "b", "truncate_prompt_tokens": 4)"),
              Refusal(400, "truncate_prompt_tokens"));
}

TEST(Errors, BodiesHaveTheDocumentedShape) {
    EXPECT_EQ(dump_json(error_json(RequestError(400, "bad", "temperature"))),
              R"({"error":{"message":"bad","type":"invalid_request_error","param":"temperature","code":400}})");
    EXPECT_EQ(dump_json(error_json(404, "gone")),
              R"({"error":{"message":"gone","type":"not_found_error","param":null,"code":404}})");
    const Json context = error_json(ContextSizeError(120, 100))["error"];
    EXPECT_EQ(context["code"], "context_length_exceeded");
    EXPECT_EQ(context["type"], "exceed_context_size_error");
    EXPECT_EQ(context["n_prompt_tokens"], 120);
    EXPECT_EQ(context["n_ctx"], 100);
    EXPECT_EQ(context["message"],
              "This model's maximum context length is 100 tokens. However, your request has 120 input tokens. "
              "Please reduce the length of the input messages.");
    EXPECT_EQ(bad_request(Error("the prompt is empty")).param(), "");
    EXPECT_EQ(bad_request(Error("tools[0].function is missing")).param(), "tools");
}

TEST(Errors, SpeakTheWordsOfTheApiThatWasCalled) {
    const FieldName names[] = {
        {"response_format.json_schema", "text.format"}, {"response_format", "text.format"}, {"stop", "stop_sequences"}};
    const auto in_words = [&names](const RequestError& error) {
        const RequestError out = renamed(error, names);
        return std::pair<std::string, std::string>(out.what(), out.param());
    };
    using Said = std::pair<std::string, std::string>;
    EXPECT_EQ(in_words({400, "response_format: keyword x", "response_format"}), Said("text.format: keyword x", "text"));
    EXPECT_EQ(in_words({400, "response_format.json_schema.schema is missing", "response_format"}),
              Said("text.format.schema is missing", "text"));
    EXPECT_EQ(in_words({400, "stop_sequences is 3", "stop_sequences"}), Said("stop_sequences is 3", "stop_sequences"));
    EXPECT_EQ(in_words({400, "stop is 3", "stop"}), Said("stop_sequences is 3", "stop_sequences"));
    EXPECT_THROW(in_words_of(names, []() -> int { throw Error("stop is 3, expected a string"); }), RequestError);
    EXPECT_THROW(in_words_of(names, []() -> int { throw ContextSizeError(5, 4); }), ContextSizeError);
}

TEST(Models, ListNamesAliasesAndLength) {
    const Json list = model_list(served());
    ASSERT_EQ(list["data"].size(), 2u);
    EXPECT_EQ(list["object"], "list");
    EXPECT_EQ(list["data"][0]["id"], "tiny");
    EXPECT_EQ(list["data"][0]["root"], "tiny");
    EXPECT_EQ(list["data"][0]["max_model_len"], 100);
    EXPECT_EQ(list["data"][1]["id"], "small");
    EXPECT_TRUE(model_entry(served(), "other").is_null());
}

}  // namespace
}  // namespace thermocline::server
