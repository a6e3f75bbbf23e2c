// The safetensors container: what must load, and one line of reason for everything that must not.
#include "src/model/safetensors.h"

#include "tests/model/model_files.h"

#include <chrono>
#include <cstring>
#include <fstream>
#include <gtest/gtest.h>
#include <regex>

namespace thermocline::model {
namespace {

using ::testing::Test;

WeightDirectory read(const std::string& bytes) {
    WeightDirectory directory;
    read_safetensors(MappedFile::from_bytes(bytes, "some/x.safetensors"), directory);
    return directory;
}

std::string refusal(const std::string& header, size_t data_bytes) {
    return error_of([&] { read(safetensors_raw(header, std::string(data_bytes, '\1'))); });
}

void expect_mentions(const std::string& message, const std::vector<std::string>& parts) {
    for (const std::string& part : parts) EXPECT_NE(message.find(part), std::string::npos) << message;
    EXPECT_EQ(message.find('\n'), std::string::npos) << message;
}

TEST(Safetensors, ReadsTensorsAsViews) {
    const std::string file = safetensors_file({{"b", "I8", 0, {3}, "abc"},
                                               {"a.weight", "F32", 0, {2, 1}, bytes_of_floats({1.5f, -2.0f})},
                                               {"empty", "BF16", 0, {4, 0}, ""},
                                               {"scalar", "F32", 0, {}, bytes_of_floats({7.0f})}});
    const auto mapped = MappedFile::from_bytes(file, "x.safetensors");
    WeightDirectory directory;
    read_safetensors(mapped, directory);
    ASSERT_EQ(directory.tensors.size(), 4u);
    const TensorEntry& a = *directory.find("a.weight");
    EXPECT_EQ(a.format, quant::Format::kF32);
    EXPECT_EQ(a.shape, (Shape{2, 1}));
    EXPECT_EQ(a.bytes, 8);
    EXPECT_EQ(a.data, mapped->bytes().data() + a.offset);
    EXPECT_EQ(std::memcmp(a.data, bytes_of_floats({1.5f, -2.0f}).data(), 8), 0);
    EXPECT_EQ(directory.find("empty")->bytes, 0);
    EXPECT_EQ(directory.find("scalar")->shape, Shape{});
    EXPECT_EQ(directory.find("missing"), nullptr);
}

TEST(Safetensors, AcceptsMetadataPaddingAndAnyOrderOfTheHeader) {
    const std::string header = R"({"__metadata__":{"format":"pt"},"x":{"shape":[1],"data_offsets":[1,2],"dtype":"U8"},)"
                               R"("y":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}     )";
    const WeightDirectory directory = read(safetensors_raw(header, "yx"));
    EXPECT_EQ(static_cast<char>(*directory.find("x")->data), 'x');
    EXPECT_EQ(static_cast<char>(*directory.find("y")->data), 'y');
}

TEST(Safetensors, RefusesBadLengths) {
    expect_mentions(error_of([] { read(""); }), {"x.safetensors", "truncated"});
    expect_mentions(error_of([] { read(std::string(9, '\0')); }), {"truncated"});
    expect_mentions(error_of([] { read(std::string(20, '\0')); }), {"header length is 0"});
    expect_mentions(error_of([] { read(std::string(20, '\xff')); }), {"header length is 18446744073709551615"});
    std::string file = safetensors_file({{"a", "U8", 0, {1}, "a"}});
    expect_mentions(error_of([&] { read(file.substr(0, 30)); }), {"header", "cut off", "30 bytes"});
    expect_mentions(error_of([&] { read(file.substr(0, file.size() - 1)); }), {"truncated", "tensor a"});
    expect_mentions(error_of([&] { read(file + "x"); }), {"1 bytes after the last tensor"});
    expect_mentions(error_of([] { read("just some text, not a model"); }), {"header length"});
    expect_mentions(refusal("[1,2,3]", 0), {"does not begin with '{'"});
}

TEST(Safetensors, RefusesBadHeaders) {
    expect_mentions(refusal(R"({"a":)", 0), {"not valid JSON"});
    expect_mentions(refusal(R"({"a":{}})", 0), {"tensor a has no dtype"});
    expect_mentions(refusal(R"({"a":5})", 0), {"tensor a", "the number 5", "expected an object"});
    expect_mentions(refusal(R"({"a":{"dtype":"F32","shape":[1]}})", 4), {"tensor a", "data_offsets", "expected 2"});
    expect_mentions(refusal(R"({"a":{"dtype":"F32","data_offsets":[0,4]}})", 4), {"tensor a has no shape"});
    expect_mentions(refusal(R"({"a":{"dtype":1,"shape":[1],"data_offsets":[0,4]}})", 4),
                    {"dtype", "expected a string"});
    expect_mentions(refusal(R"({"a":{"dtype":"F31","shape":[1],"data_offsets":[0,4]}})", 4), {"tensor a", "F31"});
    expect_mentions(refusal(R"({"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}})", 4),
                    {"tensor a", "shape", "-1"});
    expect_mentions(refusal(R"({"a":{"dtype":"F32","shape":[1.5],"data_offsets":[0,4]}})", 4), {"tensor a", "1.5"});
    expect_mentions(refusal(R"({"a":{"dtype":"F32","shape":"x","data_offsets":[0,4]}})", 4), {"tensor a", "shape"});
    expect_mentions(refusal(R"({"a":{"dtype":"F32","shape":[[1]],"data_offsets":[0,4]}})", 4),
                    {"tensor a", "an array"});
    expect_mentions(refusal(R"({"a":{"dtype":"F32","shape":{},"data_offsets":[0,4]}})", 4), {"tensor a", "an object"});
    expect_mentions(refusal(R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4],"x":1}})", 4), {"unknown field x"});
    expect_mentions(refusal(R"({"a":{"dtype":"F32","dtype":"F32","shape":[1],"data_offsets":[0,4]}})", 4), {"twice"});
    expect_mentions(refusal(R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},)"
                            R"("a":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}})",
                            2),
                    {"tensor a is there twice"});
    expect_mentions(refusal(R"({"a":{"dtype":"F4","shape":[2,3],"data_offsets":[0,3]}})", 3), {"multiple of 2"});
}

