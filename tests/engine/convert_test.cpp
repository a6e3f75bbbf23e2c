// Converted models: bit-equal to what they were made from, refused when anything in them is wrong, and never half
// there.
#include "src/engine/convert.h"

#include "src/base/error.h"
#include "src/engine/pack.h"
#include "src/model/converted.h"
#include "src/model/inspect.h"
#include "src/model/safetensors.h"
#include "tests/model/engine_fixture.h"
#include "tests/model/model_files.h"
#include "tests/model/tiny_model.h"

#include <algorithm>
#include <csignal>
#include <cstring>
#include <fstream>
#include <functional>
#include <gtest/gtest.h>
#include <sys/resource.h>

namespace thermocline {
namespace {

namespace fs = std::filesystem;
using model::error_of;
using model::golden_model;
using model::TemporaryFolder;

const std::string kDemo = THERMOCLINE_SOURCE_DIR "/models/demo";

/// A model converted into a directory that goes away with the object.
class Converted {
public:
    explicit Converted(const std::string& source, int threads = 2, int32_t layers = 0) {
        engine::convert({.model = source, .destination = path(), .layers = layers, .threads = threads});
    }
    fs::path path() const { return folder_.path() / "converted"; }
    std::string text(const char* name) const { return read_text(path() / name); }
    void write(const char* name, std::string_view bytes) const {
        std::ofstream(path() / name, std::ios::binary | std::ios::trunc).write(bytes.data(), std::ssize(bytes));
    }
    /// Changes the index and the page that vouches for it, as a writer with another mind would.
    void rewrite(const std::function<void(Json&)>& change) const {
        Json index = parse_json(text(model::kIndexFile), "index");
        change(index);
        std::string weights = text(model::kWeightsFile);
        const std::string changed = dump_json(index);
        weights.replace(0, model::kWeightsPage, model::weights_page(changed, std::ssize(weights)));
        write(model::kIndexFile, changed);
        write(model::kWeightsFile, weights);
    }
    std::string error() const {
        return error_of([&] { model::load_model(path().string(), {}); });
    }

private:
    TemporaryFolder folder_;
};

struct Loaded {
    std::unique_ptr<model::Model> model;
    std::unique_ptr<memory::PackedWeights> packed;

