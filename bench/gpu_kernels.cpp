// How fast a card multiplies with the dense matrices of V4-Flash and plays its resident experts in decode, beside what
// a kernel reads from its memory; its rate of bf16 products of a prompt; a hand-off to the CPU by every way of waiting.
// Each matrix lies there so often that no cache holds them all; the products are one recorded graph, timed by the clock
// of the host from its start to its end. Prints one JSON document.
//
//   gpu_kernels [--gpus 1|emulated] [--quick]
#include "cuda/cuda.h"
#include "cuda/emulation/device.h"
#include "cuda/handoff_speed.h"
#include "cuda/kernels/handoff.h"
#include "cuda/run.h"
#include "cuda/scratch.h"
#include "cuda/weights.h"
#include "src/base/error.h"
#include "src/base/json.h"
#include "src/quant/strips.h"

#include <algorithm>
#include <array>
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
    bool exact = false;  // inputs are not rounded to e4m3, but split into several numbers of bf16
};

// wo_a is one matrix of blocks of 1024 rows that each have vectors of their own.
constexpr Product kProducts[] = {{"attn.wq_a", Format::kE4M3, 1024, 4096, 1},
                                 {"attn.wq_b", Format::kE4M3, 32768, 1024, 1},
                                 {"attn.wkv", Format::kE4M3, 512, 4096, 1},
                                 {"attn.compressor.wkv", Format::kBF16, 1024, 4096, 1, true},
                                 {"attn.wo_a", Format::kE4M3, 8192, 4096, 8},
                                 {"attn.wo_b", Format::kE4M3, 4096, 8192, 1},
                                 {"ffn.shared_experts.w1", Format::kE4M3, 2048, 4096, 1},
                                 {"head", Format::kBF16, 129280, 4096, 1, true}};

constexpr int64_t kHidden = 4096, kIntermediate = 2048;  // of its experts
constexpr int32_t kTopK = 6;

struct Size {
    int64_t memory_bytes;  // that copies of a matrix take, at least
    int passes;
    int64_t shrink;         // rows are divided by it
    int64_t expert_shrink;  // both sides of experts
    int64_t prompt;         // tokens of the bf16 product
};
constexpr Size kFull = {int64_t{1} << 30, 7, 1, 1, 4096}, kQuick = {1 << 16, 1, 64, 16, 32};
constexpr std::chrono::minutes kPatience(2);

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

