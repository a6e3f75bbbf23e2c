// The prompt goldens (made with DeepSeek's own encoders, see prompt-encoding.md section 12), the decisions of section 5
// that go beyond them, and the detection of the revision. The goldens' prompt_ids need the real vocabulary, which the
// repository does not carry: only the strings are compared here.
#include "src/text/prompt_deepseek_v4.h"

#include "src/base/error.h"
#include "src/base/file.h"
#include "src/text/chat_request.h"
#include "src/text/python_json.h"

#include <filesystem>
#include <fstream>
#include <gtest/gtest.h>
#include <unistd.h>

namespace thermocline::text {
namespace {

const std::string kBos = "<｜begin▁of▁sentence｜>";
const std::string kEos = "<｜end▁of▁sentence｜>";
const std::string kUser = "<｜User｜>";
const std::string kChatHeader = "<｜Assistant｜></think>";
const std::string kThinkHeader = "<｜Assistant｜><think>";

Json golden_prompts() {
    const std::string path = THERMOCLINE_SOURCE_DIR "/tests/golden/prompt-deepseek-v4.json";
    return parse_json(read_text(path), path);
}

Task task_named(const std::string& name) {
    if (name == "action") return Task::kAction;
    return name == "query" ? Task::kQuery : Task::kTitle;
}

/// The goldens carry the fields of DeepSeek's own encoder (task, wo_eos, response_format) on the messages.
std::vector<Message> golden_messages(const Json& list) {
    std::vector<Message> messages = messages_from_openai(list);
    EXPECT_EQ(messages.size(), list.size());
    for (size_t i = 0; i < list.size(); ++i) {
        if (list[i].contains("task")) messages[i].task = task_named(list[i]["task"]);
        if (list[i].contains("wo_eos")) messages[i].is_prefix = list[i]["wo_eos"].get<bool>();
        if (list[i].contains("response_format")) messages[i].response_schema = list[i]["response_format"];
    }
    return messages;
}

int golden_effort(const Json& effort) {
    if (effort.is_null()) return kEffortUnset;
    return effort.is_string() ? effort_from_word(effort, "effort") : effort.get<int>();
}

TEST(PromptDeepseekV4, EveryGoldenString) {
    const Json cases = golden_prompts();
    ASSERT_EQ(cases.size(), 41u);
    for (const Json& c : cases) {
        ChatOptions options;
        options.revision = revision_from_flag(c["revision"].get<std::string>()).value();
        options.thinking = c["thinking_mode"] == "thinking";
        options.drop_reasoning = c["drop_thinking"].get<bool>();
        options.effort = golden_effort(c["reasoning_effort"]);
        options.tools = tools_from_openai(c["tools"]);
        options.open_turn = false;
        const Prompt prompt = render_deepseek_v4(golden_messages(c["messages"]), options);
        EXPECT_EQ(prompt.text, c["prompt"].get<std::string>()) << c["name"];
    }
}

Prompt from_request(const std::string& request, PromptRevision revision = PromptRevision::kV4) {
    const Chat chat = chat_from_openai(parse_json(request, "request"), revision, {});
    return render_deepseek_v4(chat.messages, chat.options);
}

TEST(PromptDeepseekV4, TellsWhereTheAnswerStarts) {
    EXPECT_TRUE(from_request(R"({"messages":[{"role":"user","content":"Hi"}]})").starts_in_reasoning);
    EXPECT_FALSE(
        from_request(R"({"messages":[{"role":"user","content":"Hi"}],"reasoning_effort":"none"})").starts_in_reasoning);
    const Prompt answer = from_request(
        R"({"messages":[{"role":"user","content":"Hi"},{"role":"assistant","content":"Yo","prefix":true}]})");
    EXPECT_EQ(answer.text, kBos + kUser + "Hi" + kThinkHeader + "</think>Yo");
    EXPECT_FALSE(answer.starts_in_reasoning);
    const Prompt thought = from_request(
        R"({"messages":[{"role":"user","content":"Hi"},{"role":"assistant","reasoning_content":"Hm","prefix":true}]})");
    EXPECT_EQ(thought.text, kBos + kUser + "Hi" + kThinkHeader + "Hm");
    EXPECT_TRUE(thought.starts_in_reasoning);
}

TEST(PromptDeepseekV4, SystemTextsAfterTheUserBecomeReminders) {
    EXPECT_EQ(
        from_request(R"({"messages":[{"role":"user","content":"Hi"},{"role":"system","content":"Be brief."}]})").text,
        kBos + kUser + "Hi\n\n<system-reminder>\nBe brief.\n</system-reminder>" + kThinkHeader);
    EXPECT_EQ(from_request(R"({"messages":[{"role":"system","content":"A"},{"role":"developer","content":"B"},
                                           {"role":"user","content":"Hi"}]})")
                  .text,
              kBos + "A\n\nB" + kUser + "Hi" + kThinkHeader);
}