TEST(Safetensors, RefusesBadSizes) {
    const auto sized = [](const std::string& shape, const std::string& offsets) {
        return refusal(R"({"a":{"dtype":"F32","shape":)" + shape + R"(,"data_offsets":)" + offsets + "}}", 8);
    };
    expect_mentions(sized("[3]", "[0,8]"), {"tensor a", "8 bytes", "expected 12"});
    expect_mentions(sized("[2]", "[8,0]"), {"tensor a", "backwards"});
    expect_mentions(sized("[2]", "[4,12]"), {"hole", "tensor a"});
    expect_mentions(sized("[8589934592,8589934592]", "[0,8]"), {"tensor a", "[8589934592, 8589934592]", "overflows"});
    expect_mentions(sized("[9223372036854775807]", "[0,8]"), {"tensor a", "overflows"});
    expect_mentions(sized("[99999999999999999999]", "[0,8]"), {"tensor a", "out of range"});
    expect_mentions(sized("[2]", "[18446744073709551608,18446744073709551616]"), {"tensor a", "out of range"});
    expect_mentions(sized("[1,1,1,1,1,1,1,1,2]", "[0,8]"), {"tensor a", "more than 8"});
    expect_mentions(refusal(R"({"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},)"
                            R"("b":{"dtype":"U8","shape":[4],"data_offsets":[3,7]}})",
                            7),
                    {"b", "overlaps", "tensor a"});
}

