// Speed of the matmul kernels on one core: GB/s of weights for one vector (decode), GFLOP/s for 64 (prefill;
// --vectors=N: other numbers), for every format as it lies in files (rows), packed (strips), and packed with vectors
// rounded to e4m3 (e4m3) and int8. Beside each: the share of what this core reads from memory at most, or of what it
// multiplies at most, measured in the same run just before. Usage: kernels_bench [--isa=TIER] [--vectors=N] [Google
// Benchmark's flags].
#include "cpu/inputs.h"
#include "scheduler/bandwidth.h"
#include "scheduler/machine_speed.h"
#include "src/base/pages.h"
#include "tests/cpu/random_matrix.h"

#include <benchmark/benchmark.h>
#include <cstring>
#include <optional>
#include <span>

namespace thermocline::cpu {
namespace {

// About 64 MB of BF16, more than the last-level caches of most machines; the matrix of a 4-bit format takes more rows.
constexpr int64_t kBytes = int64_t{96} << 20;
constexpr int64_t kCols = 4096;

/// How a matrix lies and what its vectors are.
enum class Form { kRows, kStrips, kE4M3, kInt8 };
constexpr const char* kFormNames[] = {"/rows", "/strips", "/e4m3", "/int8"};
constexpr ops::InputRounding kRoundings[] = {ops::InputRounding::kExact, ops::InputRounding::kExact,
                                             ops::InputRounding::kE4M3, ops::InputRounding::kInt8};

bool exists(Form form, MatrixShape shape) {
    shape.rows = 128;
    const quant::Matrix packed = quant::packed_form(RandomMatrix(shape, 1).view());
    if (form == Form::kRows) return true;
    if (form == Form::kStrips) return packed.layout == quant::Layout::kStrips;
    return form == Form::kE4M3 ? quant::has_bf16_codes(packed) : quant::has_integer_codes(packed);
}

/// The best that the kernels could do at this moment: shared machines change.
double limit(const KernelTable& kernels, int64_t m, Form form) {
    Workers one({});
    if (m == 1) return scheduler::measure_read_bandwidth(one);
    const bool bf16 = form == Form::kE4M3 && kernels.matmul_bf16 != nullptr;
    return scheduler::measure_peak(one, kernels, form == Form::kInt8 ? Unit::kI8 : bf16 ? Unit::kBF16 : Unit::kF32);
}

void matmul(benchmark::State& state, const KernelTable& kernels, MatrixShape shape, int64_t m, Form kind) {
    const double most = limit(kernels, m, kind);
    shape.subnormal_scales = false;
    const int64_t row_bytes = quant::bytes_of(shape.format, shape.cols);
    shape.rows = m == 1 ? kBytes / row_bytes / 128 * 128 : 512;
    // 128 distinct rows, repeated: what is multiplied does not matter, only that it comes from memory.
    MatrixShape few = shape;
    few.rows = std::min<int64_t>(128, shape.rows);
    const RandomMatrix random(few, 1);
    quant::Matrix w = random.view();
    const Pages code_pages(static_cast<size_t>(shape.rows * row_bytes));
    const std::span<std::byte> codes = code_pages.bytes();
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
    std::optional<Pages> strips;
    if (kind != Form::kRows) {
        const quant::Matrix rows = w;
        w = quant::packed_form(rows);
        strips.emplace(static_cast<size_t>(w.rows / quant::kStripRows * w.strip_bytes));
        w.data = strips->bytes().data();
        quant::pack_strips(rows, 0, w.rows / quant::kStripRows, strips->bytes().data());
    }
    const InputForm form(w, kRoundings[static_cast<int>(kind)], kernels);
    const std::vector<float> numbers = random_floats(m * w.cols, 2);
    const Pages x_pages((static_cast<size_t>(m * form.panel_width(w.cols)) + kPanelSlack) * sizeof(float));
    auto* x = reinterpret_cast<float*>(x_pages.bytes().data());
    for (int64_t i = 0; i < m; ++i) form.prepare(numbers.data() + i * w.cols, w.cols, x, i, m);
    std::vector<float> y(static_cast<size_t>(m * w.rows));
    for (auto _ : state) {
        form.matmul()(w, 0, w.rows, x, form.stride(m, w.cols), m, y.data(), w.rows);
        benchmark::DoNotOptimize(y.data());
    }
    const auto rate = benchmark::Counter::kIsIterationInvariantRate;
    const double gigabytes = static_cast<double>(w.bytes()) * 1e-9;
    const double operations = 2e-9 * static_cast<double>(m * w.rows * w.cols);
    state.counters["GB/s"] = benchmark::Counter(gigabytes, rate);
    state.counters["GFLOP/s"] = benchmark::Counter(operations, rate);
    state.counters[m == 1 ? "limit GB/s" : "limit GFLOP/s"] = most;
    state.counters["of limit"] = benchmark::Counter((m == 1 ? gigabytes : operations) / most, rate);
}

}  // namespace
}  // namespace thermocline::cpu

int main(int argc, char** argv) {
    using namespace thermocline::cpu;
    std::string isa = "auto";
    int64_t vectors = 64;
    for (int i = argc - 1; i > 0; --i) {
        const std::string_view flag = argv[i];
        if (flag.starts_with("--isa="))
            isa = flag.substr(6);
        else if (flag.starts_with("--vectors="))
            vectors = std::atoll(argv[i] + 10);
        else
            continue;
        std::swap(argv[i], argv[--argc]);
    }
    const KernelTable& kernels = select_kernels(isa.c_str());
    for (const int64_t m : {int64_t{1}, vectors}) {
        for (const MatrixShape& shape : every_format(1, kCols)) {
            const std::string name = std::string(kernels.name) + "/m" + std::to_string(m) + "/" +
                                     std::string(thermocline::quant::traits(shape.format).name) +
                                     (shape.multiplier != 1.0f ? "_NV" : "");
            for (const Form form : {Form::kRows, Form::kStrips, Form::kE4M3, Form::kInt8}) {
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
