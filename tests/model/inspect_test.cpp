// The report about a checkpoint.
#include "src/model/inspect.h"

#include "src/model/safetensors.h"
#include "tests/model/model_files.h"

#include <gtest/gtest.h>

namespace thermocline::model {
namespace {

const Report::MatrixLine* line_of(const Report& report, const std::string& name) {
    for (const Report::MatrixLine& line : report.matrices)
        if (line.name == name) return &line;
    return nullptr;
}

TEST(Inspect, OfficialCheckpoint) {
    const Checkpoint checkpoint = open_checkpoint(golden_model("b2-official-1layer"));
    const Report report = inspect(checkpoint);
    EXPECT_EQ(report.container, "safetensors");
    EXPECT_EQ(report.naming, "official");
    EXPECT_EQ(report.architecture, "DeepseekV4ForCausalLM");
    EXPECT_EQ(report.model_type, "deepseek_v4");
    EXPECT_EQ(report.layers, 1);
    EXPECT_EQ(report.mtp_layers, 0);
    EXPECT_EQ(report.experts, std::vector<int64_t>{checkpoint.config.at("n_routed_experts").get<int64_t>()});
    EXPECT_EQ(report.tensors, static_cast<int64_t>(checkpoint.weights.tensors.size()));
    int64_t bytes = 0, tensors = 0;
    for (const Report::FormatLine& line : report.formats) bytes += line.bytes, tensors += line.tensors;
    EXPECT_EQ(bytes, report.bytes);
    EXPECT_EQ(tensors, report.tensors);
    const Report::MatrixLine* experts = line_of(report, "layers.*.ffn.experts.*.w1");
    ASSERT_NE(experts, nullptr);
    EXPECT_EQ(experts->scheme, "MXFP4, F8_E8M0 scales");
    EXPECT_EQ(experts->count, report.experts[0]);
    ASSERT_NE(line_of(report, "layers.*.attn.wq_a"), nullptr);
    EXPECT_EQ(line_of(report, "layers.*.attn.wq_a")->scheme, "FP8 e4m3, F8_E8M0 scales");
    EXPECT_EQ(line_of(report, "embed")->scheme, "BF16");
    EXPECT_TRUE(report.warnings.empty());
    for (const std::string& problem : report.problems) ADD_FAILURE() << problem;
}

TEST(Inspect, WrongFilesAreReportedNotThrown) {
    for (const auto& [name, word] : {std::pair{"d-wrong-swizzled", "swizzled"},
                                     {"d-wrong-global-scale", "global scale convention"},
                                     {"f5-nan-scale", "layers.0.attn.wq_b.scale holds NaN"}}) {
        const Report report = inspect(open_checkpoint(golden_model(name)));
        std::string all;
        for (const std::string& problem : report.problems) all += problem + "\n";
        EXPECT_NE(all.find(word), std::string::npos) << name << ": " << all;
    }
}

TEST(Inspect, GgufOfAnUnknownArchitecture) {
    GgufFile file;
    file.text("general.architecture", "strange");
    file.tensor({"blk.0.attn_q.weight", "", 8, {2, 32}, std::string(68, '\0')});
    file.tensor({"blk.1.attn_q.weight", "", 8, {2, 32}, std::string(68, '\0')});
    TemporaryFolder folder;
    const Report report = inspect(open_checkpoint(folder.write("m.gguf", file.bytes()).string()));
    EXPECT_EQ(report.model_type, "strange");
    ASSERT_NE(line_of(report, "blk.*.attn_q"), nullptr);
    EXPECT_EQ(line_of(report, "blk.*.attn_q")->count, 2);
    EXPECT_EQ(line_of(report, "blk.*.attn_q")->scheme, "Q8_0");
    EXPECT_TRUE(report.problems.empty());
}

TEST(Inspect, OrphanScalesAreAProblem) {
    TemporaryFolder folder;
    folder.write("config.json", "{}");
    folder.write("model.safetensors", safetensors_file({f32_tensor("layers.0.attn.wq_a.weight_scale_inv", {1, 1}, 1)}));
    const Report report = inspect(open_checkpoint(folder.path().string()));
    ASSERT_EQ(report.problems.size(), 1u);
    EXPECT_NE(report.problems[0].find("layers.0.attn.wq_a has scales but no weight"), std::string::npos);
}

TEST(Inspect, TextAndJsonSayTheSame) {
    Report report;
    report.path = "/models/m";
    report.architecture = "A";
    report.layers = 3;
    report.experts = {256, 256, 160};
    report.bytes = 1'500'000;
    report.formats = {{"BF16", 3, 1'500'000}};
    report.matrices = {{"layers.*.attn.wq_a", "BF16", 3, 1'500'000}};
    report.warnings = {"careful"};
    const std::string text = report_text(report);
    for (const char* part :
         {"/models/m", "256 (layers 0-1), 160 (layer 2)", "1.50 MB", "layers.*.attn.wq_a", "warning: careful"})
        EXPECT_NE(text.find(part), std::string::npos) << part << "\n" << text;
    const Json json = report_json(report);
    EXPECT_EQ(json.at("experts"), Json::parse("[256,256,160]"));
    EXPECT_EQ(json.at("formats")[0].at("tensors"), 3);
    EXPECT_EQ(json.at("matrices")[0].at("scheme"), "BF16");
    EXPECT_EQ(json.at("warnings")[0], "careful");
}

}  // namespace
}  // namespace thermocline::model
