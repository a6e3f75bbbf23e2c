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

/// `words` words of a tensor that is no table of ids, from number `first` of the stream.
void fill_words(const DummyTensor& tensor, uint64_t seed, uint64_t first, uint64_t words, uint64_t* out) {
    const Pattern pattern = pattern_of(tensor);
    for (uint64_t i = 0; i < words; ++i) {
        const uint64_t random = random_word(seed, first + i);
        out[i] = (random & pattern.keep) + pattern.base - (random & pattern.spread);
    }
}

/// A tensor or a part of one.
struct Piece {
    const DummyTensor* tensor;
    int64_t stream, bytes;  // place among all bytes of the model
    std::byte* out;
};

void fill(const Piece& piece, uint64_t seed) {
    const auto first = static_cast<uint64_t>(piece.stream / 8);
    auto* out = reinterpret_cast<uint64_t*>(piece.out);
    if (piece.tensor->values == Values::kIds) return fill_ids(*piece.tensor, seed, first, out);
    // What the last word has too much goes into the padding.
    fill_words(*piece.tensor, seed, first, static_cast<uint64_t>((piece.bytes + 7) / 8), out);
}

void fill_all(const std::vector<Piece>& pieces, uint64_t seed) {
    std::atomic<size_t> next = 0;
    const auto work = [&] {
        for (size_t i = next++; i < pieces.size(); i = next++) fill(pieces[i], seed);
    };
    std::vector<std::jthread> others;
    for (unsigned i = 1; i < std::thread::hardware_concurrency(); ++i) others.emplace_back(work);
    work();
}

int64_t padded(int64_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }

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

bool DummyCodes::holds(const std::byte* data) const {
    return !parts_.empty() && data >= addresses_ && data < addresses_ + parts_.back().end;
}

void DummyCodes::make(const std::byte* data, int64_t size, std::byte* out) const {
    const int64_t at = data - addresses_;
    const auto after = std::upper_bound(parts_.begin(), parts_.end(), at,
                                        [](int64_t offset, const Part& part) { return offset < part.begin; });
    CHECK(after != parts_.begin());
    const Part& part = *(after - 1);
    CHECK((at - part.begin) % 8 == 0 && size <= part.end - at);
    const auto first = static_cast<uint64_t>((part.stream + at - part.begin) / 8);
    const int64_t whole = size / 8 * 8;
    fill_words(part.tensor, seed_, first, static_cast<uint64_t>(whole / 8), reinterpret_cast<uint64_t*>(out));
    if (whole == size) return;
    uint64_t last = 0;
    fill_words(part.tensor, seed_, first + static_cast<uint64_t>(whole / 8), 1, &last);
    std::memcpy(out + whole, &last, static_cast<size_t>(size - whole));
}

void add_dummy_tensors(const std::vector<DummyTensor>& tensors, uint64_t seed, bool defer_codes,
                       Checkpoint& checkpoint) {
    const int64_t available = available_memory();
    WeightDirectory& directory = checkpoint.weights;
    int64_t stream = 0, sizes[2] = {};  // of all tensors; of those made now, of those left
    std::vector<DummyCodes::Part> left;
    std::vector<int64_t> streams;
    for (const DummyTensor& tensor : tensors) {
        const int64_t bytes = quant::bytes_of(tensor.format, element_count(tensor.shape).value_or(0));
        const int file = defer_codes && tensor.values == Values::kCodes ? 1 : 0;
        TensorEntry entry{tensor.name, tensor.format, tensor.shape, nullptr, bytes, file, sizes[file]};
        if (file == 1) left.push_back({entry.offset, entry.offset + bytes, stream, tensor});
        directory.tensors.emplace(tensor.name, std::move(entry));
        streams.push_back(stream);
        sizes[file] += padded(bytes);
        stream += padded(bytes);
        // Packing adds no more than some per cent to this and checks again.
        if (stream > available)
            fail(checkpoint.path, ": dummy weights take more than the ", available / 1'000'000,
                 " MB of memory that are free, keep fewer layers (--layers)");
    }
    Pages now(static_cast<size_t>(sizes[0]));
    Pages addresses = Pages::addresses(static_cast<size_t>(std::max(sizes[1], kAlignment)));
    std::vector<Piece> pieces;
    for (size_t i = 0; i < tensors.size(); ++i) {
        TensorEntry& entry = directory.tensors.at(tensors[i].name);
        std::byte* data = (entry.file == 1 ? addresses : now).bytes().data() + entry.offset;
        entry.data = data;
        if (entry.file == 1) continue;
        const int64_t part = tensors[i].values == Values::kIds ? entry.bytes : kPiece;
        for (int64_t at = 0; at < entry.bytes; at += part)
            pieces.push_back({&tensors[i], streams[i] + at, std::min(part, entry.bytes - at), data + at});
    }
    fill_all(pieces, seed);
    checkpoint.dummy_codes = std::make_shared<DummyCodes>(addresses.bytes().data(), std::move(left), seed);
    directory.files.push_back(MappedFile::from_pages(std::move(now), "dummy"));
    directory.files.push_back(MappedFile::from_pages(std::move(addresses), "dummy codes"));
}

void add_outline(const std::vector<DummyTensor>& tensors, Checkpoint& checkpoint) {
    int64_t largest = 0;
    for (const DummyTensor& tensor : tensors)
        largest = std::max(largest, quant::bytes_of(tensor.format, element_count(tensor.shape).value_or(0)));
    const auto count = static_cast<int64_t>(tensors.size());
    Pages zeros = Pages::addresses(static_cast<size_t>(padded(largest) + count * kAlignment));
    int64_t offset = 0;
    for (const DummyTensor& tensor : tensors) {
        TensorEntry entry{tensor.name, tensor.format, tensor.shape, zeros.bytes().data() + offset};
        entry.bytes = quant::bytes_of(tensor.format, element_count(tensor.shape).value_or(0));
        entry.offset = offset;
        entry.sized_only = true;
        checkpoint.weights.tensors.emplace(tensor.name, std::move(entry));
        offset += kAlignment;
    }
    checkpoint.weights.files.push_back(MappedFile::from_pages(std::move(zeros), "outline"));
}

}  // namespace thermocline::model
