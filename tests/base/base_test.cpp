// Errors, JSON and files: what bad input gets.
#include "src/base/error.h"
#include "src/base/file.h"
#include "src/base/json.h"
#include "src/base/tensor.h"
#include "src/base/thread.h"

#include <filesystem>
#include <fstream>
#include <functional>
#include <gtest/gtest.h>

namespace thermocline {
namespace {

std::string message_of(const std::function<void()>& body) {
    try {
        body();
    } catch (const Error& error) {
        return error.what();
    }
    return "no error";
}

TEST(Thread, IsPinnedForAWhile) {
    const auto allowed = [] {
        cpu_set_t set;
        EXPECT_EQ(sched_getaffinity(0, sizeof set, &set), 0);
        return set;
    };
    const cpu_set_t before = allowed();
    int last = 0;
    for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu)
        if (CPU_ISSET(static_cast<size_t>(cpu), &before)) last = cpu;
    {
        const Pinned pinned(last);
        const cpu_set_t now = allowed();
        EXPECT_EQ(CPU_COUNT(&now), 1);
        EXPECT_TRUE(CPU_ISSET(static_cast<size_t>(last), &now));
        EXPECT_EQ(sched_getcpu(), last);
    }
    cpu_set_t after = allowed();
    EXPECT_TRUE(CPU_EQUAL(&before, &after));
    for (const int nowhere : {-1, CPU_SETSIZE}) {
        const Pinned pinned(nowhere);
        after = allowed();
        EXPECT_TRUE(CPU_EQUAL(&before, &after)) << nowhere;
    }
}

TEST(Error, ContextStandsInFront) {
    EXPECT_EQ(message_of([] { with_context("loading a", [] { fail("b is ", 3); }); }), "loading a: b is 3");
}

TEST(Error, PrintableKeepsOneLine) {
    EXPECT_EQ(printable("a\nb\x01"), "a\\x0ab\\x01");
    EXPECT_EQ(printable("abcdef", 3), "abc...");
}

TEST(Json, KeepsKeyOrder) { EXPECT_EQ(dump_json(parse_json(R"({"b": 1, "a": 2})", "x")), R"({"b":1,"a":2})"); }

TEST(Json, NamesTheSourceOfBadText) {
    EXPECT_NE(message_of([] { parse_json("{\"a\": ", "config.json"); }).find("config.json: not valid JSON"),
              std::string::npos);
}

TEST(Json, RefusesDeepNestingBeforeRecursing) {
    EXPECT_NE(message_of([] { parse_json(std::string(5'000'000, '['), "body"); }).find("nested deeper"),
              std::string::npos);
    EXPECT_NO_THROW(parse_json("\"" + std::string(1000, '[') + "\"", "body"));  // brackets in a string are text
}

TEST(Json, InvalidUtf8IsReplacedWhenWritten) { EXPECT_EQ(dump_json(Json("a\xff")), "\"a\xef\xbf\xbd\""); }

TEST(File, MapsWhatItHolds) {
    const auto path = std::filesystem::temp_directory_path() / "thermocline_base_test";
    std::ofstream(path) << "hello";
    EXPECT_EQ(MappedFile::open(path)->text(), "hello");
    std::ofstream(path, std::ios::trunc) << "";
    EXPECT_EQ(MappedFile::open(path)->size(), 0u);
    std::filesystem::remove(path);
}

TEST(File, MissingAndWrongKindsAreNamed) {
    EXPECT_NE(message_of([] { MappedFile::open("/no/such/file"); }).find("/no/such/file: cannot open"),
              std::string::npos);
    EXPECT_NE(message_of([] { MappedFile::open("/tmp"); }).find("not a regular file"), std::string::npos);
    EXPECT_NE(message_of([] { read_text("/proc/self/exe", 10); }).find("expected at most 10"), std::string::npos);
}

TEST(Shape, CountsWithoutOverflow) {
    EXPECT_EQ(element_count({}), 1);
    EXPECT_EQ(element_count({3, 0, 5}), 0);
    EXPECT_FALSE(element_count({int64_t{1} << 33, int64_t{1} << 33}));
    EXPECT_FALSE(element_count({-1}));
}

}  // namespace
}  // namespace thermocline
