// The contract of the command line (cli.md): exit statuses, one-line reasons, flags, config files, the demo model.
#include "tests/app/command.h"

#include "src/base/file.h"
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
    EXPECT_EQ(run_command({"convert", "--help"}).status, 0);
    for (const char* command : {"run", "serve", "score", "perplexity", "bench"}) {
        const Ran ran = run_command({command, "--help"});
        EXPECT_EQ(ran.status, 0);
        for (const char* flag : {"--max-model-len", "--kv-cache-dtype", "--activations", "--threads", "--isa", "--numa",
                                 "--load-format", "--layers", "--config"})
            EXPECT_NE(ran.out.find(flag), std::string::npos) << command << " " << flag;
    }
}

TEST(Command, MissingModelsAreNamed) {
    expect_refused(run_command({"inspect", "/no/such/model"}), "/no/such/model");
    expect_refused(run_command({"inspect", "/tmp"}), "/tmp");
    expect_refused(run_command({"inspect", kRoot + "/README.md"}), "README.md");
}

TEST(Plan, AModelThatIsNotHereOnAMachineThatIsNot) {
    const Ran ran = run_command({"plan", "deepseek-v4-flash", "--machine", "rtx5090-am5-2ch", "--json"});
    ASSERT_EQ(ran.status, 0) << ran.err;
    const Json answer = parse_json(ran.out, "stdout");
    EXPECT_EQ(answer["model"], "deepseek-v4-flash");
    EXPECT_EQ(answer["fits"], true);
    EXPECT_GT(answer["gpu"]["expert_slots"], 1000);
    EXPECT_NEAR(answer["expected"]["target"]["decode"]["tokens_per_s"], 39.0, 3.0);  // hybrid-engine.md 1.6
    const Ran text = run_command({"plan", "--machine", "zen3-vm-2core"});            // the demo model fits anywhere
    EXPECT_EQ(text.status, 0) << text.err;
    EXPECT_NE(text.out.find("upper bound"), std::string::npos) << text.out;
}

TEST(Plan, RefusalsSayWhatToChange) {
    const Ran ran =
        run_command({"plan", "deepseek-v4-pro", "--machine", "rtx5090-epyc9004-12ch", "--gpu-memory", "24GB"});
    expect_refused(ran, "dense weights");
    EXPECT_NE(ran.out.find("budget"), std::string::npos) << ran.out;  // the table all the same
    expect_refused(run_command({"plan", "--machine", "abacus"}), "dgx-spark");
    expect_refused(run_command({"plan", "--machine", kRoot + "/configs/models/demo.json"}),
                   "thermocline_machine is missing");
    expect_refused(run_command({"plan", "--machine", "dgx-spark", "--gpu-memory", "much"}), "--gpu-memory is");
    expect_refused(run_command({"plan", "--machine", "dgx-spark", "--context", "100000000"}), "--context is");
    expect_refused(run_command({"plan", "deepseek-v5", "--machine", "dgx-spark"}), "no name in configs/models");
    EXPECT_EQ(run_command({"plan", "--concurrency", "0"}).status, 2);
}

