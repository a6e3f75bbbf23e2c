#include "cuda/library.h"

#include "cuda/kernels/list.h"
#include "cuda/packed.h"
#include "src/base/error.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>
#include <functional>
#include <limits>
#include <map>
#include <random>
#include <tuple>

namespace thermocline::cuda {

namespace {

constexpr int64_t kStretchBytes = int64_t{32} << 20, kStretchUnit = 128;
constexpr int64_t kMostTried = 4096;  // rows; more are as fast each
constexpr int kTimes = 3;
constexpr std::chrono::minutes kPatience(1);
constexpr int64_t kSample = 64;      // rows of random vectors, over and over, and of results that are compared
constexpr double kTolerance = 1e-4;  // hybrid-engine.md 7.2, of sums that stay in the matrix unit

const quant::Matrix& matrix_of(const ops::Plan& plan, const ops::Linear& s) {
    return plan.matrices[static_cast<size_t>(s.weight)].matrix;
}

/// Whether the step belongs to prompts and its weights are exact in bf16.
bool may_ask(const ops::Plan& plan, const ops::Linear& s) {
    const quant::Matrix& w = matrix_of(plan, s);
    if (plan.slots[static_cast<size_t>(s.out)].rows != ops::Rows::kTokens || !is_packed(w) ||
        w.rows / s.groups % quant::kStripRows != 0)
        return false;
    switch (w.format) {
        case Format::kBF16:
            return true;
        case Format::kE4M3:  // four bits of it; scales of other kinds have up to 24 of their own
            return w.scale_format == Format::kE8M0;
        case Format::kE2M1Pair:  // two bits, times one or four of a scale
            return w.scale_format == Format::kE8M0 || w.scale_format == Format::kE4M3;
        default:  // four or eight bits times scales of eight or eleven
            return false;
    }
}

/// Rows of a group that are expanded at once: stretches of about one size.
int64_t stretch_rows(const quant::Matrix& w, int32_t groups) {
    const int64_t rows = w.rows / groups, most = std::max(kStretchUnit, kStretchBytes / (w.cols * 2));
    const int64_t stretches = (rows + most - 1) / most, each = (rows + stretches - 1) / stretches;
    return std::min(rows, (each + kStretchUnit - 1) / kStretchUnit * kStretchUnit);
}

template <typename Codes>
void expand(const quant::Matrix& w, int64_t first_row, int64_t rows, uint16_t* out, Stream& stream) {
    using Kernel = ExpandRows<Codes>;
    launch(stream,
           {.x = rows / quant::kStripRows,
            .y = (w.cols / quant::kStripBlock + Kernel::kWarps - 1) / Kernel::kWarps,
            .threads = Kernel::kMostThreads},
           Kernel{w, out, first_row / quant::kStripRows});
}

void expand_rows(const quant::Matrix& w, int64_t first_row, int64_t rows, uint16_t* out, Stream& stream) {
    if (w.format == Format::kBF16) return expand<Bf16Codes>(w, first_row, rows, out, stream);
    if (w.format == Format::kE4M3) return expand<E4M3Codes>(w, first_row, rows, out, stream);
    if (w.scale_format == Format::kE8M0) return expand<Mxfp4Codes>(w, first_row, rows, out, stream);
    expand<Nvfp4Codes>(w, first_row, rows, out, stream);
}

/// Steps that are alike take as long.
using Shape = std::tuple<Format, Format, int64_t, int64_t, int32_t, int32_t, ops::InputRounding>;
Shape shape_of(const ops::Plan& plan, const ops::Linear& s) {
    const quant::Matrix& w = matrix_of(plan, s);
    return {w.format, w.scale_format, w.rows, w.cols, s.groups, s.fold, s.rounding};
}

std::string name_of(const ops::Plan& plan, const ops::Linear& s) {
    const quant::Matrix& w = matrix_of(plan, s);
    return std::string(quant::traits(w.format).name) + " " + std::to_string(w.rows) + " x " + std::to_string(w.cols);
}

/// Of one product, both ways.
class Trial {
public:
    Trial(const Frame& f, Device& device, const LibraryProducts& products)
        : frame_(f), products_(products), in_(device, kSample * most_columns(f.plan) * 4), out_(device, in_.bytes()) {
        std::mt19937 random(11);
        std::normal_distribution<float> normal;
        std::generate_n(in_.as<float>(), in_.bytes() / 4, [&] { return normal(random); });
    }

    struct Times {
        double kernels, library;  // seconds
        std::string fault;        // of the library, in a clause; empty: none
    };
    Times operator()(const ops::Linear& s, int64_t rows) {
        frame_.batch.rows = rows;
        frame_.library = nullptr;
        const int64_t width = frame_.cols(s.in);
        for (int64_t row = 0; row < rows; row += kSample)
            frame_.stream.copy(frame_.slot(s.in) + row * width, in_.data(), std::min(kSample, rows - row) * width * 4);
        prepare(s, frame_);
        const double kernels = fastest([&] { multiply(s, frame_); });
        const std::vector<float> expected = last_rows(s);
        spoil_last_rows(s);
        try {
            const double library = fastest([&] { multiply_by_library(s, with_library()); });
            if (is_close(last_rows(s), expected)) return {kernels, library, ""};
        } catch (const Error& error) {  // if it is the card that failed, so will what comes next
            return {kernels, 0, error.what()};
        }
        return {kernels, 0, "it does not give what the kernels of this program give"};
    }

private:
    static int64_t most_columns(const ops::Plan& plan) {
        int64_t most = 0;
        for (const ops::SlotSpec& slot : plan.slots) most = std::max(most, slot.cols);
        return most;
    }

