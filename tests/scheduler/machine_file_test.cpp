// Machine files: what is written is read back, what is wrong is refused by file and key, and those of the repository
// are sane and say where their values come from.
#include "scheduler/machine_file.h"

#include "src/base/error.h"

#include <filesystem>
#include <fstream>
#include <gtest/gtest.h>
#include <set>

namespace thermocline::scheduler {
namespace {

namespace fs = std::filesystem;

MachineDescription measured() {
    Machine machine;
    machine.cpu_model = "two small nodes and memory of its own";
    machine.caches = {{1, 32768, 1}, {3, 1 << 24, 2}};
    machine.nodes = {{0, 1 << 30, {0, 1}}, {1, 1 << 30, {2, 3}}, {4, 1 << 20, {}}};
    MachineSpeed speed;
    speed.nodes = {{2, {10.0, 19.0}, 9.0, 12.0, 0.8}, {2, {10.5, 19.5}, 9.0, 12.0, 0.9}, {}};
    speed.all = {4, {38.0}, 18.0, 24.0, 1.6};
    speed.peaks = {{"avx2", cpu::Unit::kF32, 100.0, 400.0}, {"avx2", cpu::Unit::kI8, 300.0, 1200.0}};
    speed.gpus = {{.device = {0, "a card", 12, 0, int64_t{96} << 30, 188, "0000:01:00.0"},
                   .link = {56.0, 57.0, 102.0},
                   .busy_link = {50.0, 51.0, 90.0},
                   .busy_cpu_read = 30.0,
                   .memory_read = 1500.0,
                   .handoff_us = 4.5,
                   .handoffs = {{cuda::FlagWait::kStreamOperation, 0, "an old driver"},
                                {cuda::FlagWait::kSpinKernel, 4.5, ""},
                                {cuda::FlagWait::kHostFunction, 60.0, ""}}}};
    return measured_description(machine, speed);
}

TEST(MachineFile, ListsEveryNodeWithEveryCoreCount) {
    const Json json = machine_json(measured());
    EXPECT_EQ(json["thermocline_machine"], 1);
    EXPECT_EQ(json["cores"], 4);
    EXPECT_EQ(json["nodes"][1]["id"], 1);
    EXPECT_EQ(json["nodes"][1]["read_gb_per_s"], Json({10.5, 19.5}));
    EXPECT_EQ(json["nodes"][2], Json({{"id", 4}, {"memory_bytes", 1 << 20}, {"cores", 0}}));
    EXPECT_EQ(json["all"]["read_gb_per_s"], Json::array({38.0}));
    EXPECT_EQ(json["peaks_gops"]["avx2"]["int8"]["all_cores"], 1200.0);
    EXPECT_EQ(json["caches"][1]["cores"], 2);
    const Json& gpu = json["gpus"][0];
    EXPECT_EQ(gpu["compute"], "12.0");
    EXPECT_EQ(gpu["link"]["to_host_gb_per_s"], 57.0);
    EXPECT_EQ(gpu["link_while_cpu_reads"]["to_host_gb_per_s"], 51.0);
    EXPECT_EQ(gpu["link_while_cpu_reads"]["cpu_read_gb_per_s"], 30.0);
    EXPECT_EQ(gpu["handoff_us"], 4.5);
    EXPECT_EQ(gpu["handoff_us_by_way"], Json({{"spinning kernel", 4.5}, {"host function", 60.0}}));
}

TEST(MachineFile, WhatIsWrittenIsReadBack) {
    const Json json = machine_json(measured());
    const MachineDescription back = parse_machine(json, "file");
    EXPECT_EQ(machine_json(back), json);
    EXPECT_EQ(back.memory_bytes(), (int64_t{2} << 30) + (1 << 20));
    EXPECT_EQ(back.gpus[0].speed.device.compute_major, 12);
    EXPECT_EQ(back.gpus[0].speed.busy_cpu_read, 30.0);
    EXPECT_EQ(back.peaks[1].unit, cpu::Unit::kI8);
}

void expect_refused(const Json& json, const std::string& part) {
    try {
        parse_machine(json, "some.json");
        ADD_FAILURE() << "taken: " << part;
    } catch (const Error& error) {
        const std::string text = error.what();
        EXPECT_NE(text.find(part), std::string::npos) << text;
        EXPECT_EQ(text.rfind("some.json", 0), 0u) << text;
        EXPECT_LT(text.size(), 400u);
    }
}

TEST(MachineFile, WrongFilesAreRefusedByKey) {
    const auto with = [](auto change) {
        Json json = machine_json(measured());
        change(json);
        return json;
    };
    expect_refused(Json::array(), "expected an object");
    expect_refused(with([](Json& j) { j.erase("thermocline_machine"); }), "thermocline_machine is missing");
    expect_refused(with([](Json& j) { j["thermocline_machine"] = 2; }),
                   "thermocline_machine is 2, expected an integer from 1 to 1");
    expect_refused(with([](Json& j) { j["colour"] = 1; }), "colour is no key of a machine file");
    expect_refused(with([](Json& j) { j["cores"] = 5; }), "nodes have 4 cores together, expected 5");
    expect_refused(with([](Json& j) { j["cores"] = -1; }), "cores is -1");
    expect_refused(with([](Json& j) { j["cores"] = 1e30; }), "cores is 1e+30");
    expect_refused(with([](Json& j) { j["cores"] = UINT64_MAX; }), "cores is 18446744073709551615");
    expect_refused(with([](Json& j) { j["nodes"][1]["memory_bytes"] = "much"; }), "nodes[1]: memory_bytes is \"much\"");
    expect_refused(with([](Json& j) { j["nodes"][1]["id"] = 0; }), "nodes[1]: id is 0, expected more");
    expect_refused(with([](Json& j) { j["nodes"][0]["read_gb_per_s"] = {1, 2, 3}; }), "3 items");
    expect_refused(with([](Json& j) { j["nodes"][0]["read_gb_per_s"] = Json::array(); }), "has 0 rates");
    expect_refused(with([](Json& j) { j["nodes"][0]["read_gb_per_s"][1] = 0; }), "read_gb_per_s[1] is 0");
    expect_refused(with([](Json& j) { j["all"]["cores"] = 3; }), "all has 3 cores");
    expect_refused(with([](Json& j) { j["peaks_gops"]["avx2"]["int4"] = 1; }), "peaks_gops.avx2: int4 is no key");
    expect_refused(with([](Json& j) { j["gpus"][0]["compute"] = "12"; }), "gpus[0]: compute is \"12\"");
    expect_refused(with([](Json& j) { j["gpus"][0]["compute"] = "12.999"; }), "SM version");
    expect_refused(with([](Json& j) { j["gpus"][0]["link"].erase("to_device_gb_per_s"); }),
                   "gpus[0]: link: to_device_gb_per_s is missing");
    expect_refused(with([](Json& j) { j["gpus"][0]["handoff_us"] = nullptr; }), "handoff_us is null");
    expect_refused(with([](Json& j) { j["gpus"][0]["handoff_us_by_way"]["telegraph"] = 1; }),
                   "telegraph is no key of a machine file");
    expect_refused(with([](Json& j) { j["gpus"] = {{"a", 1}}; }), "gpus is object");
    expect_refused(with([](Json& j) { j.erase("origins"); }), "origins is missing");
    expect_refused(with([](Json& j) { j["origins"] = {{"*", "heard of"}}; }), "expected measured, published");
    expect_refused(with([](Json& j) { j["origins"]["gpus.link.rate"] = "assumed"; }),
                   "origins.gpus.link.rate: the file has no such key");
}

TEST(MachineFile, ErrorsNameTheFile) {
    const std::string path = testing::TempDir() + "/broken_machine.json";
    std::ofstream(path) << "{\"cpu\": ";
    for (const std::string& name : {path, std::string("/no/such/machine.json")}) {
        try {
            read_machine(name);
            ADD_FAILURE() << name;
        } catch (const Error& error) {
            EXPECT_NE(std::string(error.what()).find(name), std::string::npos) << error.what();
        }
    }
}

/// Numbers of a file as paths that an origin could name.
void collect(const Json& json, const std::string& path, std::set<std::string>& numbers) {
    if (json.is_object())
        for (const auto& [key, value] : json.items()) collect(value, path.empty() ? key : path + "." + key, numbers);
    else if (json.is_array())
        for (const Json& item : json) collect(item, path, numbers);
    else
        numbers.insert(path);
}

TEST(MachineFile, ThoseOfTheRepositorySayWhereEveryValueComesFrom) {
    int files = 0;
    for (const auto& entry : fs::directory_iterator(fs::path(THERMOCLINE_SOURCE_DIR) / "configs/machines")) {
        SCOPED_TRACE(entry.path().string());
        const MachineDescription machine = read_machine(entry.path());
        const Json json = machine_json(machine);
        EXPECT_EQ(machine_json(parse_machine(json, "again")), json);
        EXPECT_LE(machine.all.read_gb_per_s[0], machine.nominal_gb_per_s > 0.0 ? machine.nominal_gb_per_s : 1e9);
        for (const DescribedGpu& gpu : machine.gpus) EXPECT_LE(gpu.speed.memory_read, gpu.nominal_gb_per_s);
        std::set<std::string> values;
        collect(json, "", values);
        for (const std::string& value : values) {
            if (value == "thermocline_machine" || value.rfind("origins", 0) == 0) continue;
            const bool named = std::any_of(machine.origins.begin(), machine.origins.end(), [&](const auto& origin) {
                return origin.first == "*" || value == origin.first || value.rfind(origin.first + ".", 0) == 0;
            });
            EXPECT_TRUE(named) << value;
        }
        ++files;
    }
    EXPECT_GE(files, 10);
}

}  // namespace
}  // namespace thermocline::scheduler