    Loaded(const std::string& path, const model::LoadOptions& options) : model(model::load_model(path, options)) {
        packed = engine::pack_weights(*model, {{{}, {0, 1}}});
    }
    Logits logits() const {
        Engine engine(*model, "auto", 2);
        std::vector<int32_t> tokens;
        for (int64_t i = 0; i < 40; ++i)
            tokens.push_back(static_cast<int32_t>((7 * i * i + 3 * i + 11) % model->vocab));
        return engine.feed(*engine.new_sequence(), tokens, 16);
    }
};

void expect_same_matrix(const quant::Matrix& a, const quant::Matrix& b, const std::string& name) {
    EXPECT_EQ(a.format, b.format) << name;
    EXPECT_EQ(a.layout, b.layout) << name;
    EXPECT_EQ(a.multiplier, b.multiplier) << name;
    EXPECT_EQ(a.bytes(), b.bytes()) << name;
    EXPECT_EQ(reinterpret_cast<uintptr_t>(b.data) % 4096, 0u) << name;
}

void expect_same_plan(const ops::Plan& a, const ops::Plan& b) {
    EXPECT_EQ(ops::to_string(a), ops::to_string(b));
    ASSERT_EQ(a.matrices.size(), b.matrices.size());
    for (size_t i = 0; i < a.matrices.size(); ++i)
        expect_same_matrix(a.matrices[i].matrix, b.matrices[i].matrix, a.matrices[i].name);
    ASSERT_EQ(a.experts.size(), b.experts.size());
    for (size_t i = 0; i < a.experts.size(); ++i) {
        ASSERT_EQ(a.experts[i].w1.size(), b.experts[i].w1.size());
        for (size_t e = 0; e < a.experts[i].w1.size(); ++e) {
            expect_same_matrix(a.experts[i].w1[e], b.experts[i].w1[e], a.experts[i].name + " w1");
            expect_same_matrix(a.experts[i].w2[e], b.experts[i].w2[e], a.experts[i].name + " w2");
            expect_same_matrix(a.experts[i].w3[e], b.experts[i].w3[e], a.experts[i].name + " w3");
        }
    }
    for (size_t i = 0; i < a.vectors.size(); ++i) EXPECT_EQ(a.vectors[i].values, b.vectors[i].values);
    for (size_t i = 0; i < a.tables.size(); ++i) EXPECT_EQ(a.tables[i].values, b.tables[i].values);
}

void expect_bit_equal(const std::string& source) {
    const Converted converted(source);
    for (const model::Activations activations : {model::Activations::kModel, model::Activations::kInt8}) {
        const model::LoadOptions options = {.activations = activations};
        const Loaded a(source, options), b(converted.path().string(), options);
        EXPECT_EQ(b.packed, nullptr);
        expect_same_plan(a.model->trunk, b.model->trunk);
        ASSERT_EQ(a.model->mtp.has_value(), b.model->mtp.has_value());
        if (a.model->mtp) expect_same_plan(*a.model->mtp, *b.model->mtp);
        const Logits expected = a.logits(), logits = b.logits();
        for (size_t t = 0; t < expected.size(); ++t)
            ASSERT_EQ(std::memcmp(logits[t].data(), expected[t].data(), expected[t].size() * sizeof(float)), 0)
                << source << ", token " << t;
    }
    const model::Checkpoint checkpoint = model::open_checkpoint(converted.path().string());
    EXPECT_EQ(model::damaged_tensors(checkpoint, [](int64_t) {}), std::vector<std::string>{});
    const model::Report report = model::inspect(checkpoint);
    EXPECT_EQ(report.problems, std::vector<std::string>{});
    EXPECT_NE(model::report_text(report).find("converted from "), std::string::npos);
}

TEST(Convert, EveryFormatStaysBitEqual) {
    for (const char* name : {"b-official-fp8-fp4", "b2-official-1layer", "c-w4a16-fp8", "f0-control-valid"})
        expect_bit_equal(golden_model(name));
    expect_bit_equal(golden_model("e3-gguf-q4_k-q6_k-iq4_xs") + "/model.gguf");
    expect_bit_equal(tiny::model_path());  // odd shapes: nothing has strips
}

TEST(Convert, KeepsTheFirstLayers) {
    const std::string e3 = golden_model("e3-gguf-q4_k-q6_k-iq4_xs") + "/model.gguf";
    for (const std::string& source : {golden_model("b-official-fp8-fp4"), e3, kDemo}) {
        const Converted one(source, 2, 1), all(source, 2, 1000);
        const Loaded a(source, {.layers = 1}), b(one.path().string(), {});
        expect_same_plan(a.model->trunk, b.model->trunk);
        EXPECT_FALSE(b.model->mtp);
        EXPECT_EQ(a.logits(), b.logits());
        EXPECT_EQ(model::inspect(b.model->checkpoint).layers, 1);
        EXPECT_EQ(model::inspect(b.model->checkpoint).problems, std::vector<std::string>{});
        EXPECT_EQ(parse_json(all.text("config.json"), "a"), Loaded(source, {}).model->checkpoint.config);
    }
}

/// Scales beside the codes are no tensors of their own there, but bytes.
TEST(Convert, InspectCountsScalesBesideTheCodes) {
    const Converted converted(golden_model("b-official-fp8-fp4"));
    const model::Checkpoint checkpoint = model::open_checkpoint(converted.path().string());
    int64_t codes = 0, scales = 0;
    for (const auto& [name, entry] : checkpoint.weights.tensors) {
        codes += entry.bytes;
        if (!entry.converted || !entry.converted->scales) continue;
        const quant::Matrix& m = *entry.converted;
        scales += (m.rows + m.scale_rows - 1) / m.scale_rows * m.scale_stride;
    }
    EXPECT_GT(scales, 0);
    const model::Report report = model::inspect(checkpoint);
    EXPECT_EQ(report.bytes, codes + scales);
    int64_t formats = 0;
    for (const model::Report::FormatLine& line : report.formats) formats += line.bytes;
    EXPECT_EQ(formats, report.bytes);
}

TEST(Convert, DemoModelStaysBitEqual) { expect_bit_equal(kDemo); }

/// The safetensors of a golden model without the last expert of layer `layer`, as REAP leaves them.
std::string pruned(const std::string& source, const std::string& layer) {
    const model::Checkpoint checkpoint = model::open_checkpoint(source);
    const int64_t experts = checkpoint.config.at("n_routed_experts").get<int64_t>();
    std::vector<model::FileTensor> tensors;
    for (const auto& [name, entry] : checkpoint.weights.tensors) {
        if (name.starts_with(layer + ".ffn.experts." + std::to_string(experts - 1) + ".")) continue;
        model::FileTensor tensor{
            name, std::string(quant::traits(entry.format).name), 0, entry.shape,
            std::string(reinterpret_cast<const char*>(entry.data), static_cast<size_t>(entry.bytes))};
        if (name == layer + ".ffn.gate.weight" || name == layer + ".ffn.gate.bias") {
            tensor.bytes.resize(tensor.bytes.size() / static_cast<size_t>(experts) * static_cast<size_t>(experts - 1));
            --tensor.shape[0];
        }
        tensors.push_back(std::move(tensor));
    }
    return model::safetensors_file(tensors);
}

TEST(Convert, PrunedLayersStayBitEqual) {
    const std::string source = golden_model("b-official-fp8-fp4");
    const model::Checkpoint checkpoint = model::open_checkpoint(source);
    std::string layer;  // one whose router has a bias: the others' token tables name every expert
    for (const auto& [name, entry] : checkpoint.weights.tensors)
        if (name.starts_with("layers.") && name.ends_with(".ffn.gate.bias"))
            layer = name.substr(0, name.find(".ffn.gate.bias"));
    ASSERT_NE(layer, "");
    TemporaryFolder folder;
    folder.write("config.json", read_text(source + "/config.json"));
    folder.write("model.safetensors", pruned(source, layer));
    expect_bit_equal(folder.path().string());
}

TEST(Convert, FilesDoNotDependOnThreads) {
    const Converted one(kDemo, 1), three(kDemo, 3);
    EXPECT_EQ(one.text(model::kIndexFile), three.text(model::kIndexFile));
    EXPECT_TRUE(one.text(model::kWeightsFile) == three.text(model::kWeightsFile));
}

TEST(Convert, TakesAlongWhatBelongsToText) {
    const Converted demo(kDemo);
    for (const char* name : {"config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"})
        EXPECT_EQ(demo.text(name), read_text(kDemo + "/" + name)) << name;
    const std::string source = golden_model("e3-gguf-q4_k-q6_k-iq4_xs") + "/model.gguf";
    const Converted gguf(source);
    const model::Checkpoint a = model::open_checkpoint(source), b = model::open_checkpoint(gguf.path().string());
    EXPECT_EQ(a.metadata, b.metadata);
    EXPECT_EQ(a.config, b.config);
    EXPECT_EQ(b.source.container, "gguf");
}

TEST(Convert, InputsOfGgufMatricesAreNotRounded) {
    const Converted converted(golden_model("b-official-fp8-fp4"));
    const auto rounded = [&] {
        const auto model = model::load_model(converted.path().string(), {});
        return std::any_of(model->trunk.steps.begin(), model->trunk.steps.end(), [](const ops::Step& step) {
            const auto* experts = std::get_if<ops::Experts>(&step);
            return experts && experts->rounding == ops::InputRounding::kE4M3;
        });
    };
    EXPECT_TRUE(rounded());
    converted.rewrite([](Json& index) { index["source"]["container"] = "gguf"; });
    EXPECT_NE(converted.error().find("metadata.json: is missing"), std::string::npos);
    converted.write(model::kMetadataFile, R"({"general.architecture": "deepseek4"})");
    EXPECT_FALSE(rounded());
}

Json& tensor_of(Json& index, const std::string& name) {
    for (Json& tensor : index["tensors"])
        if (tensor["name"] == name) return tensor;
    ADD_FAILURE() << name;
    return index["tensors"][0];
}

TEST(Converted, WrongIndexesAreRefused) {
    const std::string source = golden_model("b-official-fp8-fp4");
    const std::string norm = "norm.weight", wq = "layers.0.attn.wq_a.weight", embed = "embed.weight",
                      expert = "layers.0.ffn.experts.1.w1.weight";
    struct Case {
        const char* part;
        std::function<void(Json&)> change;
    };
    const Case cases[] = {
        {"layout version 2, this program reads 1: convert the model again", [](Json& i) { i["layout_version"] = 2; }},
        {"layout_version is missing", [](Json& i) { i.erase("layout_version"); }},
        {"source", [](Json& i) { i.erase("source"); }},
        {"tensors", [](Json& i) { i["tensors"] = Json::array(); }},
        {"is missing, expected", [&](Json& i) { tensor_of(i, wq)["name"] = "elsewhere.weight"; }},
        {"is there twice", [&](Json& i) { i["tensors"].push_back(tensor_of(i, norm)); }},
        {"norm.weight is missing", [&](Json& i) { tensor_of(i, norm)["name"] = "x"; }},
        {"offset is", [&](Json& i) { tensor_of(i, wq)["offset"] = int64_t{1} << 60; }},
        {"offset is 0", [&](Json& i) { tensor_of(i, wq)["offset"] = 0; }},
        {"a multiple of 4096", [&](Json& i) { tensor_of(i, wq)["offset"] = 4096 + 64; }},
        {"a multiple of 64", [&](Json& i) { tensor_of(i, wq)["scales"]["offset"] = 4096 + 1; }},
        {"offset is missing", [&](Json& i) { tensor_of(i, wq)["scales"].erase("offset"); }},
        {"end outside weights.bin",
         [](Json& i) {
             Json& last = i["tensors"].back();
             last["offset"] = last["offset"].get<int64_t>() / 4096 * 4096 + 4096 - 64;
             last["shape"] = {4096};
         }},
        {"overlap", [&](Json& i) { tensor_of(i, wq)["offset"] = tensor_of(i, embed)["offset"]; }},
        {"bytes is", [&](Json& i) { tensor_of(i, wq)["bytes"] = 64; }},
        {"the name of a format", [&](Json& i) { tensor_of(i, wq)["format"] = "F9"; }},
        {"one that a matrix can have", [&](Json& i) { tensor_of(i, embed)["format"] = "I64"; }},
        {"F32 or I32", [&](Json& i) { tensor_of(i, norm)["format"] = "Q4_K"; }},
        {"shape is",
         [&](Json& i) {
             tensor_of(i, wq)["shape"] = {-1, 4};
         }},
        {"2^44",
         [&](Json& i) {
             tensor_of(i, wq)["shape"] = {int64_t{1} << 31, int64_t{1} << 31};
         }},
        {"strips or rows", [&](Json& i) { tensor_of(i, wq)["layout"] = "heaps"; }},
        {"scales is missing", [&](Json& i) { tensor_of(i, wq).erase("scales"); }},
        {"a form of scales", [&](Json& i) { tensor_of(i, expert)["scales"]["cols"] = 48; }},
        {"zero_points", [&](Json& i) { tensor_of(i, embed)["zero_points"] = 4096; }},
        {"multiplier", [&](Json& i) { tensor_of(i, wq)["multiplier"] = -1.0; }},
        {"16 hexadecimal digits", [&](Json& i) { tensor_of(i, wq)["checksum"] = "0x12"; }},
        {"norm.weight is damaged", [&](Json& i) { tensor_of(i, norm)["checksum"] = "0123456789abcdef"; }},
    };
    const Converted good(source);
    for (const Case& c : cases) {
        const Converted bad(source);
        bad.rewrite(c.change);
        const std::string error = bad.error();
        EXPECT_NE(error.find(c.part), std::string::npos) << c.part << ": " << error;
        EXPECT_EQ(std::count(error.begin(), error.end(), '\n'), 0) << error;
    }
    good.rewrite([](Json&) {});
    EXPECT_EQ(good.error(), "(no error)");
}

TEST(Converted, TablesAndExpertsMustLieAsTheKernelsReadThem) {
    const Converted converted(kDemo);
    // The head has the shape of the embedding and lies in strips.
    converted.rewrite([](Json& i) {
        tensor_of(i, "head.weight")["name"] = "x";
        tensor_of(i, "embed.weight")["name"] = "head.weight";
        tensor_of(i, "x")["name"] = "embed.weight";
    });
    EXPECT_NE(converted.error().find("the table is packed"), std::string::npos) << converted.error();
}

TEST(Converted, DamagedFilesAreRefused) {
    const Converted converted(kDemo);
    const std::string index = converted.text(model::kIndexFile), weights = converted.text(model::kWeightsFile);
    const auto expect_error = [&](const char* part) {
        const std::string error = converted.error();
        EXPECT_NE(error.find(part), std::string::npos) << part << ": " << error;
        converted.write(model::kIndexFile, index);
        converted.write(model::kWeightsFile, weights);
    };
    const auto flipped = [](std::string text, size_t at) {
        text[at] = static_cast<char>(text[at] ^ 1);
        return text;
    };
    converted.write(model::kIndexFile, flipped(index, index.size() / 2));
    expect_error("belongs to another thermocline.json");
    converted.write(model::kIndexFile, index.substr(0, index.size() / 2));
    expect_error("belongs to another thermocline.json");
    for (const size_t size : {size_t{0}, size_t{100}, weights.size() / 2, weights.size() - 1}) {
        converted.write(model::kWeightsFile, std::string_view(weights).substr(0, size));
        expect_error("convert the model again");
    }
    converted.write(model::kWeightsFile, weights + "x");
    expect_error("the file is damaged");
    converted.write(model::kWeightsFile, flipped(weights, 0));
    expect_error("no file of converted weights");
    converted.write(model::kWeightsFile, flipped(weights, 8));
    expect_error("layout version 0, expected 1: convert the model again");

    // Bits of a matrix are found by reading it, which starting does not.
    const int64_t at = parse_json(index, "index")["tensors"][3]["offset"].get<int64_t>();
    converted.write(model::kWeightsFile, flipped(weights, static_cast<size_t>(at)));
    const auto damaged = model::damaged_tensors(model::open_checkpoint(converted.path().string()), [](int64_t) {});
    ASSERT_EQ(damaged.size(), 1u);
    EXPECT_NE(damaged[0].find("wrong checksum"), std::string::npos);

    fs::remove(converted.path() / "config.json");
    expect_error("config.json");
    fs::remove(converted.path() / model::kWeightsFile);
    EXPECT_NE(converted.error().find("weights.bin: cannot open"), std::string::npos);
}

TEST(Convert, WritesOnlyIntoNewOrEmptyDirectories) {
    TemporaryFolder folder;
    const auto error = [&](const std::string& source, const fs::path& destination) {
        return error_of([&] { engine::convert({.model = source, .destination = destination}); });
    };
    const fs::path file = folder.write("file", "x");
    EXPECT_NE(error(kDemo, file).find("no directory"), std::string::npos);
    EXPECT_NE(error(kDemo, folder.path()).find("is not empty"), std::string::npos);
    EXPECT_NE(error(kDemo, folder.path() / "a" / "b").find("no such directory"), std::string::npos);
    EXPECT_NE(error(kDemo, kDemo + "/").find("is the model itself"), std::string::npos);
    EXPECT_NE(error(kDemo, "/proc/x").find("/proc"), std::string::npos);

    fs::create_directory(folder.path() / "empty");
    EXPECT_EQ(error(kDemo, folder.path() / "empty/"), "(no error)");
    EXPECT_NE(error((folder.path() / "empty").string(), folder.path() / "again").find("converted already"),
              std::string::npos);
    EXPECT_EQ(std::distance(fs::directory_iterator(folder.path()), {}), 2);
}

TEST(Convert, LeavesNothingWhenItCannotFinish) {
    TemporaryFolder folder;
    const auto entries = [&] { return std::distance(fs::directory_iterator(folder.path()), {}); };
    const std::atomic<bool> interrupted = true;
    EXPECT_NE(error_of([&] {
                  engine::convert({.model = kDemo, .destination = folder.path() / "x", .interrupted = &interrupted});
              }).find("interrupted"),
              std::string::npos);
    EXPECT_EQ(entries(), 0);

    // A full disk: files may not grow over 4 MB.
    std::signal(SIGXFSZ, SIG_IGN);
    rlimit before{};
    ASSERT_EQ(::getrlimit(RLIMIT_FSIZE, &before), 0);
    const rlimit small = {.rlim_cur = 4 << 20, .rlim_max = before.rlim_max};
    ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &small), 0);
    const std::string error = error_of([&] { engine::convert({.model = kDemo, .destination = folder.path() / "x"}); });
    ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &before), 0);
    EXPECT_NE(error.find("weights.bin: cannot take"), std::string::npos) << error;
    EXPECT_EQ(entries(), 0);
}

}  // namespace
}  // namespace thermocline
