// Wrong NVFP4 layouts are noticed, right ones are believed.
#include "src/model/nvfp4_check.h"

#include "src/model/matrices.h"
#include "src/model/safetensors.h"
#include "tests/model/model_files.h"

#include <cstring>
#include <gtest/gtest.h>

namespace thermocline::model {
namespace {

/// Scales [rows, cols / 16] of a random matrix, as bytes.
std::string scales_of(int64_t rows, int64_t cols, uint64_t seed) {
    const auto matrix = quant::encode_matrix(quant::kNvfp4, random_matrix(rows, cols, seed).data(), rows, cols);
    return {reinterpret_cast<const char*>(matrix.scales.data()), matrix.scales.size()};
}

std::string swizzle(const std::string& linear, int64_t rows, int64_t blocks) {
    std::string tiles(linear.size(), '\0');
    for (int64_t n = 0; n < rows; ++n)
        for (int64_t kb = 0; kb < blocks; ++kb)
            tiles[static_cast<size_t>(swizzled_offset(n, kb, blocks))] = linear[static_cast<size_t>(n * blocks + kb)];
    return tiles;
}

const std::byte* data_of(const std::string& text) { return reinterpret_cast<const std::byte*>(text.data()); }

TEST(Nvfp4, SwizzledOffsetsAreThoseOfTheSpecification) {
    EXPECT_EQ(swizzled_offset(0, 0, 4), 0);
    EXPECT_EQ(swizzled_offset(0, 1, 4), 1);
    EXPECT_EQ(swizzled_offset(1, 0, 4), 16);
    EXPECT_EQ(swizzled_offset(32, 0, 4), 4);
    EXPECT_EQ(swizzled_offset(33, 2, 4), 22);
    EXPECT_EQ(swizzled_offset(127, 3, 4), 511);
    EXPECT_EQ(swizzled_offset(0, 4, 8), 512);
    EXPECT_EQ(swizzled_offset(128, 0, 8), 1024);
}

TEST(Nvfp4, StructureIsLargerInTheRightOrder) {
    for (const auto& [rows, blocks] : {std::pair<int64_t, int64_t>{128, 16}, {256, 8}, {512, 32}}) {
        const std::string linear = scales_of(rows, blocks * 16, 11);
        const std::string tiles = swizzle(linear, rows, blocks);
        EXPECT_GT(scale_structure(data_of(linear), rows, blocks, false),
                  scale_structure(data_of(linear), rows, blocks, true) + 0.02);
        EXPECT_DOUBLE_EQ(scale_structure(data_of(tiles), rows, blocks, true),
                         scale_structure(data_of(linear), rows, blocks, false));
    }
    EXPECT_EQ(scale_structure(data_of(std::string(2048, '\x38')), 128, 16, false), 0) << "constant scales say nothing";
}

class ScaleOrderTest : public ::testing::Test {
protected:
    ScaleOrder order(size_t count, size_t swizzled) {
        bytes_.clear();
        for (size_t i = 0; i < count; ++i) {
            const std::string linear = scales_of(128, 256, 100 + i);
            bytes_.push_back(i < swizzled ? swizzle(linear, 128, 16) : linear);
        }
        std::vector<TensorEntry> entries(count);
        std::vector<const TensorEntry*> pointers;
        for (size_t i = 0; i < count; ++i) {
            entries[i].format = quant::Format::kE4M3;
            entries[i].shape = {128, 16};
            entries[i].data = data_of(bytes_[i]);
            pointers.push_back(&entries[i]);
        }
        return scale_order(pointers);
    }
    std::vector<std::string> bytes_;
};

TEST_F(ScaleOrderTest, NeedsManyVotesThatAgree) {
    EXPECT_EQ(order(20, 0), ScaleOrder::kLinear);
    EXPECT_EQ(order(20, 1), ScaleOrder::kLinear);
    EXPECT_EQ(order(20, 20), ScaleOrder::kSwizzled);
    EXPECT_EQ(order(20, 19), ScaleOrder::kSwizzled);
    EXPECT_EQ(order(20, 10), ScaleOrder::kUndetermined);
    EXPECT_EQ(order(15, 15), ScaleOrder::kUndetermined);
    EXPECT_EQ(order(0, 0), ScaleOrder::kUndetermined);
}

/// A file of experts of one layer in compressed-tensors form; `change` may spoil the scales of each.
template <typename Change>
Checkpoint experts(int64_t count, Change&& change) {
    std::vector<FileTensor> tensors;
    for (int64_t e = 0; e < count; ++e) {
        const auto matrix =
            quant::encode_matrix(quant::kNvfp4, random_matrix(128, 256, 7 + static_cast<uint64_t>(e)).data(), 128, 256);
        const std::string name = "layers.0.ffn.experts." + std::to_string(e) + ".w1.";
        std::string scales(reinterpret_cast<const char*>(matrix.scales.data()), matrix.scales.size());
        std::string codes(reinterpret_cast<const char*>(matrix.codes.data()), matrix.codes.size());
        float divisor = 1.0f / matrix.shape.multiplier;
        change(scales, codes, divisor);
        tensors.push_back({name + "weight_packed", "U8", 0, {128, 128}, codes});
        tensors.push_back({name + "weight_scale", "F8_E4M3", 0, {128, 16}, scales});
        tensors.push_back(f32_tensor(name + "weight_global_scale", {1}, divisor));
    }
    Checkpoint checkpoint;
    checkpoint.container = "safetensors";
    checkpoint.config = Json::object();
    read_safetensors(MappedFile::from_bytes(safetensors_file(tensors), "model.safetensors"), checkpoint.weights);
    return checkpoint;
}

std::vector<std::string> warnings_of(const Checkpoint& checkpoint) { return MatrixFinder(checkpoint).warnings(); }

TEST(Nvfp4Sample, ARightFileGivesNoWarning) {
    EXPECT_EQ(warnings_of(experts(20, [](auto&, auto&, auto&) {})), std::vector<std::string>{});
}

TEST(Nvfp4Sample, SwizzledScalesAreRefused) {
    const Checkpoint checkpoint =
        experts(20, [](std::string& scales, auto&, auto&) { scales = swizzle(scales, 128, 16); });
    const std::string message = error_of([&] { warnings_of(checkpoint); });
    EXPECT_NE(message.find("swizzled"), std::string::npos) << message;
    EXPECT_NE(message.find("layers.0.ffn.experts.0.w1.weight_scale"), std::string::npos) << message;
}

TEST(Nvfp4Sample, ReciprocalGlobalScalesAreRefused) {
    const Checkpoint checkpoint = experts(3, [](auto&, auto&, float& divisor) { divisor = 1 / divisor; });
    const std::string message = error_of([&] { warnings_of(checkpoint); });
    EXPECT_NE(message.find("global scale convention"), std::string::npos) << message;
}

TEST(Nvfp4Sample, DoubtsBecomeWarnings) {
    const auto first = [](const std::vector<std::string>& warnings) {
        return warnings.empty() ? "" : warnings.front();
    };
    EXPECT_NE(first(warnings_of(experts(3, [](auto&, auto&, auto&) {}))).find("cannot tell"), std::string::npos);
    int index = 0;
    EXPECT_NE(
        first(warnings_of(experts(20, [&](auto&, auto&, float& divisor) { divisor *= index++ == 5 ? 20.0f : 1.0f; })))
            .find("experts.5.w1"),
        std::string::npos);
    EXPECT_NE(first(warnings_of(experts(20,
                                        [](auto&, std::string& codes, auto&) {
                                            for (char& byte : codes) byte = static_cast<char>(byte & 0x33);
                                        })))
                  .find("largest codes"),
              std::string::npos);
    EXPECT_NE(first(warnings_of(experts(20,
                                        [](std::string& scales, auto&, auto&) {
                                            for (char& byte : scales)
                                                byte = static_cast<char>(byte - 0x20 > 0 ? byte - 0x20 : 1);
                                        })))
                  .find("reaches 64"),
              std::string::npos);
}

}  // namespace
}  // namespace thermocline::model
