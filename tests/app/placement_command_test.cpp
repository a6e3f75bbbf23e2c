// From prompts to a placement: `profile`, `place` and `run --placement`, as a person would.
#include "src/base/file.h"
#include "src/base/json.h"
#include "tests/app/command.h"

#include <filesystem>
#include <gtest/gtest.h>
#include <map>
#include <sstream>
#include <string>

namespace thermocline::app {
namespace {

const std::string kFolder = (std::filesystem::path(testing::TempDir()) / "thermocline_placement").string();

std::string file(const std::string& name) {
    std::filesystem::create_directories(kFolder);
    return kFolder + "/" + name;
}

void expect_error(const Ran& ran, const std::string& part) {
    EXPECT_EQ(ran.status, 1);
    EXPECT_NE(ran.err.find(part), std::string::npos) << ran.err;
}

TEST(Placement, FromPromptsToResidentExperts) {
    write_text(file("prompts.jsonl"), R"("And it came to pass")"
                                      "\n"
                                      R"({"prompt": "int main() {", "class": "code"})"
                                      "\n\n"
                                      R"({"messages": [{"role": "user", "content": "Who was Noah?"}]})"
                                      "\n");
    const Ran profiled =
        run_command({"profile", "-f", file("prompts.jsonl"), "--max-tokens", "12", "-o", file("profile.json"),
                     "--record-routing", file("trace.jsonl"), "--report", file("report.html"), "--log-level", "off"});
    ASSERT_EQ(profiled.status, 0) << profiled.err;
    EXPECT_NE(profiled.out.find("code: "), std::string::npos) << profiled.out;
    const Json profile = parse_json(read_text(file("profile.json")), "profile");
    ASSERT_EQ(profile["classes"].size(), 2u);
    EXPECT_EQ(profile["classes"][1]["name"], "code");
    EXPECT_EQ(profile["classes"][1]["decode"]["rows"], 11);  // the first of twelve comes from the prompt's last row
    EXPECT_NE(read_text(file("report.html")).find("</svg>"), std::string::npos);

    const Ran drawn = run_command({"profile", "--merge", file("profile.json"), "--report", file("report.png")});
    ASSERT_EQ(drawn.status, 0) << drawn.err;
    EXPECT_EQ(read_text(file("report.png")).substr(0, 4), "\x89PNG");
    EXPECT_FALSE(std::filesystem::exists(file("report.png.part.svg")));
    expect_error(run_command({"profile", "--merge", file("profile.json"), "--report", "/no/such/folder/x.png"}),
                 "/no/such/folder");

    // The trace says the same as the profile, and adds to it.
    const Ran again = run_command({"profile", "--from-trace", file("trace.jsonl"), "--json"});
    ASSERT_EQ(again.status, 0) << again.err;
    EXPECT_EQ(parse_json(again.out, "stdout"), profile);
    const Ran twice =
        run_command({"profile", "--merge", file("profile.json"), "--merge", file("profile.json"), "--json"});
    EXPECT_EQ(parse_json(twice.out, "stdout")["classes"][1]["decode"]["rows"], 22);

    const Ran placed = run_command({"place", "--profile", file("profile.json"), "--machine", "rtx5090-am5-2ch",
                                    "--gpu-memory", "1039MB", "--pin", "2:7", "-o", file("placement.json")});
    ASSERT_EQ(placed.status, 0) << placed.err;
    const Json placement = parse_json(read_text(file("placement.json")), "placement");
    EXPECT_GT(placement["slots"], 7);
    EXPECT_LT(placement["slots"], 64);
    EXPECT_EQ(placement["resident"][2][0], 7);
    const Ran ran = run_command({"run", "-p", "And it came to pass", "--max-tokens", "4", "--temperature", "0",
                                 "--gpus", "emulated", "--placement", file("placement.json"), "--log-level", "off"});
    EXPECT_EQ(ran.status, 0) << ran.err;
    EXPECT_EQ(ran.out, run_command({"run", "-p", "And it came to pass", "--max-tokens", "4", "--temperature", "0",
                                    "--log-level", "off"})
                           .out);

    // Over two cards: the file says which layers lie where, and whoever reads it splits the same way.
    const Ran split = run_command({"place", "--profile", file("profile.json"), "--machine", "2x-pro6000-epyc9005-12ch",
                                   "--gpus", "2", "--gpu-memory", "1034MB", "-o", file("split.json")});
    ASSERT_EQ(split.status, 0) << split.err;
    EXPECT_NE(split.out.find(" on 2 cards"), std::string::npos) << split.out;
    const Json cards = parse_json(read_text(file("split.json")), "split")["layers_of_cards"];
    ASSERT_EQ(cards.size(), 2u);
    EXPECT_EQ(cards[0].get<int>() + cards[1].get<int>(), 4);
    const Ran on_both = run_command({"run", "-p", "And it came to pass", "--max-tokens", "4", "--temperature", "0",
                                     "--gpus", "emulated:2", "--placement", file("split.json")});
    EXPECT_EQ(on_both.status, 0) << on_both.err;
    EXPECT_EQ(on_both.out, ran.out);
    EXPECT_NE(on_both.err.find("GPU 1: memory of " + std::to_string(cards[1].get<int>()) + " layers"),
              std::string::npos)
        << on_both.err;

    expect_error(
        run_command({"place", "--profile", file("profile.json"), "--machine", "rtx5090-am5-2ch", "--pin", "4:0"}),
        "expert 4:0 cannot be pinned: the model has 4 layers");
    expect_error(run_command({"place", "--profile", file("profile.json"), "--machine", "rtx5090-am5-2ch", "--pin",
                              "2:7", "--pin", "2:7"}),
                 "expert 2:7 is named twice among those to pin");
    expect_error(
        run_command({"place", "--profile", file("profile.json"), "--machine", "rtx5090-am5-2ch", "--pin", "x"}),
        "expected LAYER:EXPERT");
    expect_error(
        run_command({"place", "deepseek-v4-flash", "--profile", file("profile.json"), "--machine", "rtx5090-am5-2ch"}),
        "is of demo (4 layers, 16 experts, top 4), but this is deepseek-v4-flash (43 layers");
    expect_error(run_command({"place", "--profile", file("profile.json"), "--machine", "zen3-vm-2core"}),
                 "has no card");
    expect_error(run_command({"place", "--profile", file("placement.json"), "--machine", "rtx5090-am5-2ch"}),
                 "expected \"thermocline_profile\": 2");
    expect_error(run_command({"run", "-p", "x", "--placement", file("placement.json")}), "--gpus is none");
}

TEST(Plan, CardAndHostMemoryAddUp) {
    std::vector<std::string> plan = {"plan", "deepseek-v4-flash", "--machine", "pro6000-epyc9005-12ch", "--gpu-memory",
                                     "96GB", "--host-memory",     "96GB"};
    const Ran fits = run_command(plan);
    EXPECT_EQ(fits.status, 0) << fits.out << fits.err;
    EXPECT_NE(fits.out.find("on the card alone"), std::string::npos) << fits.out;
    EXPECT_NE(fits.out.find("budget                        96.000 GB"), std::string::npos) << fits.out;
    plan.back() = "32GB";
    expect_error(run_command(plan), "fit nowhere; use --host-memory ");
    plan.push_back("--allow-file-experts");
    plan.push_back("--json");
    const Ran from_file = run_command(plan);
    ASSERT_EQ(from_file.status, 0) << from_file.err;
    const Json json = parse_json(from_file.out, "plan");
    EXPECT_GT(json["tiers"]["file"], 1000);
    EXPECT_GT(json["expected"]["target"]["decode"]["file_s"], 0.0);

    // What place solves for a budget of host memory, run uses.
    const std::vector<std::string> budgets = {"--gpu-memory", "1039MB", "--host-memory", "6MB"};
    write_text(file("prompts.txt"), "And it came to pass");
    ASSERT_EQ(run_command({"profile", "-f", file("prompts.txt"), "--max-tokens", "8", "-o", file("some.json"),
                           "--log-level", "off"})
                  .status,
              0);
    std::vector<std::string> place = {
        "place", "--profile", file("some.json"), "--machine", "rtx5090-am5-2ch", "--context",
        "512",   "-o",        file("core.json")};
    place.insert(place.end(), budgets.begin(), budgets.end());
    const Ran placed = run_command(place);
    ASSERT_EQ(placed.status, 0) << placed.err;
    EXPECT_NE(placed.out.find("lie on the card alone and stay there"), std::string::npos) << placed.out;
    EXPECT_GT(parse_json(read_text(file("core.json")), "placement")["card_only"], 0);
}

TEST(Plan, OfUnequalCardsEachIsPlannedAloneAndAllTogether) {
    Json machine =
        parse_json(read_text(THERMOCLINE_SOURCE_DIR "/configs/machines/rtx5090-epyc9004-12ch.json"), "machine");
    machine["gpus"].push_back(parse_json(
        read_text(THERMOCLINE_SOURCE_DIR "/configs/machines/pro6000-epyc9005-12ch.json"), "other")["gpus"][0]);
    write_text(file("mixed.json"), dump_json(machine));
    const std::vector<std::string> plan = {"plan", "deepseek-v4-flash", "--machine", file("mixed.json")};
    const Ran first = run_command(plan);
    EXPECT_EQ(first.status, 0) << first.err;
    EXPECT_NE(first.out.find("Card 1 does better: --gpu 1 here; CUDA_VISIBLE_DEVICES=1 for `serve`"), std::string::npos)
        << first.out;
    std::vector<std::string> second = plan;
    for (const char* more : {"--gpu", "1", "--json"}) second.emplace_back(more);
    const Ran other = run_command(second);
    ASSERT_EQ(other.status, 0) << other.err;
    const Json json = parse_json(other.out, "plan");
    EXPECT_EQ(json["card"], 1);
    EXPECT_EQ(json["gpu"]["expert_slots"], json["cards"][1]["expert_slots"]);
    EXPECT_GT(json["cards"][1]["expert_slots"], json["cards"][0]["expert_slots"]);
    second[5] = "2";
    expect_error(run_command(second), "--gpu is 2, but the machine has 2 cards");
    // Both together, more layers on the larger one; and by hand.
    std::vector<std::string> both = plan;
    for (const char* more : {"--gpus", "2", "--json"}) both.emplace_back(more);
    const Ran together = run_command(both);
    ASSERT_EQ(together.status, 0) << together.err;
    const Json split = parse_json(together.out, "plan")["split"];
    EXPECT_LT(split[0]["layers"], split[1]["layers"]);
    EXPECT_GT(split[1]["expert_slots"], json["cards"][1]["expert_slots"].get<int>() / 2);
    both.back() = "--layer-split";
    for (const char* more : {"10,33", "--gpu-memory", "24GiB,64GB"}) both.emplace_back(more);
    const Ran by_hand = run_command(both);
    EXPECT_EQ(by_hand.status, 0) << by_hand.err;
    EXPECT_NE(by_hand.out.find("--gpus 2 --layer-split 10,33"), std::string::npos) << by_hand.out;
    EXPECT_NE(by_hand.out.find("Card 1, layers 10 to 42 and the head"), std::string::npos) << by_hand.out;
    both[both.size() - 3] = "10,20";
    expect_error(run_command(both), "expected one number for each, none 0, 43 together");
    EXPECT_EQ(run_command({"run", "-p", "x", "--gpus", "2x"}).status, 2);
    expect_error(run_command({"run", "-p", "x", "--gpus", "emulated:2", "--layer-split", "1"}),
                 "--layer-split has 1 values");
}

TEST(Profile, WhatCannotBeProfiledIsSaid) {
    expect_error(run_command({"profile"}), "nothing to profile");
    expect_error(run_command({"profile", "-f", "/no/such/file"}), "/no/such/file");
    expect_error(run_command({"profile", "-f", "x", "--report", "x.gif"}), "ends with .html, .svg or .png");
    write_text(file("bad.jsonl"), "3\n");
    expect_error(run_command({"profile", "-f", file("bad.jsonl")}), "bad.jsonl, line 1: is number");
    write_text(file("bad.jsonl"), R"({"class": "x"})");
    expect_error(run_command({"profile", "-f", file("bad.jsonl")}), "has no \"messages\"");
    write_text(file("empty.jsonl"), "");
    expect_error(run_command({"profile", "-f", file("empty.jsonl")}), "holds no prompt");
    expect_error(run_command({"profile", "--from-trace", file("bad.jsonl")}), "expected \"thermocline_routing\": 1");
}

/// Lines of tables as `plan` prints and engines log them, by their names.
std::map<std::string, std::string> table_of(const std::string& text) {
    std::map<std::string, std::string> table;
    std::istringstream lines(text);
    for (std::string line; std::getline(lines, line);)
        for (const char* name : {"dense weights  ", "workspace: ", "KV: ", "expert slots  "})
            if (line.starts_with(name)) table[line.substr(0, 26)] = line.substr(26);
    return table;
}

/// Line by line the same bytes, the chunk of prompts with them, whether the card has room for it or not.
TEST(Plan, SaysWhatAnEngineTakes) {
    // An emulated card needs nothing for a runtime and libraries: 1 GB, and 1.5 % of that for safety.
    constexpr int64_t kRuntime = 1'015'228'426;
    for (const int64_t bytes : {int64_t{400'000'000}, int64_t{60'000'000}}) {
        SCOPED_TRACE(bytes);
        const Ran planned = run_command({"plan", "--machine", "rtx5090-am5-2ch", "--context", "4096", "--gpu-memory",
                                         std::to_string(bytes + kRuntime)});
        ASSERT_EQ(planned.status, 0) << planned.out << planned.err;
        const Ran ran = run_command({"run", "-p", "And", "--max-tokens", "1", "--gpus", "emulated", "--max-model-len",
                                     "4096", "--gpu-memory", std::to_string(bytes)});
        ASSERT_EQ(ran.status, 0) << ran.err;
        const auto said = table_of(planned.out), taken = table_of(ran.err);
        EXPECT_GE(said.size(), 7u) << planned.out;
        EXPECT_EQ(said, taken);
        EXPECT_EQ(planned.out.find("chunks of 4096 tokens") != std::string::npos, bytes > 100'000'000) << planned.out;
    }
}

}  // namespace
}  // namespace thermocline::app
