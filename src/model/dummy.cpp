#include "src/model/dummy.h"

#include "src/base/check.h"
#include "src/base/error.h"
#include "src/base/pages.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <thread>

namespace thermocline::model {

namespace {

using quant::Format;
using Values = DummyTensor::Values;

constexpr int64_t kAlignment = 64;  // of a tensor
constexpr int64_t kPiece = int64_t{4} << 20;

/// What eight bytes of a tensor look like: (random & keep) + base - (random & spread), in every lane of the format.
struct Pattern {
    uint64_t keep, base, spread;
};

/// `value` in every lane of `bits` bits.
uint64_t lanes(uint64_t value, int bits) {
    for (; bits < 64; bits *= 2) value |= value << bits;
    return value;
}

uint64_t biased_exponent(double size) {
    return static_cast<uint64_t>(std::clamp(std::lround(std::log2(size)), -100l, 100l) + 127);
}

Pattern pattern_of(const DummyTensor& tensor) {
    switch (tensor.values) {
        case Values::kCodes:  // e4m3 without the top bit of the exponent: below 2, never NaN
            return {tensor.format == Format::kE4M3 ? lanes(0xbf, 8) : ~uint64_t{0}, 0, 0};
        case Values::kScales:  // 2^e or 2^(e - 1): 0.79 * 2^e
            return {0, lanes(biased_exponent(tensor.size / 0.79), 8), lanes(1, 8)};
        case Values::kNumbers: {  // random sign and mantissa, four exponents from e down: 0.88 * 2^e
            const uint64_t exponent = biased_exponent(tensor.size / 0.88);
            if (tensor.format == Format::kBF16) return {lanes(0x807f, 16), lanes(exponent << 7, 16), lanes(0x180, 16)};
            return {lanes(0x807fffff, 32), lanes(exponent << 23, 32), lanes(0x01800000, 32)};
        }
        case Values::kGains:
            return {lanes(0x1f, 16), lanes(0x3f80, 16), 0};
        case Values::kIds:
            break;
    }
    CHECK(false);
    return {};
}

/// Number i of the stream `seed` (the mixing function of SplitMix64): what makes gigabytes must take a few cycles.
uint64_t random_word(uint64_t seed, uint64_t i) {
    uint64_t z = (seed + 1) * 0xD1B54A32D192ED03 + i * 0x9E3779B97F4A7C15;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB;
    return z ^ (z >> 31);
}

/// Steps of at most experts / k from a random start never meet within k of them.
void fill_ids(const DummyTensor& tensor, uint64_t seed, uint64_t first, uint64_t* out) {
    const auto rows = static_cast<uint64_t>(tensor.shape[0]), k = static_cast<uint64_t>(tensor.shape[1]);
    const auto limit = static_cast<uint64_t>(tensor.size);
    for (uint64_t row = 0; row < rows; ++row) {
        const uint64_t random = random_word(seed, first + row * k);
        const uint64_t start = random % limit, step = 1 + (random >> 32) % (limit / k);
        for (uint64_t j = 0; j < k; ++j) out[row * k + j] = (start + j * step) % limit;
    }
}

struct Piece {
    const DummyTensor* tensor;
    int64_t begin, end;  // bytes in the whole; a piece is a tensor or a part of one
};

void fill(const Piece& piece, uint64_t seed, std::byte* all) {
    const auto first = static_cast<uint64_t>(piece.begin / 8);
    auto* out = reinterpret_cast<uint64_t*>(all + piece.begin);
    if (piece.tensor->values == Values::kIds) return fill_ids(*piece.tensor, seed, first, out);
    const Pattern pattern = pattern_of(*piece.tensor);
    const auto words = static_cast<uint64_t>((piece.end - piece.begin + 7) / 8);  // the padding holds the last one
    for (uint64_t i = 0; i < words; ++i) {
        const uint64_t random = random_word(seed, first + i);
        out[i] = (random & pattern.keep) + pattern.base - (random & pattern.spread);
    }
}

void fill_all(const std::vector<Piece>& pieces, uint64_t seed, std::byte* all) {
    std::atomic<size_t> next = 0;
    const auto work = [&] {
        for (size_t i = next++; i < pieces.size(); i = next++) fill(pieces[i], seed, all);
    };
    std::vector<std::jthread> others;
    for (unsigned i = 1; i < std::thread::hardware_concurrency(); ++i) others.emplace_back(work);
    work();
}

}  // namespace

Checkpoint open_config(const std::string& path) {
    std::error_code ignored;
    std::filesystem::path file = path;
    if (std::filesystem::is_directory(file, ignored)) file /= "config.json";
    if (!std::filesystem::exists(file, ignored)) fail(printable(file.string()), ": no such file");
    Checkpoint checkpoint;
    checkpoint.config = with_context(printable(file.string()), [&] { return read_config(file); });
    // Named as the directory of a checkpoint would be.
    const bool named = file.filename() != "config.json";
    checkpoint.path = (named ? file.replace_extension() : file.parent_path()).string();
    checkpoint.container = "dummy";
    return checkpoint;
}

void add_dummy_tensors(const std::vector<DummyTensor>& tensors, uint64_t seed, Checkpoint& checkpoint) {
    const int64_t available = available_memory();
    WeightDirectory& directory = checkpoint.weights;
    std::vector<Piece> pieces;
    int64_t size = 0;
    for (const DummyTensor& tensor : tensors) {
        const int64_t bytes = quant::bytes_of(tensor.format, element_count(tensor.shape).value_or(0));
        const int64_t part = tensor.values == Values::kIds ? bytes : kPiece;
        for (int64_t at = 0; at < bytes; at += part)
            pieces.push_back({&tensor, size + at, size + std::min(bytes, at + part)});
        directory.tensors.emplace(tensor.name,
                                  TensorEntry{tensor.name, tensor.format, tensor.shape, nullptr, bytes, 0, size});
        size += (bytes + kAlignment - 1) / kAlignment * kAlignment;
        if (size > available)
            fail(checkpoint.path, ": dummy weights take more than the ", available / 1'000'000,
                 " MB of memory that are free, keep fewer layers (--layers)");
    }
    Pages pages(static_cast<size_t>(size));
    fill_all(pieces, seed, pages.bytes().data());
    for (auto& [name, entry] : directory.tensors) entry.data = pages.bytes().data() + entry.offset;
    directory.files.push_back(MappedFile::from_pages(std::move(pages), "dummy"));
}

}  // namespace thermocline::model
