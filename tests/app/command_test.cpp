// The contract of the command line (cli.md): exit statuses, one-line reasons, flags, config files, the demo model.
#include "tests/app/command.h"

#include "src/base/json.h"

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <gtest/gtest.h>

namespace thermocline::app {
namespace {

const std::string kRoot = THERMOCLINE_SOURCE_DIR;
const std::string kTiny = kRoot + "/tests/golden/models/f0-control-valid";
const std::string kDemo = kRoot + "/models/demo";

std::string temp_file(const std::string& name, const std::string& text) {
    const auto path = std::filesystem::path(testing::TempDir()) / name;
    std::ofstream(path) << text;
    return path.string();
}

void expect_refused(const Ran& ran, const std::string& part) {
    EXPECT_EQ(ran.status, 1) << ran.out;
    EXPECT_NE(ran.err.find(part), std::string::npos) << ran.err;
    EXPECT_EQ(std::count(ran.err.begin(), ran.err.end(), '\n'), 1) << ran.err;
}

Ran score(const std::string& tokens, std::vector<std::string> more = {}) {
    std::vector<std::string> arguments{"score",       kTiny, "--tokens", temp_file("tokens.json", tokens),
                                       "--log-level", "off"};
    arguments.insert(arguments.end(), more.begin(), more.end());
    return run_command(arguments);
}

TEST(Command, UsageErrorsEndWithTwo) {
    EXPECT_EQ(run_command({}).status, 2);
    EXPECT_EQ(run_command({"sing"}).status, 2);
    EXPECT_EQ(run_command({"score", kTiny}).status, 2);  // --tokens is required
    EXPECT_EQ(run_command({"run", "--threads", "many"}).status, 2);
    EXPECT_EQ(run_command({"run", "--kv-cache-dtype", "int1"}).status, 2);
}

TEST(Command, HelpNamesEveryFlag) {
    for (const char* command : {"run", "serve", "score", "perplexity"}) {
        const Ran ran = run_command({command, "--help"});
        EXPECT_EQ(ran.status, 0);
        for (const char* flag :
             {"--max-model-len", "--kv-cache-dtype", "--activations", "--threads", "--isa", "--config"})
            EXPECT_NE(ran.out.find(flag), std::string::npos) << command << " " << flag;
    }
}

TEST(Command, MissingModelsAreNamed) {
    expect_refused(run_command({"inspect", "/no/such/model"}), "/no/such/model");
    expect_refused(run_command({"inspect", "/tmp"}), "/tmp");
    expect_refused(run_command({"inspect", kRoot + "/README.md"}), "README.md");
}

TEST(Score, BadTokensAreNamed) {
    expect_refused(score("[]"), "array");
    expect_refused(score("[[1, 2], []]"), "sequence 1 is empty");
    expect_refused(score("[0, 1, 100000]"), "token 2 is 100000");
    expect_refused(score("[0, -1]"), "token 1 is -1");
    expect_refused(score("[0, 1.5]"), "token 1 is 1.5");
    expect_refused(score("{\"a\": 1}"), "array");
    expect_refused(score("[0, 1"), "not valid JSON");
    expect_refused(score("[1, 2, 3]", {"--max-model-len", "2"}), "has 3 tokens, expected at most 2");
    expect_refused(score("[1]", {"--max-model-len", "100000000"}), "--max-model-len is 100000000");
    expect_refused(score("[1]", {"--threads", "1000"}), "--threads is 1000");
}

TEST(Score, OneTokenHasNoPerplexity) {
    const Ran ran = score("[3]", {"--json"});
    ASSERT_EQ(ran.status, 0) << ran.err;
    const Json out = parse_json(ran.out, "stdout");
    EXPECT_TRUE(out["perplexity"].is_null());
    EXPECT_EQ(out["sequences"][0]["top"].size(), 1u);
    EXPECT_EQ(out["sequences"][0]["top"][0].size(), 20u);
}

TEST(Score, ChunksAndDecodeGiveTheSameNumbers) {
    const std::string tokens = "[0, 53, 27, 56, 34, 59, 7, 40, 8, 36, 50, 56, 1, 2, 3, 4, 5]";
    const Json whole = parse_json(score(tokens, {"--json", "--kv-cache-dtype", "f32"}).out, "whole");
    for (const std::vector<std::string>& how : {std::vector<std::string>{"--chunk", "1"},
                                                {"--chunk", "3"},
                                                {"--decode-from", "0"},
                                                {"--decode-from", "5"},
                                                {"--decode-from", "99"}}) {
        std::vector<std::string> flags{"--json", "--kv-cache-dtype", "f32"};
        flags.insert(flags.end(), how.begin(), how.end());
        EXPECT_EQ(parse_json(score(tokens, flags).out, "part")["sequences"], whole["sequences"])
            << how[0] << " " << how[1];
    }
}

TEST(Score, WritesLogitsAsNpy) {
    const std::string path = testing::TempDir() + "/logits.npy";
    ASSERT_EQ(score("[1, 2, 3]", {"--logits", path}).status, 0);
    std::ifstream file(path, std::ios::binary);
    const std::string bytes((std::istreambuf_iterator<char>(file)), {});
    EXPECT_EQ(bytes.substr(1, 5), "NUMPY");
    EXPECT_NE(bytes.find("'shape': (3, "), std::string::npos);
    EXPECT_EQ(bytes.find('\n') % 64, 63u);
    expect_refused(score("[1]", {"--logits", "/no/such/folder/x.npy"}), "/no/such/folder/x.npy");
}

TEST(Config, FileGivesFlagsAndTheCommandLineWins) {
    const std::string file =
        temp_file("config.json", R"({"top": 3, "json": true, "threads": "auto", "log-level": "off"})");
    EXPECT_EQ(parse_json(score("[1]", {"--config", file}).out, "stdout")["sequences"][0]["top"][0].size(), 3u);
    EXPECT_EQ(parse_json(score("[1]", {"--config", file, "--top", "5"}).out, "stdout")["sequences"][0]["top"][0].size(),
              5u);
    EXPECT_EQ(score("[1]", {"--config", temp_file("bad.json", R"({"no-such-flag": 1})")}).status, 2);
    expect_refused(score("[1]", {"--config", temp_file("bad.json", "[1]")}), "expected an object");
    expect_refused(score("[1]", {"--config", temp_file("bad.json", R"({"top": [1]})")}), "top is array");
}

TEST(Demo, ContinuesAPromptTheSameWayTwice) {
    const std::vector<std::string> arguments{"run", kDemo, "-p",     "And the LORD said unto Moses,",
                                             "-n",  "12",  "--seed", "3"};
    const Ran first = run_command(arguments), second = run_command(arguments);
    ASSERT_EQ(first.status, 0) << first.err;
    EXPECT_EQ(first.out, second.out);
    EXPECT_GT(first.out.size(), 45u);
    EXPECT_NE(first.err.find("tok/s"), std::string::npos) << first.err;
}

TEST(Demo, ChatsResetsAndSurvivesNonsense) {
    const Ran ran = run_command({"run", kDemo, "-n", "8", "--temperature", "0"},
                                "Who was Moses?\n/stats\n/nonsense\n\n/reset\nWho was Moses?\n/exit\n");
    ASSERT_EQ(ran.status, 0) << ran.err;
    EXPECT_NE(ran.err.find("/nonsense is no command"), std::string::npos);
    EXPECT_NE(ran.err.find("tok/s"), std::string::npos);
    // After /reset the same question gets the same answer.
    const size_t half = ran.out.size() / 2;
    EXPECT_EQ(ran.out.substr(0, half), ran.out.substr(half)) << ran.out;
}

TEST(Demo, PromptsThatCannotRunAreRefused) {
    expect_refused(
        run_command({"run", kDemo, "--log-level", "off", "-p", "one two three four five six", "--max-model-len", "3"}),
        "3");
    EXPECT_EQ(run_command({"run", kDemo, "-p", "x", "-n", "0"}).status, 0);
}

TEST(Demo, PerplexityIsThatOfATrainedModel) {
    const Ran ran = run_command({"perplexity", kDemo, "-f",
                                 temp_file("text",
                                           "And the LORD said unto Moses, Speak unto the "
                                           "children of Israel, and say unto them."),
                                 "--json", "--max-model-len", "64"});
    ASSERT_EQ(ran.status, 0) << ran.err;
    const Json out = parse_json(ran.out, "stdout");
    EXPECT_LT(out["perplexity"].get<double>(), 60.0);  // uniform would be 4096
    EXPECT_GT(out["perplexity"].get<double>(), 1.0);
    EXPECT_GT(out["tokens"].get<int64_t>(), 15);
}

}  // namespace
}  // namespace thermocline::app
