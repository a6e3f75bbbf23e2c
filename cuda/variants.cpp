#include "cuda/variants.h"

#include "cuda/kernels/list.h"
#include "src/base/log.h"
#include "src/quant/kv_row.h"
#include "src/quant/scalar.h"

#include <algorithm>
#include <bit>
#include <chrono>
#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
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
        const auto [codes, scales] = send_codes(tile);
        using Kernel = FewVectorsMx;
        launch(*stream_,
               {.x = kRows / quant::kStripRows,
                .y = (kVectors + Kernel::kVectors - 1) / Kernel::kVectors,
                .threads = Kernel::kMostThreads,
                .shared_bytes = Kernel::shared_bytes(Kernel::kMostWarps)},
               Kernel{placed(tile), codes, scales, result(), kVectors, 1});
        return fetch();
    }

    /// `Kernel`: FewPairsMx, ManyPairsMx; all vectors are those of one expert.
    template <typename Kernel>
    std::vector<float> pairs(const Tile& tile, const Grid& grid) {
        const auto [codes, scales] = send_codes(tile);
        struct Lists {
            int32_t slots[1] = {0}, begin[2] = {0, kVectors}, count[2] = {1, 0}, pairs[kVectors] = {};
            float multipliers[kMultipliers] = {1.0f, 1.0f, 1.0f, 1.0f};
        } lists;
        for (int32_t i = 0; i < kVectors; ++i) lists.pairs[i] = i;
        std::memcpy(host_.data() + kLists, &lists, sizeof lists);
        stream_->copy(memory_.data() + kLists, host_.data() + kLists, sizeof lists);
        auto* there = reinterpret_cast<Lists*>(memory_.data() + kLists);
        const PairLists on_card{there->slots, there->begin, there->pairs, there->count, nullptr};
        launch(*stream_, grid,
               Kernel{{{placed(tile), 0, 1, 0, there->multipliers, on_card, nullptr, result(), 1, 1}, codes, scales}});
        return fetch();
    }