TEST(PromptDeepseekV4, AnswerAfterAnswerGetsAHeader) {
    const std::string request = R"({"thinking":{"type":"disabled"},"messages":[{"role":"user","content":"a"},
        {"role":"assistant","content":"b"},{"role":"assistant"},{"role":"assistant","content":"c"},
        {"role":"user","content":"d"}]})";
    EXPECT_EQ(from_request(request).text,
              kBos + kUser + "a" + kChatHeader + "b" + kEos + kChatHeader + "c" + kEos + kUser + "d" + kChatHeader);
}

TEST(PromptDeepseekV4, ClosedAnswerAtTheEndOpensANewTurn) {
    const std::string messages = R"("messages":[{"role":"user","content":"a"},
        {"role":"assistant","content":"b","reasoning":"r"}])";
    const std::string closed = kBos + kUser + "a" + kThinkHeader + "r</think>b" + kEos;
    EXPECT_EQ(from_request("{" + messages + "}").text, closed + kThinkHeader);
    EXPECT_EQ(from_request("{" + messages + R"(,"add_generation_prompt":false})").text, closed);
    EXPECT_EQ(from_request("{" + messages + R"(,"continue_final_message":true})").text,
              kBos + kUser + "a" + kThinkHeader + "r</think>b");
    EXPECT_THROW(from_request("{" + messages + R"(,"continue_final_message":true,"add_generation_prompt":true})"),
                 Error);
}

TEST(PromptDeepseekV4, EffortWordsMeanOtherThingsInEachRevision) {
    const auto starts = [](const std::string& effort, PromptRevision revision) {
        const Prompt prompt = from_request(
            R"({"messages":[{"role":"user","content":"Hi"}],"reasoning_effort":)" + effort + "}", revision);
        const std::string rest = prompt.text.substr(kBos.size());
        return rest.substr(0, rest.find(revision == PromptRevision::kV4_1 ? " (range" : "\n"));
    };
    const std::string plain = kUser + "Hi" + kThinkHeader;
    const std::string text_a = "Reasoning Effort: Absolute maximum with no shortcuts permitted.";
    const std::string text_b = "Reasoning Effort: Beyond maximum — exhaustive, relentless, and uncompromising.";
    for (const std::string word : {"\"minimal\"", "\"low\"", "\"medium\"", "\"high\"", "null"})
        EXPECT_EQ(starts(word, PromptRevision::kV4), plain) << word;
    EXPECT_EQ(starts("\"xhigh\"", PromptRevision::kV4), text_a);
    EXPECT_EQ(starts("\"max\"", PromptRevision::kV4), text_a);
    EXPECT_EQ(starts("\"medium\"", PromptRevision::kV4_0731), plain);
    EXPECT_EQ(starts("null", PromptRevision::kV4_0731), text_a);
    EXPECT_EQ(starts("\"xhigh\"", PromptRevision::kV4_0731), text_a);
    EXPECT_EQ(starts("\"max\"", PromptRevision::kV4_0731), text_b);
    EXPECT_EQ(starts("\"medium\"", PromptRevision::kV4_1), "<｜System｜>Reasoning Effort: 25");
    EXPECT_EQ(starts("\"xhigh\"", PromptRevision::kV4_1), "<｜System｜>Reasoning Effort: 75");
    EXPECT_EQ(starts("7", PromptRevision::kV4_1), "<｜System｜>Reasoning Effort: 7");
    EXPECT_THROW(starts("7", PromptRevision::kV4), Error);
    EXPECT_THROW(starts("0", PromptRevision::kV4_1), Error);
    EXPECT_THROW(starts("101", PromptRevision::kV4_1), Error);
    EXPECT_THROW(starts("\"hihg\"", PromptRevision::kV4_0731), Error);
}

