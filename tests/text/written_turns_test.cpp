// Turns as the model wrote them: which message finds which, how many are kept, and which are fit for a history.
#include "src/text/written_turns.h"

#include "src/text/prompt_deepseek_v4.h"

#include <gtest/gtest.h>

namespace thermocline::text {
namespace {

const std::string kEos = "<｜end▁of▁sentence｜>";
const std::string kCall =
    "\n\n<｜DSML｜tool_calls>\n<｜DSML｜invoke name=\"add\">\n"
    "<｜DSML｜parameter name=\"numbers\" string=\"false\">[1,2.0]</｜DSML｜parameter>\n"
    "<｜DSML｜parameter name=\"unit\" string=\"true\">m</｜DSML｜parameter>\n</｜DSML｜invoke>\n</｜DSML｜tool_calls>";

/// A turn that calls a tool, with odd spelling.
WrittenTurn calling_turn() {
    WrittenTurn turn;
    turn.text = "so</think>Let me add.\n" + kCall;
    turn.ids = {5, 6, 7};
    ParserOptions options;
    options.starts_in_reasoning = true;
    turn.said = parse_output(turn.text, options);
    return turn;
}

Message shown(const WrittenTurn& turn) {
    Message message;
    message.role = Role::kAssistant;
    message.content = turn.said.content;
    message.reasoning = turn.said.reasoning;
    message.tool_calls = turn.said.tool_calls;
    return message;
}

bool finds(WrittenTurns& turns, const Message& message) { return turns.find(1, message, true) != nullptr; }

TEST(WrittenTurns, AreFoundByWhatTheySay) {
    WrittenTurns turns(1 << 20);
    const Message asked = shown(calling_turn());
    EXPECT_FALSE(finds(turns, asked));
    turns.keep(1, calling_turn());
    ASSERT_TRUE(finds(turns, asked));
    EXPECT_EQ(turns.find(1, asked, true)->ids, (std::vector<int32_t>{5, 6, 7}));
    EXPECT_EQ(turns.find(2, asked, true), nullptr) << "behind another text";
    EXPECT_EQ(turns.find(1, asked, false), nullptr) << "it thought";

    Message other = asked;
    other.content = " " + other.content + "\n\n";
    other.reasoning += "\n";
    other.tool_calls[0].arguments = "{\"unit\": \"m\", \"numbers\": [1, 2]}";
    EXPECT_TRUE(finds(turns, other)) << "white space, the order of keys and the spelling of numbers";

    for (const char* arguments :
         {"{\"numbers\": [1, 3], \"unit\": \"m\"}", "{\"numbers\": [1, 2]}", "[1, 2", "", "{}"}) {
        other = asked;
        other.tool_calls[0].arguments = arguments;
        EXPECT_FALSE(finds(turns, other)) << arguments;
    }
    other = asked;
    other.tool_calls[0].name = "subtract";
    EXPECT_FALSE(finds(turns, other));
    other = asked;
    other.tool_calls.push_back(other.tool_calls[0]);
    EXPECT_FALSE(finds(turns, other));
    other = asked;
    other.content = "Let me  add.";
    EXPECT_FALSE(finds(turns, other));
    other = asked;
    other.reasoning = "";
    EXPECT_FALSE(finds(turns, other)) << "the client did not return it";
}

TEST(WrittenTurns, TheOneNotUsedForTheLongestTimeGoesFirst) {
    const auto turn = [](int32_t which) {
        WrittenTurn out;
        out.text = out.said.content = std::string(1000, static_cast<char>('a' + which));
        out.ids.assign(1000, which);
        return out;
    };
    WrittenTurns turns(40000);
    turns.keep(0, turn(0));
    const int64_t one = turns.bytes();
    turns.keep(0, turn(0));
    EXPECT_EQ(turns.bytes(), one) << "the same again";
    for (int32_t i = 1; i < 20; ++i) {
        turns.keep(static_cast<uint64_t>(i % 3), turn(i));
        EXPECT_NE(turns.find(0, shown(turn(0)), true), nullptr) << i;
        EXPECT_LE(turns.bytes(), 40000);
    }
    EXPECT_EQ(turns.find(1, shown(turn(1)), true), nullptr);
    EXPECT_NE(turns.find(1, shown(turn(19)), true), nullptr);
    WrittenTurns none(0);
    none.keep(0, turn(0));
    EXPECT_EQ(none.bytes(), 0);
}

TEST(WrittenTurns, OnlyWholeOnesAreFit) {
    const auto is_fit = [](const std::string& text, bool thinks) {
        WrittenTurn turn;
        turn.text = text;
        ParserOptions options;
        options.starts_in_reasoning = thinks;
        turn.said = parse_output(text, options);
        return is_well_formed(turn, PromptRevision::kV4, thinks);
    };
    EXPECT_TRUE(is_fit("so</think>text" + kCall, true));
    EXPECT_TRUE(is_fit("text" + kCall + "\n", false));
    EXPECT_TRUE(is_fit("text", false));
    EXPECT_FALSE(is_fit("never closed", true));
    EXPECT_FALSE(is_fit("a</think>b</think>c", true));
    EXPECT_FALSE(is_fit("<think>a</think>c", false));
    EXPECT_FALSE(is_fit("text" + kCall + "and more", false));
    EXPECT_FALSE(is_fit("text" + kCall + kCall, false));
    for (size_t cut = 20; cut < kCall.size(); cut += 9)
        EXPECT_FALSE(is_fit("text" + kCall.substr(0, cut), false)) << cut;
}

/// Three turns: the second one stands in the third prompt as it was written, the first one was not kept.
TEST(WrittenTurns, StandInLaterPromptsAsTheyWereWritten) {
    WrittenTurns turns(1 << 20);
    Tool tool{"add", parse_json("{\"name\": \"add\"}", "tool")};
    ChatOptions options;
    options.tools = {tool};
    std::vector<Message> messages(1);
    messages[0].content = "Add.";
    messages.push_back(shown(calling_turn()));
    messages[1].content = "Another text.";
    messages.emplace_back().content = "Again.";
    const Prompt second = render_deepseek_v4(messages, options, {&turns, 7});
    ASSERT_TRUE(second.context);
    turns.keep(*second.context, calling_turn());

    messages.push_back(shown(calling_turn()));
    messages[3].content = "Let me add.";
    messages.emplace_back().content = "Thanks.";
    const Prompt canonical = render_deepseek_v4(messages, options),
                 third = render_deepseek_v4(messages, options, {&turns, 7});
    ASSERT_EQ(third.written.size(), 1u);
    EXPECT_EQ(third.written[0].begin, second.text.size());
    EXPECT_EQ(third.text.substr(0, second.text.size()), second.text);
    EXPECT_EQ(third.text.substr(second.text.size()),
              calling_turn().text + kEos + "<｜User｜>Thanks.<｜Assistant｜><think>");
    EXPECT_TRUE(canonical.written.empty());
    EXPECT_NE(canonical.text, third.text) << "the text was odd";
    EXPECT_TRUE(third.starts_in_reasoning);
    EXPECT_TRUE(render_deepseek_v4(messages, options, {&turns, 8}).written.empty()) << "another seed";
    messages[0].content = "Add!";
    EXPECT_TRUE(render_deepseek_v4(messages, options, {&turns, 7}).written.empty()) << "another beginning";
    messages[0].content = "Add.";
    messages.pop_back();
    messages.back().is_prefix = true;
    EXPECT_FALSE(render_deepseek_v4(messages, options, {&turns, 7}).context) << "the turn is begun already";
}

}  // namespace
}  // namespace thermocline::text
