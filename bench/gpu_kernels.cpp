// How fast a card multiplies with the dense matrices of V4-Flash in decode, beside what a kernel reads from its memory.
// Each matrix lies there so often that no cache holds them all; the products are one recorded graph, timed by the clock
// of the host from its start to its end. Prints one JSON document.
//
//   gpu_kernels [--gpus 1|emulated] [--quick]
#include "cuda/cuda.h"
#include "cuda/emulation/device.h"
#include "cuda/run.h"
#include "cuda/scratch.h"
#include "cuda/weights.h"
#include "src/base/error.h"
#include "src/base/json.h"
#include "src/quant/strips.h"

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace thermocline {
namespace {

using quant::Format;
using Clock = std::chrono::steady_clock;

struct Product {
    const char* name;
    Format format;
    int64_t rows, cols;
    int32_t groups;
};

// wo_a is one matrix of blocks of 1024 rows that each have vectors of their own.
constexpr Product kProducts[] = {{"attn.wq_a", Format::kE4M3, 1024, 4096, 1},
                                 {"attn.wq_b", Format::kE4M3, 32768, 1024, 1},
                                 {"attn.wkv", Format::kE4M3, 512, 4096, 1},
                                 {"attn.compressor.wkv", Format::kBF16, 1024, 4096, 1},
                                 {"attn.wo_a", Format::kE4M3, 8192, 4096, 8},
                                 {"attn.wo_b", Format::kE4M3, 4096, 8192, 1},
                                 {"ffn.shared_experts.w1", Format::kE4M3, 2048, 4096, 1},
                                 {"ffn.experts.w1 (MXFP4)", Format::kE2M1Pair, 2048, 4096, 1},
                                 {"head", Format::kBF16, 129280, 4096, 1}};

struct Size {
    int64_t memory_bytes;  // that copies of a matrix take, at least
    int passes;
    int64_t shrink;  // rows are divided by it
};
constexpr Size kFull = {int64_t{1} << 30, 7, 1}, kQuick = {1 << 16, 1, 64};

/// The product's matrix in packed form, its data at `at`; what lies there does not matter for the time.
quant::Matrix matrix_at(const Product& p, int64_t shrink, const std::byte* at) {
    quant::Matrix m{.format = p.format, .rows = p.rows / shrink / 16 * 16, .cols = p.cols, .data = at};
    m.rows = std::max<int64_t>(m.rows, int64_t{16} * p.groups);
    m.row_bytes = quant::bytes_of(p.format, p.cols);
    if (p.format == Format::kE4M3) {
        m.scale_rows = m.scale_cols = 128;
        m.scale_stride = p.cols / 128;
    }
    if (p.format == Format::kE2M1Pair) {
        m.scale_cols = 32;
        m.scale_stride = p.cols / 32;
    }
    if (p.format != Format::kBF16) {
        m.scales = at;
        m.scale_format = Format::kE8M0;
    }
    quant::Matrix packed = quant::packed_form(m);
    packed.data = at;
    return packed;
}

/// Copies of one matrix on a card, multiplied one after the other.
class Series {
public:
    Series(cuda::Device& device, cuda::Variants variants, const Product& product, const Size& size, int64_t vectors)
        : stream_(device.new_stream()) {
        const quant::Matrix pattern = matrix_at(product, size.shrink, reinterpret_cast<const std::byte*>(256));
        const int64_t each = cuda::placed_bytes(pattern), count = (size.memory_bytes + each - 1) / each;
        weights_ = cuda::DeviceMemory(device, count * each);
        std::vector<cuda::Copy> never_copied;
        for (int64_t i = 0; i < count; ++i) {
            on_card_.matrices.push_back(cuda::place(pattern, weights_.data() + i * each, never_copied));
            plan_.matrices.push_back({product.name, on_card_.matrices.back()});
            plan_.steps.push_back(ops::Linear{
                .in = 0,
                .weight = static_cast<ops::MatrixId>(i),
                .out = 1,
                .groups = product.groups,
                .rounding = product.format == Format::kBF16 ? ops::InputRounding::kExact : ops::InputRounding::kE4M3});
        }
        bytes_ = count * pattern.bytes();
        plan_.slots = {{"in", product.groups * pattern.cols, ops::Rows::kTokens},
                       {"out", pattern.rows, ops::Rows::kTokens}};
        in_ = cuda::DeviceMemory(device, vectors * plan_.slots[0].cols * 4);
        out_ = cuda::DeviceMemory(device, vectors * plan_.slots[1].cols * 4);
        scratch_ = cuda::DeviceMemory(device, cuda::scratch_bytes(plan_, vectors, vectors));
        record(variants, vectors);
    }

    int64_t bytes() const { return bytes_; }
    int64_t products() const { return std::ssize(plan_.steps); }
    /// Seconds of the best of some passes.
    double seconds(int passes) {
        double best = 0;
        for (int pass = 0; pass <= passes; ++pass) {
            const auto start = Clock::now();
            stream_->play(*graph_);
            stream_->wait(std::chrono::minutes(2));
            const double taken = std::chrono::duration<double>(Clock::now() - start).count();
            if (pass > 0) best = pass == 1 ? taken : std::min(best, taken);  // the first one warms up
        }
        return best;
    }

private:
    /// The input is prepared once: in a model other steps share it.
    void record(cuda::Variants variants, int64_t vectors) {
        float* slots[] = {in_.as<float>(), out_.as<float>()};
        cuda::Batch batch{};
        batch.rows = vectors;
        const cuda::Frame frame{plan_,           on_card_, batch,   slots, nullptr, nullptr,
                                scratch_.data(), *stream_, nullptr, {},    nullptr, variants};
        stream_->begin_recording();
        cuda::prepare(std::get<ops::Linear>(plan_.steps.front()), frame);
        for (const ops::Step& step : plan_.steps) cuda::multiply(std::get<ops::Linear>(step), frame);
        graph_ = stream_->end_recording();
    }

    std::unique_ptr<cuda::Stream> stream_;
    cuda::DeviceMemory weights_, in_, out_, scratch_;
    cuda::Weights on_card_;
    ops::Plan plan_;
    int64_t bytes_ = 0;
    std::unique_ptr<cuda::Graph> graph_;
};

Json measure(cuda::Device& device, const Size& size, double memory_read) {
    const cuda::Variants variants = cuda::try_variants(device);
    Json kernels = Json::array();
    for (const Product& product : kProducts)
        for (const int64_t vectors : {1, 8}) {
            Series series(device, variants, product, size, vectors);
            const double seconds = series.seconds(size.passes);
            const double rate = static_cast<double>(series.bytes()) / seconds * 1e-9;
            Json row = {{"product", product.name},
                        {"format", quant::traits(product.format).name},
                        {"rows", product.rows / size.shrink},
                        {"cols", product.cols},
                        {"vectors", vectors},
                        {"us", seconds * 1e6 / static_cast<double>(series.products())},
                        {"gb_per_s", rate}};
            row["fraction_of_memory_read"] = memory_read > 0 ? Json(rate / memory_read) : Json();
            kernels.push_back(row);
        }
    return kernels;
}

int run(const std::string& gpus, bool quick) {
    if (gpus != "1" && gpus != "emulated") fail("--gpus is ", gpus, ", expected 1 or emulated");
    const bool real = gpus == "1";
    const std::unique_ptr<cuda::Device> device = real ? cuda::open_device(0) : cuda::emulation::open({});
    const cuda::DeviceInfo& card = device->info();
    const double memory_read = real ? cuda::measure_memory_read(0) : 0;
    Json report = {{"gpu", card.name},
                   {"sm", std::to_string(card.compute_major) + std::to_string(card.compute_minor)},
                   {"emulated", !real},
                   {"memory_read_gb_per_s", real ? Json(memory_read) : Json()},
                   {"flag_wait", cuda::name_of(device->flag_wait())},
                   {"handoff_us", real ? Json(cuda::measure_handoff_us(0)) : Json()}};
    report["mx_products"] = cuda::try_variants(*device).mx_products;
    report["kernels"] = measure(*device, quick ? kQuick : kFull, memory_read);
    std::printf("%s\n", dump_json(report, 2).c_str());
    return 0;
}

}  // namespace
}  // namespace thermocline

int main(int count, char** values) {
    std::string gpus = "1";
    bool quick = false;
    for (int i = 1; i < count; ++i) {
        const std::string_view flag = values[i];
        if (flag == "--quick") {
            quick = true;
        } else if (flag == "--gpus" && i + 1 < count) {
            gpus = values[++i];
        } else {
            std::fprintf(stderr, "usage: gpu_kernels [--gpus 1|emulated] [--quick]\n");
            return 2;
        }
    }
    try {
        return thermocline::run(gpus, quick);
    } catch (const thermocline::Error& error) {
        std::fprintf(stderr, "gpu_kernels: %s\n", error.what());
        return 1;
    }
}