TEST(Safetensors, ManyTensorsAreReadQuickly) {
    constexpr int kTensors = 100'000;
    std::string header = "{";
    for (int i = 0; i < kTensors; ++i)
        header += (i ? ",\"" : "\"") + std::string("model.layers.3.mlp.experts.") + std::to_string(i) +
                  R"(.up_proj.weight":{"dtype":"U8","shape":[1],"data_offsets":[)" + std::to_string(i) + "," +
                  std::to_string(i + 1) + "]}";
    const auto start = std::chrono::steady_clock::now();
    const WeightDirectory directory = read(safetensors_raw(header + "}", std::string(kTensors, 'x')));
    EXPECT_EQ(directory.tensors.size(), static_cast<size_t>(kTensors));
    EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(10));
}

TEST(Safetensors, RefusesMoreTensorsThanAnyModelHas) {
    std::string header = "{";
    for (int i = 0; i < 600'000; ++i)
        header += (i ? ",\"" : "\"") + std::to_string(i) + R"(":{"dtype":"U8","shape":[0],"data_offsets":[0,0]})";
    expect_mentions(refusal(header + "}", 0), {"more than 524288 tensors"});
}

TEST(Safetensors, RefusesListsThatOnlyTakeTime) {
    std::string list;
    for (int i = 0; i < 600'000; ++i) list += i ? R"(,"a":"b")" : R"("a":"b")";
    expect_mentions(refusal(R"({"__metadata__":{)" + list + "}}", 0), {"__metadata__", "too many keys"});
    expect_mentions(error_of([&] { files_of_index(R"({"weight_map":{)" + list + "}}", "i"); }),
                    {"i:", "more than 524288 keys"});
}

TEST(Safetensors, RefusesAbsurdTokensBeforeTheyAreCopied) {
    expect_mentions(refusal("{\"" + std::string(2 << 20, 'a') + "\":1}", 0),
                    {"x.safetensors", "more than 1048576 bytes"});
    expect_mentions(refusal("{\"a\":" + std::string(2 << 20, '1') + "}", 0),
                    {"x.safetensors", "more than 1048576 bytes"});
    const std::string long_metadata = R"({"__metadata__":{"note":")" + std::string(1 << 19, 'n') + R"("}})";
    EXPECT_TRUE(read(safetensors_raw(long_metadata, "")).tensors.empty());
}

TEST(SafetensorsIndex, NamesFiles) {
    const auto files =
        files_of_index(R"({"metadata":{"total_size":5},"weight_map":{"a":"2.st","b":"1.st","c":"2.st"}})", "i");
    EXPECT_EQ(files, (std::vector<std::string>{"1.st", "2.st"}));
    expect_mentions(error_of([] { files_of_index(R"({"weight_map":{"a":"../x"}})", "i"); }), {"i:", "../x"});
    expect_mentions(error_of([] { files_of_index(R"({"weight_map":{"a":5}})", "i"); }), {"i:", "the number 5"});
    expect_mentions(error_of([] { files_of_index(R"({"metadata":{}})", "i"); }), {"i:", "no weight_map"});
    expect_mentions(error_of([] { files_of_index("{", "i"); }), {"i:", "not valid JSON"});
}

class Folder : public Test {
protected:
    void write(const std::string& name, const std::string& tensor) {
        folder_.write(name, safetensors_file({{tensor, "U8", 0, {1}, "x"}}));
    }
    std::string error() {
        return error_of([&] { open_checkpoint(folder_.path().string()); });
    }
    TemporaryFolder folder_;
};

TEST_F(Folder, ReadsAllShardsAndIgnoresConsolidatedCopies) {
    folder_.write("config.json", R"({"model_type":"x"})");
    write("model-00001-of-00002.safetensors", "a");
    write("model-00002-of-00002.safetensors", "b");
    write("consolidated.safetensors", "a");
    // A stale index: it may lack tensors and files may hold more than it says.
    folder_.write("model.safetensors.index.json", R"({"weight_map":{"a":"model-00001-of-00002.safetensors"}})");
    const Checkpoint checkpoint = open_checkpoint(folder_.path().string());
    EXPECT_EQ(checkpoint.container, "safetensors");
    EXPECT_EQ(checkpoint.weights.files.size(), 2u);
    EXPECT_TRUE(checkpoint.weights.find("a") && checkpoint.weights.find("b"));
    EXPECT_EQ(checkpoint.config.at("model_type"), "x");
}

TEST_F(Folder, ReadsConsolidatedIfThereIsNothingElse) {
    folder_.write("config.json", "{}");
    write("consolidated.safetensors", "a");
    EXPECT_TRUE(open_checkpoint(folder_.path().string()).weights.find("a"));
}

TEST_F(Folder, RefusesMissingShardsByName) {
    folder_.write("config.json", "{}");
    write("model-00002-of-00003.safetensors", "a");
    expect_mentions(error(), {"missing shard", "model-00001-of-00003.safetensors", "model-00003-of-00003.safetensors"});
    write("model-00001-of-00003.safetensors", "b");
    write("model-00003-of-00003.safetensors", "c");
    folder_.write("model.safetensors.index.json", R"({"weight_map":{"a":"other.safetensors"}})");
    expect_mentions(error(), {"missing shard", "other.safetensors"});
}

TEST_F(Folder, RefusesTheSameTensorInTwoFiles) {
    folder_.write("config.json", "{}");
    write("one.safetensors", "a");
    write("two.safetensors", "a");
    expect_mentions(error(), {"two.safetensors", "tensor a", "one.safetensors"});
}

TEST_F(Folder, RefusesWhatIsNoModel) {
    expect_mentions(error(), {folder_.path().filename().string(), "no *.safetensors"});
    folder_.write("config.json", "{}");
    expect_mentions(error(), {"no *.safetensors"});
    std::filesystem::remove(folder_.path() / "config.json");
    write("model.safetensors", "a");
    expect_mentions(error(), {"no config.json"});
    folder_.write("config.json", "[1]");
    expect_mentions(error(), {"config.json", "expected an object"});
    folder_.write("config.json", "{\"a\":");
    expect_mentions(error(), {"config.json", "not valid JSON"});
    const auto text = folder_.write("notes.txt", "hello, this is text\n");
    expect_mentions(error_of([&] { open_checkpoint(text.string()); }), {"notes.txt", "not a GGUF file"});
    expect_mentions(error_of([&] { open_checkpoint((folder_.path() / "model.safetensors").string()); }), {"directory"});
    expect_mentions(error_of([] { open_checkpoint("/no/such/thing"); }), {"/no/such/thing", "no such file"});
    expect_mentions(error_of([] { open_checkpoint(""); }), {"no such file"});
}

TEST_F(Folder, RefusesAConfigThatWouldTakeForever) {
    write("model.safetensors", "a");
    std::string config = "{";
    for (int i = 0; i < 5000; ++i) config += (i ? ",\"" : "\"") + std::to_string(i) + "\":0";
    folder_.write("config.json", config + "}");
    expect_mentions(error(), {"config.json", "5000 keys"});
    folder_.write("config.json", std::string(3 << 20, ' '));
    expect_mentions(error(), {"config.json", "bytes"});
}

/// Entries of goldens/models whose container (not config or scales) is broken: refused as expected.json says.
TEST(SafetensorsGolden, BrokenFilesAreRefused) {
    for (const char* name : {"f1-truncated-header", "f2-overlapping-ranges", "f3-shape-overflow", "f4-missing-shard",
                             "f7-gguf-bad-magic", "f8-gguf-string-beyond-file"}) {
        const Json expected = parse_json(read_text(golden_model(name) + "/expected.json"), name);
        const std::string pattern = expected.at("stderr_regex").get<std::string>().substr(4);  // after "(?i)"
        const std::string message = error_of([&] { open_checkpoint(golden_model(name)); });
        EXPECT_TRUE(std::regex_search(message, std::regex(pattern, std::regex::icase))) << name << ": " << message;
    }
    EXPECT_EQ(open_checkpoint(golden_model("f0-control-valid")).weights.tensors.size(), 33u);
}

}  // namespace
}  // namespace thermocline::model