TEST(PromptDeepseekV4, ThinkingSwitchesInOrderOfStrength) {
    const auto thinks = [](const std::string& fields, bool by_default) {
        ChatDefaults defaults;
        defaults.thinking = by_default;
        const std::string request = R"({"messages":[{"role":"user","content":"Hi"}])" + fields + "}";
        return chat_from_openai(parse_json(request, "request"), PromptRevision::kV4, defaults).options.thinking;
    };
    EXPECT_TRUE(thinks("", true));
    EXPECT_FALSE(thinks("", false));
    EXPECT_FALSE(thinks(R"(,"reasoning_effort":"none")", true));
    EXPECT_TRUE(thinks(R"(,"reasoning":{"effort":"low"})", false));
    EXPECT_TRUE(thinks(R"(,"reasoning_effort":"none","chat_template_kwargs":{"thinking":true})", true));
    EXPECT_FALSE(thinks(R"(,"chat_template_kwargs":{"enable_thinking":false})", true));
    EXPECT_FALSE(thinks(R"(,"thinking":{"type":"disabled"},"chat_template_kwargs":{"thinking":true})", true));
    EXPECT_THROW(thinks(R"(,"thinking":{"type":"maybe"})", true), Error);
}

TEST(PromptDeepseekV4, UnusedToolsAreLeftOut) {
    const std::string fields = R"("messages":[{"role":"user","content":"Hi"}],
        "tools":[{"type":"function","function":{"name":"f"}}])";
    EXPECT_NE(from_request("{" + fields + "}").text.find("## Tools"), std::string::npos);
    EXPECT_EQ(from_request("{" + fields + R"(,"tool_choice":"none"})").text, kBos + kUser + "Hi" + kThinkHeader);
    EXPECT_THROW(from_request("{" + fields + R"(,"tool_choice":{"type":"function","function":{"name":"g"}}})"), Error);
}

TEST(PromptDeepseekV4, TaskSurvivesMerging) {
    EXPECT_EQ(from_request(R"({"task":"query","thinking":{"type":"disabled"},"messages":[
                  {"role":"user","content":"a"},{"role":"user","content":"b"}]})")
                  .text,
              kBos + kUser + "a\n\nb<｜query｜>");
}

TEST(PromptDeepseekV4, BadRequestsNameTheField) {
    const auto message_of = [](const std::string& request) -> std::string {
        try {
            from_request(request);
        } catch (const Error& error) {
            return error.what();
        }
        return "no error";
    };
    EXPECT_EQ(message_of("{}"), "messages is missing or empty, expected an array of messages");
    EXPECT_EQ(message_of(R"({"messages":[{"role":"user"}]})"), "messages[0].content is missing, expected a string");
    EXPECT_EQ(message_of(R"({"messages":[{"role":"user","content":[{"type":"image_url"}]}]})"),
              "messages[0].content[0].type is \"image_url\", not supported by this model, expected text");
    for (const std::string bad :
         {R"([])", R"({"messages":[1]})", R"({"messages":[{"role":"function","content":""}]})",
          R"({"messages":[{"role":"user","content":5}]})", R"({"messages":[{"role":5,"content":"a"}]})",
          R"({"messages":[{"role":"user","content":[5]}]})", R"({"messages":[{"role":"assistant","tool_calls":[{}]}]})",
          R"({"messages":[{"role":"assistant","tool_calls":5}]})",
          R"({"messages":[{"role":"user","content":"a"}],"tools":5})",
          R"({"messages":[{"role":"user","content":"a"}],"tools":[{"function":{"name":"a b"}}]})",
          R"({"messages":[{"role":"user","content":"a"}],"tools":[5]})",
          R"({"messages":[{"role":"user","content":"a"}],"tool_choice":5})",
          R"({"messages":[{"role":"user","content":"a"}],"response_format":{"type":"json_schema"}})",
          R"({"messages":[{"role":"user","content":"a"}],"chat_template_kwargs":5})",
          R"({"messages":[{"role":"user","content":"a"}],"task":"sing"})",
          R"({"messages":[{"role":"system","content":"a"}],"task":"query"})"})
        EXPECT_THROW(from_request(bad), Error) << bad;
}

