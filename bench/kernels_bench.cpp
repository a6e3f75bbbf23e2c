// Speed of the matmul kernels on one core: GB/s of weights for one vector (decode), GFLOP/s for 64 (prefill), for every
// format as it lies in files (rows), packed (strips) and packed with int8 vectors (int8), next to what plain reads and
// multiply-adds in registers reach on the same machine in the same run. Usage: kernels_bench [--isa=TIER] [Google
// Benchmark's flags].
#include "cpu/inputs.h"
#include "tests/cpu/random_matrix.h"

#include <benchmark/benchmark.h>
#include <cstring>

namespace thermocline::cpu {
namespace {

// About 64 MB of BF16, more than the last-level caches of most machines; the matrix of a 4-bit format takes more rows.
constexpr int64_t kBytes = int64_t{96} << 20;
constexpr int64_t kCols = 4096;

void read_memory(benchmark::State& state) {
    std::vector<uint64_t> data(kBytes / 8, 1);
    for (auto _ : state) {
        uint64_t sums[16] = {};
        for (size_t i = 0; i < data.size(); i += 16) {
            for (size_t j = 0; j < 16; ++j) sums[j] += data[i + j];
        }
        for (uint64_t& sum : sums) benchmark::DoNotOptimize(sum);
    }
    state.counters["GB/s"] =
        benchmark::Counter(static_cast<double>(kBytes) * 1e-9, benchmark::Counter::kIsIterationInvariantRate);
}

void multiply_adds(benchmark::State& state, const KernelTable& kernels) {
    int64_t operations = 0;
    for (auto _ : state) {
        float sink = 0.0f;
        operations = kernels.peak(Unit::kF32, 1 << 20, &sink);
        benchmark::DoNotOptimize(sink);
    }
    state.counters["GFLOP/s"] =
        benchmark::Counter(static_cast<double>(operations) * 1e-9, benchmark::Counter::kIsIterationInvariantRate);
}

/// How a matrix lies and what its vectors are.
enum class Form { kRows, kStrips, kInt8 };
constexpr const char* kFormNames[] = {"/rows", "/strips", "/int8"};

bool exists(Form form, MatrixShape shape) {
    shape.rows = 128;
    const quant::Matrix packed = quant::packed_form(RandomMatrix(shape, 1).view());
    return form == Form::kRows || (form == Form::kStrips && packed.layout == quant::Layout::kStrips) ||
           quant::has_integer_codes(packed);
}

void matmul(benchmark::State& state, const KernelTable& kernels, MatrixShape shape, int64_t m, Form kind) {
    const int64_t row_bytes = quant::bytes_of(shape.format, shape.cols);
    shape.rows = m == 1 ? kBytes / row_bytes / 128 * 128 : 512;
    // 128 distinct rows, repeated: what is multiplied does not matter, only that it comes from memory.
    MatrixShape few = shape;
    few.rows = std::min<int64_t>(128, shape.rows);
    const RandomMatrix random(few, 1);
    quant::Matrix w = random.view();
    std::vector<std::byte> codes(static_cast<size_t>(shape.rows * row_bytes));
    for (int64_t n = 0; n < shape.rows; ++n) {
        std::memcpy(codes.data() + n * row_bytes, w.data + n % few.rows * w.row_bytes, static_cast<size_t>(row_bytes));
    }
    w.rows = shape.rows;
    w.data = codes.data();
    std::vector<std::byte> scales;
    if (w.scales) {
        const int64_t count = (shape.rows + w.scale_rows - 1) / w.scale_rows;
        const int64_t few_count = (few.rows + w.scale_rows - 1) / w.scale_rows;
        scales.resize(static_cast<size_t>(count * w.scale_stride));
        for (int64_t n = 0; n < count; ++n) {
            std::memcpy(scales.data() + n * w.scale_stride, w.scales + n % few_count * w.scale_stride,
                        static_cast<size_t>(w.scale_stride));
        }
        w.scales = scales.data();
    }
    std::vector<std::byte> strips;
    if (kind != Form::kRows) {
        const quant::Matrix rows = w;
        w = quant::packed_form(rows);
        strips.resize(static_cast<size_t>(w.rows / quant::kStripRows * w.strip_bytes));
        w.data = strips.data();
        quant::pack_strips(rows, 0, w.rows / quant::kStripRows, strips.data());
    }
    const InputForm form(w, kind == Form::kInt8 ? ops::InputRounding::kInt8 : ops::InputRounding::kExact);
    const std::vector<float> numbers = random_floats(m * w.cols, 2);
    std::vector<float> x(numbers.size() + kPanelSlack);
    for (int64_t i = 0; i < m; ++i) form.prepare(kernels, numbers.data() + i * w.cols, w.cols, x.data(), i, m);
    std::vector<float> y(static_cast<size_t>(m * w.rows));
    for (auto _ : state) {
        form.matmul(kernels)(w, 0, w.rows, x.data(), form.stride(m, w.cols), m, y.data(), w.rows);
        benchmark::DoNotOptimize(y.data());
    }
    const auto rate = benchmark::Counter::kIsIterationInvariantRate;
    state.counters["GB/s"] = benchmark::Counter(static_cast<double>(w.bytes()) * 1e-9, rate);
    state.counters["GFLOP/s"] = benchmark::Counter(2e-9 * static_cast<double>(m * w.rows * w.cols), rate);
}

}  // namespace
}  // namespace thermocline::cpu

int main(int argc, char** argv) {
    using namespace thermocline::cpu;
    std::string isa = "auto";
    for (int i = 1; i < argc; ++i) {
        if (std::strncmp(argv[i], "--isa=", 6) == 0) {
            isa = argv[i] + 6;
            std::swap(argv[i], argv[--argc]);
        }
    }
    const KernelTable& kernels = select_kernels(isa.c_str());
    benchmark::RegisterBenchmark("read", read_memory);
    benchmark::RegisterBenchmark("multiply_adds",
                                 [&kernels](benchmark::State& state) { multiply_adds(state, kernels); });
    for (const int64_t m : {1, 64}) {
        for (const MatrixShape& shape : every_format(1, kCols)) {
            const std::string name = std::string(kernels.name) + "/m" + std::to_string(m) + "/" +
                                     std::string(thermocline::quant::traits(shape.format).name) +
                                     (shape.multiplier != 1.0f ? "_NV" : "");
            for (const Form form : {Form::kRows, Form::kStrips, Form::kInt8}) {
                if (!exists(form, shape)) continue;
                benchmark::RegisterBenchmark(
                    (name + kFormNames[static_cast<int>(form)]).c_str(),
                    [&kernels, shape, m, form](benchmark::State& state) { matmul(state, kernels, shape, m, form); })
                    ->Unit(benchmark::kMillisecond);
            }
        }
    }
    benchmark::Initialize(&argc, argv);
    benchmark::RunSpecifiedBenchmarks();
}
