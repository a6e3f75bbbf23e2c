// Values of flags that more than one command reads.
#include "src/app/settings.h"

#include "src/base/error.h"

#include <gtest/gtest.h>

namespace thermocline::app {
namespace {

TEST(Settings, SizesHaveUnitsOfBothKinds) {
    EXPECT_EQ(parse_size("24GiB", "--gpu-memory"), int64_t{24} << 30);
    EXPECT_EQ(parse_size("1.5TB", "--gpu-memory"), 1'500'000'000'000);
    EXPECT_EQ(parse_size("96 GB", "--gpu-memory"), 96'000'000'000);
    EXPECT_EQ(parse_size("0.5KiB", "--gpu-memory"), 512);
    EXPECT_EQ(parse_size("34190917632", "--gpu-memory"), 34'190'917'632);
    EXPECT_EQ(parse_size("1B", "--gpu-memory"), 1);
    EXPECT_EQ(parse_size("1024TiB", "--gpu-memory"), int64_t{1} << 50);
}

TEST(Settings, WrongSizesAreRefusedByFlag) {
    for (const char* text : {"", "GB", "-1GB", "0", "0.1B", "1e3GB", "24gib", "10 parsecs", "1GB2", "nan", "inf",
                             "0x10", "1025TiB", "99999999999999999999999999999999TB", " 1GB", "1,5GB", "\n"}) {
        try {
            parse_size(text, "--gpu-memory");
            ADD_FAILURE() << text;
        } catch (const Error& error) {
            EXPECT_EQ(std::string(error.what()).rfind("--gpu-memory is \"", 0), 0u) << error.what();
        }
    }
}

TEST(Settings, DeterministicAndMovingExpertsExcludeEachOther) {
    const auto wishes = [](const std::string& line) {
        CLI::App command;
        ModelFlags flags;
        flags.declare(command, ModelFlags::Positional::kOptional);
        command.parse("--gpus emulated " + line);
        return flags.gpu_wishes();
    };
    EXPECT_TRUE(wishes("--deterministic").deterministic);
    EXPECT_TRUE(wishes("--deterministic --residency static").deterministic);
    EXPECT_FALSE(wishes("--residency lru").deterministic);
    EXPECT_THROW(wishes("--deterministic --residency lru"), Error);
    EXPECT_THROW(wishes("--deterministic --residency adaptive"), Error);
}

}  // namespace
}  // namespace thermocline::app