TEST(PromptRevision, FromWhatLiesBesideTheWeights) {
    EXPECT_EQ(revision_from_encoder_source("REASONING_EFFORT_MAX = 1"), PromptRevision::kV4);
    EXPECT_EQ(revision_from_encoder_source("REASONING_EFFORT_PROMPTS"), PromptRevision::kV4_0731);
    EXPECT_EQ(revision_from_encoder_source("REASONING_EFFORT_MAPPINGS"), PromptRevision::kV4_1);
    EXPECT_EQ(revision_from_encoder_source("print()"), std::nullopt);
    EXPECT_EQ(revision_from_chat_template("Beyond maximum"), PromptRevision::kV4_0731);
    EXPECT_EQ(revision_from_chat_template("{{ '<｜System｜>' }} ｜DSML｜"), PromptRevision::kV4_1);
    EXPECT_EQ(revision_from_chat_template("｜DSML｜"), PromptRevision::kV4);
    EXPECT_EQ(revision_from_chat_template("<|im_start|>"), std::nullopt);

    const auto directory = std::filesystem::temp_directory_path() / ("prompt_revision_" + std::to_string(getpid()));
    std::filesystem::create_directories(directory / "encoding");
    std::ofstream(directory / "encoding" / "encoding_dsv4.py") << "REASONING_EFFORT_PROMPTS = {}\n";
    EXPECT_EQ(detect_prompt_revision("auto", directory, "", "V4.1").revision, PromptRevision::kV4_0731);
    EXPECT_EQ(detect_prompt_revision("v4", directory, "", "V4.1").revision, PromptRevision::kV4);
    std::filesystem::remove_all(directory);
    EXPECT_EQ(detect_prompt_revision("", directory, "", "V4.1-Flash").revision, PromptRevision::kV4_1);
    EXPECT_EQ(detect_prompt_revision("", "", "", "DeepSeek-V4-Flash-0731").revision, PromptRevision::kV4_0731);
    EXPECT_TRUE(detect_prompt_revision("", "", "", "demo").is_guess);
    EXPECT_THROW(detect_prompt_revision("v5", "", "", ""), Error);
}

TEST(PythonJson, SpellsLikePython) {
    const std::pair<const char*, const char*> kCases[] = {
        {R"({"b":1,"a":[1,2.50,{}],"b":"x"})", R"({"b": "x", "a": [1, 2.5, {}]})"},
        {"123456789012345678901234567890", "123456789012345678901234567890"},
        {"-0", "0"},
        {"-0.0", "-0.0"},
        {"1e5", "100000.0"},
        {"1e15", "1000000000000000.0"},
        {"1e16", "1e+16"},
        {"1.25E+300", "1.25e+300"},
        {"0.0001", "0.0001"},
        {"0.00001", "1e-05"},
        {"123.456", "123.456"},
        {"1e-400", "0.0"},
        {R"("\u00e9\ud83d\ude42\ud800x\/\u001f\u007f")", "\"é🙂\uFFFDx/\\u001f\x7f\""},
        {" [ true , false , null ] ", "[true, false, null]"}};
    for (const auto& [text, expected] : kCases) EXPECT_EQ(python_json_text(text), expected) << text;
    for (const char* bad :
         {"", "01", "1.", "[1,]", "{\"a\"}", "nul", "\"\n\"", "\"\\x\"", "1 2", "{", "1e400", "\"\\u12\""})
        EXPECT_EQ(python_json_text(bad), std::nullopt) << bad;
    EXPECT_EQ(python_json_text(std::string(100000, '[')), std::nullopt);
}

}  // namespace
}  // namespace thermocline::text