private:
    // Where things lie on the card: strips, vectors, what is prepared of them, the result.
    static constexpr int64_t kVectorsAt = 64 << 10, kPrepared = 128 << 10, kResult = 192 << 10, kLists = 224 << 10,
                             kBytes = 256 << 10;

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
        // NaN, so that no kernel passes by what the one before has left.
        std::memset(host_.data() + kResult, 0xff, kVectors * kRows * sizeof(float));
        stream_->copy(memory_.data() + kResult, host_.data() + kResult, kVectors * kRows * int64_t{sizeof(float)});
    }
    struct Codes {
        const uint8_t *codes, *scales;
    };
    Codes send_codes(const Tile& tile) {
        auto* codes = reinterpret_cast<uint8_t*>(memory_.data() + kPrepared);
        uint8_t* scales = codes + kVectors * kCols;
        send(tile);
        launch(*stream_, {.x = kVectors, .y = kCols / quant::kStripBlock, .threads = kWarp},
               PrepareCodes{vectors(), codes, scales, kCols});
        return {codes, scales};
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

/// What the portable kernel makes of the tile, and how far a variant may be from it.
struct Expected {
    Tile tile;
    std::vector<float> numbers, sizes;
    explicit Expected(Trial& trial) : numbers(trial.portable(tile)), sizes(trial.portable(magnitudes_of(tile))) {}

    std::string fault(const std::vector<float>& found) const {
        return difference(found.data(), numbers.data(), sizes.data(), std::ssize(found));
    }
};

/// What is wrong with the kernels of experts; empty: nothing.
std::string try_mx_experts(Trial& trial, const Expected& expected) {
    constexpr int64_t kStrips = kRows / quant::kStripRows;
    const auto many = [&]<typename Kernel>() {
        constexpr int64_t kOfBlock = Kernel::kWarps * Kernel::kStrips;
        return expected.fault(trial.pairs<Kernel>(expected.tile, {.x = (kStrips + kOfBlock - 1) / kOfBlock,
                                                                  .threads = Kernel::kMostThreads,
                                                                  .shared_bytes = Kernel::shared_bytes()}));
    };
    using Few = FewPairsMx;
    std::string wrong = expected.fault(trial.pairs<Few>(
        expected.tile,
        {.x = kStrips, .threads = Few::kMostThreads, .shared_bytes = Few::shared_bytes(Few::kMostWarps)}));
    if (wrong.empty()) wrong = many.template operator()<ManyPairsMx<2>>();
    if (wrong.empty()) wrong = many.template operator()<ManyPairsMx<8>>();
    return wrong;
}

/// Random queries, gates and keys of an indexer in FP4, on the host and on the card.
class KeysTrial {
public:
    explicit KeysTrial(Device& device) : stream_(device.new_stream()), memory_(device, kBytes), host_(device, kBytes) {
        std::mt19937 random(9);
        std::normal_distribution<float> normal;
        const auto fill = [&](float* to, float scale) {
            std::byte row[kRowBytes];
            float numbers[kWidth];
            // Groups of very different sizes; every code occurs.
            for (int c = 0; c < kWidth; ++c) {
                const int group = c / 32;
                numbers[c] = normal(random) * scale * std::exp2(static_cast<float>(group * 5) - 8.0f);
            }
            quant::encode_kv_row(KvFormat::kFp4, numbers, kWidth, 0, row);
            quant::decode_kv_row(KvFormat::kFp4, row, kWidth, 0, to);
            return std::vector<std::byte>(row, row + kRowBytes);
        };
        keys_.resize(int64_t{kKeys} * kWidth);
        queries_.resize(int64_t{kHeads} * kWidth);
        gates_.resize(kHeads);
        for (int i = 0; i < kKeys; ++i) {
            const auto row =
                fill(keys_.data() + int64_t{i} * kWidth, i % 9 == 4 ? 0.0f : std::exp2(static_cast<float>(i % 13)));
            std::memcpy(host_.data() + kKeysAt + i * kRowBytes, row.data(), kRowBytes);
        }
        for (int h = 0; h < kHeads; ++h) fill(queries_.data() + int64_t{h} * kWidth, h % 7 == 5 ? 0.0f : 1.0f);
        for (float& one : gates_) one = normal(random);
        std::memcpy(host_.data() + kQueriesAt, queries_.data(), queries_.size() * 4);
        std::memcpy(host_.data() + kGatesAt, gates_.data(), gates_.size() * 4);
        auto* few = reinterpret_cast<Few*>(host_.data() + kFewAt);
        *few = {kKeys - 1, 0, memory_.data() + kKeysAt, {}};
        few->cache = {&reinterpret_cast<Few*>(memory_.data() + kFewAt)->page, kKeys, kRowBytes, 0};
    }

    /// Scores of all keys.
    template <typename Scorer>
    std::vector<float> scores() {
        using Kernel = ScoreEntries<Scorer>;
        auto* there = reinterpret_cast<Few*>(memory_.data() + kFewAt);
        auto* candidates = reinterpret_cast<Candidate*>(memory_.data() + kCandidatesAt);
        std::memset(host_.data() + kCandidatesAt, 0xff, kBytes - kCandidatesAt);  // no key, whatever was there before
        stream_->copy(memory_.data(), host_.data(), kBytes);
        Batch batch{};
        batch.positions = &there->position;
        batch.segment_of = &there->segment;
        batch.caches = &there->cache;
        batch.rows = batch.segment_count = batch.cache_count = 1;
        launch(
            *stream_,
            {.x = 1, .y = 2, .threads = kIndexThreads, .shared_bytes = Kernel::Layout::of(kHeads, kWidth, kTop).bytes},
            Kernel{{reinterpret_cast<const float*>(memory_.data() + kQueriesAt),
                    reinterpret_cast<const float*>(memory_.data() + kGatesAt), candidates, batch, 0, kHeads, kWidth, 0,
                    1, kTop, 2, KvFormat::kFp4}});
        stream_->copy(host_.data() + kCandidatesAt, candidates, kKeys * int64_t{sizeof(Candidate)});
        stream_->wait(kPatience);
        std::vector<float> scores(kKeys, std::numeric_limits<float>::quiet_NaN());
        const auto* found = reinterpret_cast<const Candidate*>(host_.data() + kCandidatesAt);
        for (int i = 0; i < kKeys; ++i) {
            const uint32_t key = found[i].key;
            if (found[i].index >= 0 && found[i].index < kKeys)
                scores[static_cast<size_t>(found[i].index)] =
                    std::bit_cast<float>(key >> 31 ? key ^ 0x80000000u : ~key);
        }
        return scores;
    }

    /// The magnitudes of what is added up for each.
    std::vector<float> sizes() const {
        std::vector<float> sizes;
        for (int i = 0; i < kKeys; ++i) {
            double size = 0;
            for (int h = 0; h < kHeads; ++h) {
                double dot = 0;
                for (int c = 0; c < kWidth; ++c)
                    dot += std::abs(double{keys_[static_cast<size_t>(int64_t{i} * kWidth + c)]} *
                                    queries_[static_cast<size_t>(int64_t{h} * kWidth + c)]);
                size += dot * std::abs(gates_[static_cast<size_t>(h)]);
            }
            sizes.push_back(static_cast<float>(size));
        }
        return sizes;
    }

private:
    // Two parts of a row, so that each keeps all of its entries.
    static constexpr int kHeads = 64, kWidth = 128, kKeys = 2 * kIndexTile, kTop = kKeys - 1, kRowBytes = 68;
    static constexpr int64_t kQueriesAt = 0, kGatesAt = 32 << 10, kKeysAt = 33 << 10, kFewAt = 48 << 10,
                             kCandidatesAt = 49 << 10, kBytes = 52 << 10;
    struct Few {
        int64_t position;
        int32_t segment;
        std::byte* page;
        CacheView cache;
    };

    std::unique_ptr<Stream> stream_;
    DeviceMemory memory_;
    PinnedMemory host_;
    std::vector<float> keys_, queries_, gates_;
};

/// What is wrong with Fp4Scores; empty: nothing.
std::string try_fp4_keys(Device& device) {
    KeysTrial trial(device);
    const std::vector<float> expected = trial.scores<TileScores>(), found = trial.scores<Fp4Scores>();
    return difference(found.data(), expected.data(), trial.sizes().data(), std::ssize(found));
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
    const auto settle = [&](bool& variant, const char* kernels, const std::string& wrong) {
        variant = wrong.empty();
        if (!variant)
            log::warn("GPU {}: {} do not give what the portable kernels give ({}); they are not used",
                      device.info().index, kernels, wrong);
    };
    Trial trial(device);
    const Expected expected(trial);
    settle(variants.mx_products, "products by mxf8f6f4", expected.fault(trial.variant(expected.tile)));
    settle(variants.mx_experts, "experts by mxf8f6f4", try_mx_experts(trial, expected));
    settle(variants.fp4_keys, "index scores by mxf4", try_fp4_keys(device));
    return variants;
}

}  // namespace thermocline::cuda
