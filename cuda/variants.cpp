#include "cuda/variants.h"

#include "cuda/kernels/list.h"
#include "src/base/log.h"
#include "src/quant/scalar.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>
#include <random>
#include <vector>

namespace thermocline::cuda {

namespace {

constexpr int64_t kRows = 32, kCols = 1024, kVectors = 11;  // two strips, one full tile of vectors and a part
constexpr double kTolerance = 1e-4;                         // hybrid-engine.md 7.2
constexpr std::chrono::milliseconds kPatience(60000);

/// Random weights in strips and vectors; the sums of magnitudes of every product, in double.
struct Tile {
    std::vector<std::byte> strips;
    std::vector<float> x, sizes;
    quant::Matrix w{.format = quant::Format::kE2M1Pair, .rows = kRows, .cols = kCols};

    Tile() {
        std::mt19937 random(7);
        std::normal_distribution<float> normal;
        w.layout = quant::Layout::kStrips;
        w.scale_in_strip = true;
        w.scale_format = quant::Format::kE8M0;
        w.scale_cols = 32;
        w.strip_bytes = kCols / quant::kStripBlock * Mxfp4Codes::kBlockBytes;
        w.slice_strips = kRows / quant::kStripRows;
        strips.resize(static_cast<size_t>(w.slice_strips * w.strip_bytes));
        for (std::byte& one : strips) one = static_cast<std::byte>(random());
        // Scales far apart, but so that no sum leaves float32.
        for (size_t block = 0; block < strips.size(); block += Mxfp4Codes::kBlockBytes)
            for (size_t i = Mxfp4Codes::kCodeBytes; i < Mxfp4Codes::kBlockBytes; ++i)
                strips[block + i] = static_cast<std::byte>(i % 16 == 5 ? 1 + random() % 180 : 117 + random() % 21);
        x.resize(static_cast<size_t>(kVectors * kCols));
        for (size_t i = 0; i < x.size(); ++i) {
            const size_t group = i / quant::kStripBlock;
            x[i] = group % 5 == 3 ? 0.0f : normal(random) * std::exp2(static_cast<float>(group % 7) * 3.0f - 9.0f);
        }
    }
};

/// The tile with the magnitudes of all its numbers: what an error is measured by.
Tile magnitudes_of(Tile tile) {
    for (size_t block = 0; block < tile.strips.size(); block += Mxfp4Codes::kBlockBytes)
        for (size_t i = 0; i < Mxfp4Codes::kCodeBytes; ++i) tile.strips[block + i] &= std::byte{0x77};
    for (float& one : tile.x) one = std::abs(one);
    return tile;
}

/// Plays a tile on the card with one kernel or the other.
class Trial {
public:
    explicit Trial(Device& device) : stream_(device.new_stream()), memory_(device, kBytes), host_(device, kBytes) {}

    std::vector<float> portable(const Tile& tile) {
        auto* pieces = reinterpret_cast<uint16_t*>(memory_.data() + kPrepared);
        send(tile);
        launch(*stream_, {.x = kVectors, .y = kCols / kRoundedColumns, .threads = kWarp},
               PrepareVectors{vectors(), pieces, nullptr, kCols, 1, true});
        using Kernel = FewVectors<Mxfp4Codes, 1, 4>;
        launch(*stream_,
               {.x = kRows / quant::kStripRows,
                .threads = Kernel::kMostThreads,
                .shared_bytes = Kernel::shared_bytes(Kernel::kMostWarps)},
               Kernel{{placed(tile), pieces, result(), kVectors, 1}});
        return fetch();
    }

    std::vector<float> variant(const Tile& tile) {
        auto* codes = reinterpret_cast<uint8_t*>(memory_.data() + kPrepared);
        uint8_t* scales = codes + kVectors * kCols;
        send(tile);
        launch(*stream_, {.x = kVectors, .y = kCols / quant::kStripBlock, .threads = kWarp},
               PrepareCodes{vectors(), codes, scales, kCols});
        using Kernel = FewVectorsMx;
        launch(*stream_,
               {.x = kRows / quant::kStripRows,
                .y = (kVectors + Kernel::kVectors - 1) / Kernel::kVectors,
                .threads = Kernel::kMostThreads,
                .shared_bytes = Kernel::shared_bytes(Kernel::kMostWarps)},
               Kernel{placed(tile), codes, scales, result(), kVectors, 1});
        return fetch();
    }

private:
    // Where things lie on the card: strips, vectors, what is prepared of them, the result.
    static constexpr int64_t kVectorsAt = 64 << 10, kPrepared = 128 << 10, kResult = 192 << 10, kBytes = 256 << 10;

    const float* vectors() const { return reinterpret_cast<const float*>(memory_.data() + kVectorsAt); }
    float* result() const { return reinterpret_cast<float*>(memory_.data() + kResult); }
    quant::Matrix placed(const Tile& tile) const {
        quant::Matrix w = tile.w;
        w.data = memory_.data();
        return w;
    }
    void send(const Tile& tile) {
        std::memcpy(host_.data(), tile.strips.data(), tile.strips.size());
        std::memcpy(host_.data() + kVectorsAt, tile.x.data(), tile.x.size() * sizeof(float));
        stream_->copy(memory_.data(), host_.data(), kPrepared);
    }
    std::vector<float> fetch() {
        std::vector<float> numbers(static_cast<size_t>(kVectors * kRows));
        stream_->copy(host_.data(), result(), std::ssize(numbers) * 4);
        stream_->wait(kPatience);
        std::memcpy(numbers.data(), host_.data(), numbers.size() * sizeof(float));
        return numbers;
    }

    std::unique_ptr<Stream> stream_;
    DeviceMemory memory_;
    PinnedMemory host_;
};

/// What is wrong with FewVectorsMx; empty: nothing.
std::string try_mx_products(Device& device) {
    const Tile tile;
    Trial trial(device);
    const std::vector<float> expected = trial.portable(tile), sizes = trial.portable(magnitudes_of(tile));
    const std::vector<float> found = trial.variant(tile);
    return difference(found.data(), expected.data(), sizes.data(), std::ssize(found));
}

}  // namespace

std::string difference(const float* found, const float* expected, const float* sizes, int64_t count) {
    for (int64_t i = 0; i < count; ++i) {
        const double apart = std::abs(double{found[i]} - expected[i]), most = kTolerance * sizes[i];
        if (!(apart <= most))
            return "number " + std::to_string(i) + " of " + std::to_string(count) + " is " + std::to_string(found[i]) +
                   ", expected " + std::to_string(expected[i]);
    }
    return "";
}

Variants try_variants(Device& device) {
    Variants variants;
    if (device.info().compute_major != 12) return variants;
    const std::string wrong = try_mx_products(device);
    variants.mx_products = wrong.empty();
    if (!wrong.empty())
        log::warn("GPU {}: kernel {} does not give what the portable one gives ({}); it is not used",
                  device.info().index, FewVectorsMx::kName, wrong);
    return variants;
}

}  // namespace thermocline::cuda