    Frame with_library() const {
        Frame f = frame_;
        f.library = &products_;
        return f;
    }

    double fastest(const std::function<void()>& play) const {
        double least = std::numeric_limits<double>::infinity();
        for (int i = 0; i < kTimes; ++i) {
            frame_.stream.wait(kPatience);
            const auto began = std::chrono::steady_clock::now();
            play();
            frame_.stream.wait(kPatience);
            least = std::min(least, std::chrono::duration<double>(std::chrono::steady_clock::now() - began).count());
        }
        return least;
    }

    std::vector<float> last_rows(const ops::Linear& s) const {
        const int64_t width = frame_.cols(s.out), rows = std::min(kSample, frame_.batch.rows);
        std::vector<float> numbers(static_cast<size_t>(rows * width));
        frame_.stream.copy(out_.data(), frame_.slot(s.out) + (frame_.batch.rows - rows) * width, rows * width * 4);
        frame_.stream.wait(kPatience);
        std::memcpy(numbers.data(), out_.data(), numbers.size() * sizeof(float));
        return numbers;
    }

    /// NaN, so that the library does not pass by what the kernels have left.
    void spoil_last_rows(const ops::Linear& s) const {
        const int64_t width = frame_.cols(s.out), rows = std::min(kSample, frame_.batch.rows);
        std::memset(out_.data(), 0xff, static_cast<size_t>(rows * width) * sizeof(float));
        frame_.stream.copy(frame_.slot(s.out) + (frame_.batch.rows - rows) * width, out_.data(), rows * width * 4);
    }

    /// As lengths of vectors go; no NaN is.
    static bool is_close(const std::vector<float>& found, const std::vector<float>& expected) {
        double apart = 0, size = 0;
        for (size_t i = 0; i < found.size(); ++i) {
            apart += (double{found[i]} - expected[i]) * (double{found[i]} - expected[i]);
            size += double{expected[i]} * expected[i];
        }
        return std::sqrt(apart) <= kTolerance * std::sqrt(size);
    }

    Frame frame_;
    const LibraryProducts& products_;
    PinnedMemory in_, out_;
};

std::string percent(double ratio) { return std::to_string(std::lround(100 * ratio)) + " %"; }

}  // namespace

int64_t expanded_bytes(const ops::Plan& plan, int64_t max_rows) {
    int64_t most = 0;
    for (const ops::Step& step : plan.steps) {
        const auto* s = std::get_if<ops::Linear>(&step);
        if (s == nullptr || max_rows < kLeastLibraryRows || !may_ask(plan, *s)) continue;
        const quant::Matrix& w = matrix_of(plan, *s);
        most = std::max(most, stretch_rows(w, s->groups) * w.cols * 2);
    }
    return most;
}

void multiply_by_library(const ops::Linear& s, const Frame& f) {
    const quant::Matrix& w = f.weights.matrices[static_cast<size_t>(s.weight)];
    const int64_t vectors = f.rows(s.in) * s.fold, rows = w.rows / s.groups, most = stretch_rows(w, s.groups);
    const int pieces = input_form(s, f).pieces;
    const auto* x = reinterpret_cast<const uint16_t*>(f.scratch);
    for (int64_t group = 0; group < s.groups; ++group)
        for (int64_t first = 0; first < rows; first += most) {
            const int64_t row = group * rows + first, count = std::min(most, rows - first);
            expand_rows(w, row, count, f.library->expanded, f.stream);
            for (int64_t piece = 0; piece < pieces; ++piece)
                f.stream.multiply({f.library->expanded, x + (group * pieces + piece) * w.cols, f.slot(s.out) + row,
                                   count, w.cols, vectors, s.groups * pieces * w.cols, w.rows, w.multiplier,
                                   piece > 0});
        }
}

LibraryProducts try_library(const Frame& f, Device& device, int64_t max_rows, uint16_t* expanded) {
    LibraryProducts products{.expanded = expanded};
    if (expanded_bytes(f.plan, max_rows) == 0) return products;
    const Library& library = device.library();
    if (library.name.empty()) {
        products.report = {"all by the kernels of this program: " + library.why_none};
        return products;
    }
    Trial trial(f, device, products);
    std::vector<int64_t> from_rows(f.plan.matrices.size());
    std::map<Shape, int64_t> known;
    for (const ops::Step& step : f.plan.steps) {
        const auto* s = std::get_if<ops::Linear>(&step);
        if (s == nullptr || !may_ask(f.plan, *s)) continue;
        const auto [found, is_new] = known.emplace(shape_of(f.plan, *s), 0);
        int64_t& from = found->second;
        std::string line = name_of(f.plan, *s) + ": " + library.name;
        for (int64_t rows = std::min(max_rows, kMostTried); is_new && rows >= kLeastLibraryRows; rows /= 2) {
            const Trial::Times times = trial(*s, rows);
            const bool slow = times.library >= times.kernels;
            if (!times.fault.empty() || slow) {
                line += " with " + std::to_string(rows) + " rows: ";
                line += slow ? percent(times.library / times.kernels) + " of the time," : times.fault + ",";
                if (!slow) from = 0;
                break;
            }
            if (from == 0)
                line += " with " + std::to_string(rows) + " rows: " + percent(times.library / times.kernels) +
                        " of the time,";
            from = rows;
        }
        from_rows[static_cast<size_t>(s->weight)] = from;
        if (!is_new) continue;
        line += from == 0 ? " not used" : " used from " + std::to_string(from) + " rows on";
        products.report.push_back(std::move(line));
    }
    products.from_rows = std::move(from_rows);
    return products;
}

}  // namespace thermocline::cuda