/// Seconds of the best of some passes of play(), which starts work in the stream.
template <typename Play>
double best_seconds(cuda::Stream& stream, int passes, Play play) {
    double best = 0;
    for (int pass = 0; pass <= passes; ++pass) {
        const auto start = Clock::now();
        play();
        stream.wait(kPatience);
        const double taken = std::chrono::duration<double>(Clock::now() - start).count();
        if (pass > 0) best = pass == 1 ? taken : std::min(best, taken);  // the first one warms up
    }
    return best;
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
            plan_.steps.push_back(
                ops::Linear{.in = 0,
                            .weight = static_cast<ops::MatrixId>(i),
                            .out = 1,
                            .groups = product.groups,
                            .rounding = product.exact ? ops::InputRounding::kExact : ops::InputRounding::kE4M3});
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
    double seconds(int passes) {
        return best_seconds(*stream_, passes, [&] { stream_->play(*graph_); });
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

/// The experts of a layer whose choices all lie on the card, for one row, layer after layer: what a pass plays between
/// its job for the CPU and the sum.
class ExpertSeries {
public:
    ExpertSeries(cuda::Device& device, cuda::Variants variants, const Size& size) : stream_(device.new_stream()) {
        const int64_t hidden = kHidden / size.expert_shrink, intermediate = kIntermediate / size.expert_shrink;
        const auto* somewhere = reinterpret_cast<const std::byte*>(256);
        const quant::Matrix up = matrix_at({"", Format::kE2M1Pair, intermediate, hidden, 1}, 1, somewhere);
        const quant::Matrix down = matrix_at({"", Format::kE2M1Pair, hidden, intermediate, 1}, 1, somewhere);
        const int64_t slot_bytes = 2 * cuda::placed_bytes(up) + cuda::placed_bytes(down);
        const int64_t layers = size.memory_bytes / (slot_bytes * kTopK) + 1, experts = layers * kTopK;
        bytes_ = experts * (2 * up.bytes() + down.bytes());

        const auto all = static_cast<size_t>(experts);
        plan_.experts = {{"experts", hidden, intermediate, {all, up}, {all, down}, {all, up}}};
        plan_.slots = {{"x", hidden, ops::Rows::kTokens},
                       {"weights", kTopK, ops::Rows::kTokens},
                       {"ids", kTopK, ops::Rows::kTokens}};
        constexpr float kLimit = 10.0f;
        const ops::Experts step{0, 2, 1, 0, 0, kTopK, kLimit, ops::InputRounding::kE4M3};
        plan_.steps = {step};

        std::byte* at = take(device, experts * slot_bytes);
        std::vector<cuda::Copy> never_copied;
        slots_ = {cuda::place(up, at, never_copied), {}, {}, slot_bytes, nullptr, nullptr};
        slots_.w3 = cuda::place(up, at + cuda::placed_bytes(up), never_copied);
        slots_.w2 = cuda::place(down, at + 2 * cuda::placed_bytes(up), never_copied);
        host_ = cuda::PinnedMemory(device, experts * (4 + 4 * cuda::kMultipliers) + (1 + 4 * kTopK + hidden) * 4 +
                                               2 * int64_t{sizeof(cuda::Flag)});
        const cuda::HostJob job = upload(device, experts, hidden);

        std::vector<cuda::Frame> frames;
        slot_rows_.reserve(static_cast<size_t>(layers));
        for (int64_t layer = 0; layer < layers; ++layer) {
            auto* ids = reinterpret_cast<float*>(slots_of_all_ + layer * kTopK);  // expert i lies in slot i
            slot_rows_.push_back({x_, weights_of_choices_, ids});
            cuda::Batch batch{};
            batch.rows = 1;
            frames.push_back({plan_, none_, batch, slot_rows_.back().data(), nullptr, nullptr, nullptr, *stream_,
                              &slots_, cuda::pairs_memory(plan_, 1, [&](int64_t bytes) { return take(device, bytes); }),
                              nullptr, variants});
            cuda::send_job(step, frames.back(), job);  // lists the pairs of the layer
        }
        stream_->wait(kPatience);
        if (job.job->value != cuda::kNothingToDo) fail("experts that lie on the card were left to the CPU");
        stream_->begin_recording();
        for (const cuda::Frame& frame : frames) cuda::run(step, frame);
        graph_ = stream_->end_recording();
        layers_ = layers;
    }

    int64_t bytes() const { return bytes_; }
    int64_t layers() const { return layers_; }
    double seconds(int passes) {
        return best_seconds(*stream_, passes, [&] { stream_->play(*graph_); });
    }

private:
    std::byte* take(cuda::Device& device, int64_t bytes) {
        return memory_.emplace_back(device, std::max<int64_t>(bytes, 1)).data();
    }

    /// Tables of the slots and one row's choices to the card; the job takes what is behind them in host_.
    cuda::HostJob upload(cuda::Device& device, int64_t experts, int64_t hidden) {
        auto* flags = host_.as<cuda::Flag>();
        auto* numbers = reinterpret_cast<int32_t*>(flags + 2);
        auto* multipliers = reinterpret_cast<float*>(numbers + experts);
        auto* weights = multipliers + experts * cuda::kMultipliers;
        for (int64_t i = 0; i < experts; ++i) numbers[i] = static_cast<int32_t>(i);
        std::fill_n(multipliers, experts * cuda::kMultipliers, 1.0f);
        std::fill_n(weights, kTopK, 1.0f / kTopK);
        const auto to_card = [&](const void* from, int64_t bytes) {
            std::byte* to = take(device, bytes);
            stream_->copy(to, from, bytes);
            return to;
        };
        slots_of_all_ = reinterpret_cast<int32_t*>(to_card(numbers, experts * 4));
        slots_.slot_of = slots_of_all_;
        slots_.multipliers = reinterpret_cast<float*>(to_card(multipliers, experts * 4 * cuda::kMultipliers));
        weights_of_choices_ = reinterpret_cast<float*>(to_card(weights, int64_t{kTopK} * 4));
        x_ = reinterpret_cast<float*>(take(device, hidden * 4));
        auto* ids = reinterpret_cast<int32_t*>(weights + kTopK);
        auto* job_weights = reinterpret_cast<float*>(ids + kTopK);
        auto* chosen = reinterpret_cast<int32_t*>(job_weights + kTopK);
        return {reinterpret_cast<float*>(chosen + kTopK), ids, job_weights, chosen, flags, flags + 1};
    }

    std::vector<cuda::DeviceMemory> memory_;
    cuda::PinnedMemory host_;
    cuda::ExpertSlots slots_;
    cuda::Weights none_;
    ops::Plan plan_;
    int32_t* slots_of_all_ = nullptr;
    float *x_ = nullptr, *weights_of_choices_ = nullptr;
    std::vector<std::array<float*, 3>> slot_rows_;  // of every layer, by the slots of the plan
    int64_t bytes_ = 0, layers_ = 0;
    std::unique_ptr<cuda::Graph> graph_;
    std::unique_ptr<cuda::Stream> stream_;  // last: it ends before its memory does
};

Json row_of(const char* name, Format format, int64_t rows, int64_t cols, int64_t vectors, double us, double gb_per_s,
            double memory_read) {
    return {
        {"product", name},      {"format", quant::traits(format).name},
        {"rows", rows},         {"cols", cols},
        {"vectors", vectors},   {"us", us},
        {"gb_per_s", gb_per_s}, {"fraction_of_memory_read", memory_read > 0 ? Json(gb_per_s / memory_read) : Json()}};
}

Json measure_kernels(cuda::Device& device, cuda::Variants variants, const Size& size, double memory_read) {
    Json kernels = Json::array();
    for (const Product& product : kProducts)
        for (const int64_t vectors : {1, 8}) {
            Series series(device, variants, product, size, vectors);
            const double seconds = series.seconds(size.passes);
            kernels.push_back(row_of(product.name, product.format, product.rows / size.shrink, product.cols, vectors,
                                     seconds * 1e6 / static_cast<double>(series.products()),
                                     static_cast<double>(series.bytes()) / seconds * 1e-9, memory_read));
        }
    ExpertSeries experts(device, variants, size);
    const double seconds = experts.seconds(size.passes);
    kernels.push_back(row_of("ffn.experts, 6 resident", Format::kE2M1Pair, kIntermediate / size.expert_shrink,
                             kHidden / size.expert_shrink, 1, seconds * 1e6 / static_cast<double>(experts.layers()),
                             static_cast<double>(experts.bytes()) / seconds * 1e-9, memory_read));
    return kernels;
}

/// Tflop/s of a bf16 product of a prompt: by the kernels of this program, and by the library if there is one.
Json measure_prompt_product(cuda::Device& device, cuda::Variants variants, const Size& size) {
    constexpr int64_t kRows = 8192, kCols = 8192;
    const auto rate = [&](int64_t rows, double seconds) {
        return 2e-12 * static_cast<double>(rows * kCols * size.prompt) / seconds;
    };
    const Product product = {"bf16", Format::kBF16, kRows, kCols, 1};
    const int64_t rows = kRows / size.shrink;
    Json found = {{"rows", rows}, {"cols", kCols}, {"vectors", size.prompt}};
    {
        Series series(device, variants, product, {1, size.passes, size.shrink, 1, size.prompt}, size.prompt);
        found["kernels"] = rate(rows, series.seconds(size.passes));
    }
    found["library"] = Json();
    found["library_name"] =
        device.library().name.empty() ? "none: " + device.library().why_none : device.library().name;
    if (device.library().name.empty()) return found;
    const cuda::DeviceMemory w(device, rows * kCols * 2), x(device, size.prompt * kCols * 2),
        out(device, size.prompt * rows * 4);
    const std::unique_ptr<cuda::Stream> stream = device.new_stream();
    const cuda::DenseProduct one{
        w.as<uint16_t>(), x.as<uint16_t>(), out.as<float>(), rows, kCols, size.prompt, kCols, rows};
    found["library"] = rate(rows, best_seconds(*stream, size.passes, [&] { stream->multiply(one); }));
    return found;
}

Json measure_handoffs(bool real) {
    Json ways = Json::array();
    for (const cuda::HandoffSpeed& speed : cuda::measure_handoffs([&](cuda::FlagWait way) {
             return real ? cuda::open_device(0, {&way, 1}) : cuda::emulation::open({.flag_wait = way});
         }))
        ways.push_back({{"way", cuda::name_of(speed.way)},
                        {"us", speed.us > 0 ? Json(speed.us) : Json()},
                        {"why_not", speed.why_not}});
    return ways;
}

int run(const std::string& gpus, bool quick) {
    if (gpus != "1" && gpus != "emulated") fail("--gpus is ", gpus, ", expected 1 or emulated");
    const bool real = gpus == "1";
    const Size& size = quick ? kQuick : kFull;
    Json handoffs = measure_handoffs(real);
    const std::unique_ptr<cuda::Device> device = real ? cuda::open_device(0) : cuda::emulation::open({});
    const cuda::DeviceInfo& card = device->info();
    const double memory_read = real ? cuda::measure_memory_read(0) : 0;
    const cuda::Variants variants = cuda::try_variants(*device);
    Json report = {{"gpu", card.name},
                   {"sm", std::to_string(card.compute_major) + std::to_string(card.compute_minor)},
                   {"emulated", !real},
                   {"memory_read_gb_per_s", real ? Json(memory_read) : Json()},
                   {"flag_wait", cuda::name_of(device->flag_wait())},
                   {"handoffs", std::move(handoffs)}};
    report["variants"] = {{"tried", card.compute_major == 12},  // other cards have none of them
                          {"mx_products", variants.mx_products},
                          {"mx_experts", variants.mx_experts},
                          {"fp4_keys", variants.fp4_keys}};
    report["kernels"] = measure_kernels(*device, variants, size, memory_read);
    report["bf16_product_tflops"] = measure_prompt_product(*device, variants, size);
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