TEST(Doctor, ItsStatusIsTheWorstFinding) {
    const Ran ran = run_command({"doctor", "--json"});
    const Json report = parse_json(ran.out, "stdout");
    EXPECT_GT(report["findings"].size(), 8u);
    const std::string worst = report["worst"];
    EXPECT_EQ(ran.status, worst == "error" ? 1 : worst == "warning" ? 3 : 0) << ran.out;
    EXPECT_EQ(ran.err.empty(), worst != "error") << ran.err;
    const Ran text = run_command({"doctor"});
    EXPECT_EQ(text.status, ran.status);
    EXPECT_NE(text.out.find("Memory\n"), std::string::npos) << text.out;
    EXPECT_EQ(text.out.find('\033'), std::string::npos);  // no colours in a file
    EXPECT_NE(run_command({"doctor", "--help"}).out.find("Exit status"), std::string::npos);
    EXPECT_EQ(run_command({"doctor", "--cure"}).status, 2);
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

const std::vector<std::string> kQuickBench = {"bench", kDemo, "-p", "8", "-n", "4", "-r", "2", "--threads", "1"};

Ran bench(std::vector<std::string> more) {
    more.insert(more.begin(), kQuickBench.begin(), kQuickBench.end());
    return run_command(more);
}

TEST(Bench, EveryRowHasTheColumnsOfTheContract) {
    const Ran ran = bench({"-o", "json", "-d", "0,300", "-b", "1,3", "-t", "1"});
    ASSERT_EQ(ran.status, 0) << ran.err;
    const Json rows = parse_json(ran.out, "stdout");
    ASSERT_EQ(rows.size(), 8u);
    const std::vector<std::string> columns = {"test",
                                              "threads",
                                              "depth",
                                              "batch",
                                              "tokens_per_s",
                                              "stddev",
                                              "bytes_per_token",
                                              "gb_per_s",
                                              "bandwidth_gb_per_s",
                                              "fraction_of_bandwidth",
                                              "gflops",
                                              "fraction_of_peak",
                                              "placement",
                                              "model",
                                              "format",
                                              "isa",
                                              "gpu",
                                              "routing"};
    for (const Json& row : rows) {
        std::vector<std::string> keys;
        for (const auto& [key, value] : row.items()) keys.push_back(key);
        EXPECT_EQ(keys, columns);
        for (const char* rate : {"tokens_per_s", "bytes_per_token", "gb_per_s", "bandwidth_gb_per_s", "gflops"})
            EXPECT_GT(row[rate].get<double>(), 0.0) << rate;
        EXPECT_EQ(row["model"], "demo");
        EXPECT_EQ(row["routing"], "model");
    }
    EXPECT_EQ(rows[0]["test"], "pp8");
    EXPECT_EQ(rows[1]["test"], "tg4");
    // One token reads what three read together, but for the routed experts; a context adds its own bytes.
    EXPECT_LT(rows[3]["bytes_per_token"], rows[1]["bytes_per_token"]);
    EXPECT_GT(rows[5]["bytes_per_token"], rows[1]["bytes_per_token"]);
}

TEST(Bench, OtherFormatsHaveTheSameRows) {
    const Ran csv = bench({"-o", "csv"}), lines = bench({"-o", "jsonl"}), table = bench({"--profile-steps"});
    EXPECT_EQ(csv.out.rfind("test,threads,depth,batch,tokens_per_s,stddev,bytes_per_token", 0), 0u) << csv.out;
    EXPECT_EQ(std::count(csv.out.begin(), csv.out.end(), '\n'), 3);
    EXPECT_EQ(parse_json(lines.out.substr(0, lines.out.find('\n')), "line")["test"], "pp8");
    EXPECT_EQ(table.out.rfind("| test | threads |", 0), 0u) << table.out;
    for (const char* part : {"operator", "calls", "share", "Experts", "Linear attn.wq_b", "Attention ratio 4", "all"})
        EXPECT_NE(table.out.find(part), std::string::npos) << part;
}

TEST(Bench, RowsOfACardTellWhatTheCpuDid) {
    const Ran ran = bench({"-o", "json", "--gpus", "emulated", "--log-level", "off", "-p", "4", "-n", "2"});
    ASSERT_EQ(ran.status, 0) << ran.err;
    const Json rows = parse_json(ran.out, "stdout");
    ASSERT_EQ(rows.size(), 2u);
    for (const Json& row : rows) {
        EXPECT_EQ(row["gpu"], "emulated");
        EXPECT_EQ(row["placement"].get<std::string>().rfind("auto, ", 0), 0u) << row["placement"];
        EXPECT_GE(row["hit_rate"].get<double>(), 0.0);
        EXPECT_TRUE(row["bandwidth_gb_per_s"].is_null());  // an emulated card has none
    }
    EXPECT_TRUE(rows[0]["exposed_ms_per_token"].is_null());
    EXPECT_GE(rows[1]["cpu_ms_per_token"].get<double>(), rows[1]["exposed_ms_per_token"].get<double>());
    expect_refused(bench({"--placement", "x.json", "--log-level", "off"}), "--gpus is none");
    expect_refused(bench({"--gpus", "emulated", "-t", "1,2", "--log-level", "off"}), "one number of threads");
}

TEST(Bench, WhatCannotRunIsRefused) {
    EXPECT_EQ(bench({"-p", "many"}).status, 2);
    EXPECT_EQ(bench({"-p", "8,"}).status, 2);
    EXPECT_EQ(bench({"-b", "0"}).status, 2);
    EXPECT_EQ(bench({"-o", "xml"}).status, 2);
    expect_refused(bench({"-p", "0", "-n", "0"}), "nothing to measure");
    expect_refused(bench({"-t", "1000", "--log-level", "off"}), "expected 1 to");
    expect_refused(bench({"-d", "16380", "-p", "8", "--log-level", "off"}), "16388 tokens, expected at most 16384");
}

TEST(Bench, RoutingIsDrawnOrReplayed) {
    const std::string trace = temp_file("trace.jsonl", "");
    const std::string tokens = temp_file("tokens.json", "[5, 6, 7, 8, 9, 10, 11, 12, 13, 14]");
    const std::vector<std::string> score = {"score", kDemo, "--tokens", tokens, "--log-level", "off", "--json"};
    const auto scored = [&](std::vector<std::string> more) {
        more.insert(more.begin(), score.begin(), score.end());
        return run_command(more);
    };
    const Ran recorded = scored({"--record-routing", trace, "--decode-from", "6"});
    ASSERT_EQ(recorded.status, 0) << recorded.err;
    EXPECT_EQ(recorded.out, scored({"--decode-from", "6"}).out);
    const std::string text = read_text(trace);
    EXPECT_EQ(std::count(text.begin(), text.end(), '\n'), 6);  // head, a prompt of 6, four tokens
    expect_refused(scored({"--record-routing", "/no/such/folder/x"}), "/no/such/folder/x: cannot write");

    // With replayed experts a token reads what it reads with its own; every kind names itself.
    for (const std::string& routing : {trace, std::string("uniform"), std::string("zipf:1.5")}) {
        const Ran ran = bench({"-o", "json", "--routing", routing});
        ASSERT_EQ(ran.status, 0) << ran.err;
        const Json rows = parse_json(ran.out, "stdout");
        EXPECT_EQ(rows[0]["routing"], routing);
        EXPECT_GT(rows[1]["tokens_per_s"], 0.0);
    }
    EXPECT_EQ(bench({"--routing", "zipf:9"}).status, 2);
    EXPECT_EQ(bench({"--routing", "no-such-trace"}).status, 2);
    expect_refused(bench({"--routing", temp_file("wrong.jsonl", "{}\n"), "--log-level", "off"}), "line 1");
    expect_refused(run_command({"bench", "deepseek-v4-flash", "--load-format", "dummy", "--layers", "1", "--routing",
                                trace, "--log-level", "off", "--max-model-len", "8", "-p", "1", "-n", "0"}),
                   "but deepseek-v4-flash has 1 layers, 256 experts, top 6");
}

TEST(Convert, TheDirectoryIsAModel) {
    const auto folder = std::filesystem::path(testing::TempDir()) / "thermocline_converted";
    std::filesystem::remove_all(folder);
    const Ran ran = run_command({"convert", kDemo, "-o", folder.string(), "--threads", "2"});
    ASSERT_EQ(ran.status, 0) << ran.err;
    EXPECT_NE(ran.out.find("GB written"), std::string::npos) << ran.out;

    const std::string tokens = temp_file("tokens.json", "[5, 6, 7, 8, 9, 10, 11, 12, 13, 14]");
    const auto scored = [&](const std::string& model, std::vector<std::string> more) {
        const std::vector<std::string> score = {"score", model, "--tokens", tokens, "--json", "--log-level", "off"};
        more.insert(more.begin(), score.begin(), score.end());
        const Ran out = run_command(more);
        EXPECT_EQ(out.status, 0) << out.err;
        return parse_json(out.out, "stdout")["sequences"];
    };
    EXPECT_EQ(scored(folder.string(), {}), scored(kDemo, {}));
    EXPECT_EQ(scored(folder.string(), {"--weights-in-place"}), scored(kDemo, {}));  // mapped packed either way
    EXPECT_EQ(scored(folder.string(), {"--activations", "int8"}), scored(kDemo, {"--activations", "int8"}));
    EXPECT_EQ(scored(folder.string(), {"--layers", "2"}), scored(kDemo, {"--layers", "2"}));

    const auto said = [](const std::string& model) {
        return run_command({"run", model, "-p", "And the LORD said", "-n", "8", "--log-level", "off"}).out;
    };
    EXPECT_EQ(said(folder.string()), said(kDemo));
    const Ran inspected = run_command({"inspect", folder.string()});
    EXPECT_EQ(inspected.status, 0) << inspected.err;
    EXPECT_NE(inspected.out.find("converted from safetensors " + kDemo), std::string::npos) << inspected.out;

    expect_refused(run_command({"convert", kDemo, "-o", folder.string(), "--log-level", "off"}), "is not empty");
    expect_refused(run_command({"convert", folder.string(), "-o", folder.string() + "2", "--log-level", "off"}),
                   "is converted already");
    EXPECT_EQ(run_command({"convert", kDemo}).status, 2);

    // One bit of a matrix: starting does not read it, inspect does.
    std::fstream weights(folder / "weights.bin", std::ios::binary | std::ios::in | std::ios::out);
    weights.seekg(1 << 20);
    const int byte = weights.get();
    weights.seekp(1 << 20).put(static_cast<char>(byte ^ 1));
    weights.close();
    const Ran damaged = run_command({"inspect", folder.string()});
    EXPECT_EQ(damaged.status, 1);
    EXPECT_NE(damaged.out.find("is damaged (wrong checksum): convert the model again"), std::string::npos);
    std::filesystem::remove_all(folder);
}

TEST(Dummy, PackingNeedsLittleMoreThanThePackedWeights) {
    Json config = parse_json(read_text(kDemo + "/config.json"), "config.json");
    config["moe_intermediate_size"] = 1024;
    config["num_nextn_predict_layers"] = 0;
    config["compress_ratios"] = {0, 4, 128, 4};
    const auto peak = [&](int experts) {
        config["n_routed_experts"] = experts;
        const Ran ran = run_command({"score", temp_file("large.json", dump_json(config)), "--load-format", "dummy",
                                     "--tokens", temp_file("tokens.json", "[1]"), "--threads", "2"});
        EXPECT_EQ(ran.status, 0) << ran.err;
        return ran.peak_kib;
    };
    // Of an expert: three matrices of 256 x 1024 in blocks of 17 bytes for 32 numbers. Made first and packed then, the
    // codes alone would be there twice.
    const long more = peak(512) - peak(128), packed = 384L * 4 * 3 * 256 * 1024 / 32 * 17 / 1024;
    EXPECT_GT(more, packed * 9 / 10);
    EXPECT_LT(more, packed * 11 / 10 * MEMORY_FACTOR);
}

TEST(Dummy, NamesAndFilesOfConfigsLoad) {
    const std::string tokens = temp_file("tokens.json", "[1, 2, 3, 4, 5]");
    const auto scored = [&](const std::string& model, const char* seed, const char* layers) {
        return run_command({"score", model, "--load-format", "dummy", "--tokens", tokens, "--json", "--seed", seed,
                            "--layers", layers, "--log-level", "off"});
    };
    const Ran first = scored(kDemo + "/config.json", "0", "0");
    ASSERT_EQ(first.status, 0) << first.err;
    EXPECT_GT(parse_json(first.out, "stdout")["perplexity"].get<double>(), 100.0);  // finite, and it knows nothing
    const auto sequences = [](const Ran& ran) { return parse_json(ran.out, "stdout")["sequences"]; };
    EXPECT_EQ(sequences(scored(kDemo, "0", "0")), sequences(first));
    EXPECT_EQ(sequences(scored("demo", "0", "0")), sequences(first));  // configs/models
    EXPECT_NE(sequences(scored(kDemo, "1", "0")), sequences(first));
    EXPECT_NE(sequences(scored(kDemo, "0", "2")), sequences(first));

    const std::vector<std::string> score = {"score", "--tokens", tokens, "--log-level", "off"};
    const auto refused = [&](std::vector<std::string> more, const char* part) {
        more.insert(more.begin(), score.begin(), score.end());
        expect_refused(run_command(more), part);
    };
    refused({"deepseek-v4-flash"}, "needs --load-format dummy");
    refused({kDemo + "/config.json"}, "needs --load-format dummy");
    refused({"no-such-model", "--load-format", "dummy"}, "deepseek-v4-flash, deepseek-v4-pro, demo");
    refused({"/no/such/model", "--load-format", "dummy"}, "/no/such/model");

    const std::string config = temp_file("lonely.json", read_text(kDemo + "/config.json"));
    expect_refused(run_command({"run", config, "--load-format", "dummy", "-p", "x", "--log-level", "off"}),
                   "without a tokenizer");
}

TEST(BenchMachine, WritesAMachineFile) {
    const std::string path = testing::TempDir() + "/machine.json";
    const Ran ran = run_command({"bench-machine", "--json", "-o", path});
    ASSERT_EQ(ran.status, 0) << ran.err;
    const Json machine = parse_json(ran.out, "stdout");
    std::ifstream file(path);
    EXPECT_EQ(parse_json(std::string(std::istreambuf_iterator<char>(file), {}), path), machine);
    ASSERT_GE(machine["nodes"].size(), 1u);
    const Json& node = machine["nodes"][0];
    EXPECT_EQ(node["read_gb_per_s"].size(), node["cores"].get<size_t>());
    EXPECT_GT(node["read_gb_per_s"][0], 0.5);
    EXPECT_GT(machine["all"]["copy_gb_per_s"], 0.5);
    EXPECT_GT(machine["peaks_gops"]["scalar"]["f32"]["one_core"], 0.5);
    EXPECT_FALSE(machine["caches"].empty());
    expect_refused(run_command({"bench-machine", "-o", "/no/such/folder/x.json"}), "/no/such/folder/x.json");
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
    expect_refused(run_command({"run", kDemo, "--log-level", "off", "-p", ""}), "the prompt is empty");
    expect_refused(run_command({"run", kDemo, "--log-level", "off", "-f", temp_file("empty.txt", "")}),
                   "the prompt is empty");
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
