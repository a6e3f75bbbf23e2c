#include "tests/oracle.h"

#include "src/base/check.h"
#include "src/quant/kv_row.h"
#include "src/quant/reference.h"
#include "src/quant/scalar.h"
#include "src/quant/strips.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <numeric>

namespace thermocline::oracle {
namespace {

using ops::kNone;
using Vector = std::vector<double>;

double sigmoid(double x) { return 1 / (1 + std::exp(-x)); }

double to_bf16(double x) { return quant::round_bf16(static_cast<float>(x)); }

/// e4m3 in groups of 128 with a power-of-two scale, floor 1e-4 (2.11).
/// Groups of 32, largest magnitude -> 127.
void round_int8(Vector& x) {
    for (size_t first = 0; first < x.size(); first += 32) {
        double amax = 0;
        for (size_t i = first; i < first + 32; ++i) amax = std::max(amax, std::abs(x[i]));
        for (size_t i = first; amax > 0 && i < first + 32; ++i) x[i] = std::nearbyint(x[i] * 127 / amax) * amax / 127;
    }
}

void round_e4m3(Vector& x) {
    for (size_t first = 0; first < x.size(); first += 128) {
        const size_t last = std::min(first + 128, x.size());
        double amax = 1e-4;
        for (size_t i = first; i < last; ++i) amax = std::max(amax, std::abs(x[i]));
        double scale = 0x1p-60;
        while (amax > 448 * scale) scale *= 2;
        for (size_t i = first; i < last; ++i) {
            const double magnitude = std::abs(x[i]) / scale;
            int exponent = 0;
            std::frexp(magnitude, &exponent);                                 // magnitude in [2^(e-1), 2^e)
            const double step = std::ldexp(1.0, std::max(exponent, -5) - 4);  // 3 mantissa bits, smallest step 2^-9
            x[i] = std::copysign(std::nearbyint(magnitude / step) * step * scale, x[i]);
        }
    }
}

void round_input(ops::InputRounding rounding, const quant::Matrix& w, Vector& x) {
    if (rounding == ops::InputRounding::kE4M3) round_e4m3(x);
    if (rounding == ops::InputRounding::kBF16 && quant::has_bf16_numbers(w))
        for (double& number : x) number = to_bf16(number);
    if (rounding == ops::InputRounding::kInt8 && quant::has_integer_codes(w)) round_int8(x);
}

/// `width` channels from `first` on, rotated at `position`: interleaved pairs of the last rope.dims() channels (2.4).
void rotate(double* x, int64_t width, const ops::RopeTable& rope, int64_t position, bool inverse) {
    const int64_t start = width - rope.dims();
    for (size_t i = 0; i < rope.frequencies.size(); ++i) {
        // One float32 product, as every reference forms it; cosine and sine of that number are exact.
        const float angle = static_cast<float>(position) * rope.frequencies[i];
        const double c = std::cos(static_cast<double>(angle));
        const double s = inverse ? -std::sin(static_cast<double>(angle)) : std::sin(static_cast<double>(angle));
        double& a = x[start + 2 * static_cast<int64_t>(i)];
        double& b = x[start + 2 * static_cast<int64_t>(i) + 1];
        const double old_a = a;
        a = old_a * c - b * s;
        b = old_a * s + b * c;
    }
}

double mean_square(const double* x, int64_t n) {
    double sum = 0;
    for (int64_t i = 0; i < n; ++i) sum += x[i] * x[i];
    return sum / static_cast<double>(n);
}

Vector matrix_row(const quant::Matrix& w, int64_t row) {
    std::vector<float> values(static_cast<size_t>(w.cols));
    quant::decode_row(w, row, 0, w.cols, values.data());
    return Vector(values.begin(), values.end());
}

double dot(const Vector& a, const double* b) { return std::inner_product(a.begin(), a.end(), b, 0.0); }

Vector multiply(const quant::Matrix& w, const Vector& x) {
    Vector y;
    for (int64_t n = 0; n < w.rows; ++n) y.push_back(dot(matrix_row(w, n), x.data()));
    return y;
}

/// silu(min(gate, limit)) * clamp(up, -limit, limit) (2.8).
double swiglu(double gate, double up, double limit) {
    const double g = std::min(gate, limit);
    return g * sigmoid(g) * std::clamp(up, -limit, limit);
}

/// Indices of the `count` largest values, best first; of equal values the lower index (2.7, 2.8).
std::vector<int64_t> top_indices(const Vector& values, int64_t count) {
    std::vector<int64_t> order(values.size());
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) {
        return values[static_cast<size_t>(a)] > values[static_cast<size_t>(b)];
    });
    order.resize(static_cast<size_t>(count));
    return order;
}

/// Plays the steps of one batch. Rows are addressed by plain pointers into the slots.
struct Player {
    const ops::Plan& plan;
    const ops::Batch& batch;
    OracleSequences& sequences;
    OracleSlots& slots;

    int64_t cols(ops::Slot slot) const { return plan.slots.at(static_cast<size_t>(slot)).cols; }
    int64_t rows(ops::Slot slot) const {
        return plan.slots.at(static_cast<size_t>(slot)).rows == ops::Rows::kTokens ? batch.rows() : batch.outputs();
    }
    double* row(ops::Slot slot, int64_t t) const { return slots.at(static_cast<size_t>(slot)).data() + t * cols(slot); }
    Vector copy(ops::Slot slot, int64_t t, int64_t first, int64_t count) const {
        return Vector(row(slot, t) + first, row(slot, t) + first + count);
    }
    const quant::Matrix& matrix(ops::MatrixId id) const { return plan.matrices.at(static_cast<size_t>(id)).matrix; }
    const std::vector<float>& vector(ops::VectorId id) const { return plan.vectors.at(static_cast<size_t>(id)).values; }
    const ops::RopeTable& rope(ops::RopeId id) const { return plan.ropes.at(static_cast<size_t>(id)); }
    const ops::CacheSpec& cache(ops::CacheId id) const { return plan.caches.at(static_cast<size_t>(id)); }
    int64_t position(int64_t t) const { return batch.positions[static_cast<size_t>(t)]; }
    int64_t segment_of(int64_t t) const {
        for (size_t i = 0; i < batch.segments.size(); ++i) {
            const ops::Segment& segment = batch.segments[i];
            if (t >= segment.first_row && t < segment.first_row + segment.rows) return static_cast<int64_t>(i);
        }
        CHECK(false);
        return -1;
    }
    History& history(int64_t segment, ops::CacheId id) const {
        return sequences.at(static_cast<size_t>(segment))->caches.at(static_cast<size_t>(id));
    }

    void operator()(const ops::Embed& s) const {
        for (int64_t t = 0; t < batch.rows(); ++t) {
            const Vector e = matrix_row(matrix(s.table), batch.tokens[static_cast<size_t>(t)]);
            for (int32_t c = 0; c < s.copies; ++c)
                std::copy(e.begin(), e.end(), row(s.out, t) + c * static_cast<int64_t>(e.size()));
        }
    }

    void operator()(const ops::Linear& s) const {
        const quant::Matrix& w = matrix(s.weight);
        const int64_t block = w.rows / s.groups;
        const int64_t vectors = cols(s.in) / w.cols;  // fold * groups
        std::vector<Vector> inputs;                   // [T * vectors]
        for (int64_t t = 0; t < rows(s.in); ++t) {
            for (int64_t v = 0; v < vectors; ++v) {
                inputs.push_back(copy(s.in, t, v * w.cols, w.cols));
                round_input(s.rounding, w, inputs.back());
            }
        }
        for (int64_t n = 0; n < w.rows; ++n) {
            const Vector weight = matrix_row(w, n);
            for (int64_t t = 0; t < rows(s.in); ++t) {
                for (int64_t f = 0; f < s.fold; ++f) {
                    const Vector& x = inputs[static_cast<size_t>(t * vectors + f * s.groups + n / block)];
                    row(s.out, t)[f * w.rows + n] = dot(weight, x.data());
                }
            }
        }
    }

    void operator()(const ops::RmsNorm& s) const {
        for (int64_t t = 0; t < rows(s.in); ++t) {
            for (int64_t first = 0; first < cols(s.in); first += s.width) {
                const double factor = 1 / std::sqrt(mean_square(row(s.in, t) + first, s.width) + s.eps);
                for (int64_t i = 0; i < s.width; ++i) {
                    const double weight = s.weight == kNone ? 1.0 : vector(s.weight)[static_cast<size_t>(i)];
                    row(s.out, t)[first + i] = row(s.in, t)[first + i] * factor * weight;
                }
            }
        }
    }

    void operator()(const ops::Rope& s) const {
        for (int64_t t = 0; t < batch.rows(); ++t)
            for (int64_t first = 0; first < cols(s.x); first += s.width)
                rotate(row(s.x, t) + first, s.width, rope(s.rope), position(t), s.inverse);
    }

    /// A after softmax over rows and Sinkhorn: it ends on columns (2.2).
    static void sinkhorn(std::vector<Vector>& a, int32_t iterations, double eps) {
        const size_t n = a.size();
        const auto divide_rows = [&] {
            for (Vector& r : a) {
                const double sum = std::accumulate(r.begin(), r.end(), 0.0) + eps;
                for (double& v : r) v /= sum;
            }
        };
        const auto divide_columns = [&] {
            for (size_t k = 0; k < n; ++k) {
                double sum = eps;
                for (size_t j = 0; j < n; ++j) sum += a[j][k];
                for (size_t j = 0; j < n; ++j) a[j][k] /= sum;
            }
        };
        for (Vector& r : a) {
            const double top = *std::max_element(r.begin(), r.end());
            double sum = 0;
            for (double& v : r) sum += v = std::exp(v - top);
            for (double& v : r) v = v / sum + eps;
        }
        divide_columns();
        for (int32_t i = 1; i < iterations; ++i) {
            divide_rows();
            divide_columns();
        }
    }

    void operator()(const ops::HyperIn& s) const {
        const int64_t n = s.n, width = cols(s.x);
        const auto& base = vector(s.base);
        const auto& scale = vector(s.scale);
        for (int64_t t = 0; t < batch.rows(); ++t) {
            const double* h = row(s.streams, t);
            const double factor = 1 / std::sqrt(mean_square(h, n * width) + s.norm_eps);
            const auto m = [&](int64_t k, size_t part) {
                return row(s.mix, t)[k] * factor * scale[part] + base[static_cast<size_t>(k)];
            };
            std::vector<Vector> a(static_cast<size_t>(n), Vector(static_cast<size_t>(n)));
            for (int64_t j = 0; j < n; ++j)
                for (int64_t k = 0; k < n; ++k)
                    a[static_cast<size_t>(j)][static_cast<size_t>(k)] = m(2 * n + j * n + k, 2);
            sinkhorn(a, s.sinkhorn_iterations, s.hyper_eps);

            Vector x(static_cast<size_t>(width), 0.0);
            for (int64_t i = 0; i < n; ++i) {
                const double pre = sigmoid(m(i, 0)) + s.hyper_eps;
                for (int64_t c = 0; c < width; ++c) x[static_cast<size_t>(c)] += pre * h[i * width + c];
            }
            std::copy(x.begin(), x.end(), row(s.x, t));
            double* post_comb = row(s.post_comb, t);
            for (int64_t i = 0; i < n; ++i) post_comb[i] = 2 * sigmoid(m(n + i, 1));
            for (int64_t j = 0; j < n; ++j)
                for (int64_t k = 0; k < n; ++k)
                    post_comb[n + j * n + k] = a[static_cast<size_t>(j)][static_cast<size_t>(k)];
        }
    }

    void operator()(const ops::HyperOut& s) const {
        const int64_t n = s.n, width = cols(s.y);
        for (int64_t t = 0; t < batch.rows(); ++t) {
            const Vector before = copy(s.streams, t, 0, n * width);
            const double* post = row(s.post_comb, t);
            const double* a = post + n;
            for (int64_t k = 0; k < n; ++k) {
                for (int64_t c = 0; c < width; ++c) {
                    double sum = post[k] * row(s.y, t)[c];
                    for (int64_t j = 0; j < n; ++j) sum += a[j * n + k] * before[static_cast<size_t>(j * width + c)];
                    row(s.streams, t)[k * width + c] = s.round_bf16 ? to_bf16(sum) : sum;
                }
            }
        }
    }

    void operator()(const ops::HyperHead& s) const {
        const int64_t width = cols(s.x);
        for (int64_t t = 0; t < rows(s.x); ++t) {
            const double* h = row(s.streams, t);
            const double factor = 1 / std::sqrt(mean_square(h, s.n * width) + s.norm_eps);
            Vector x(static_cast<size_t>(width), 0.0);
            for (int64_t i = 0; i < s.n; ++i) {
                const double z =
                    row(s.mix, t)[i] * factor * vector(s.scale)[0] + vector(s.base)[static_cast<size_t>(i)];
                const double p = sigmoid(z) + s.hyper_eps;
                for (int64_t c = 0; c < width; ++c) x[static_cast<size_t>(c)] += p * h[i * width + c];
            }
            std::copy(x.begin(), x.end(), row(s.x, t));
        }
    }

    void operator()(const ops::RoundKv& s) const {
        for (int64_t t = 0; t < batch.rows(); ++t) {
            for (int64_t first = 0; first < cols(s.x); first += s.width) {
                if (s.hadamard) hadamard(row(s.x, t) + first, s.width);
                round_kv(s.format, s.rope, row(s.x, t) + first, s.width);
            }
        }
    }

    /// Entry `w` of a compressor whose state holds all tokens of the window (2.6).
    Vector compressed_entry(const ops::Compress& s, const History& state, int64_t w) const {
        const int64_t wide = (s.overlap ? 2 : 1) * int64_t{s.width};
        struct Source {
            const double* values;
            const double* scores;
        };
        std::vector<Source> sources;
        for (int64_t j = 0; s.overlap && w > 0 && j < s.ratio; ++j) {
            const Vector& r = state.at(static_cast<size_t>((w - 1) * s.ratio + j));
            sources.push_back({r.data(), r.data() + wide});
        }
        for (int64_t j = 0; j < s.ratio; ++j) {
            const Vector& r = state.at(static_cast<size_t>(w * s.ratio + j));
            sources.push_back({r.data() + wide - s.width, r.data() + 2 * wide - s.width});
        }
        Vector entry;
        for (int64_t c = 0; c < s.width; ++c) {
            double top = -std::numeric_limits<double>::infinity(), sum = 0, value = 0;
            for (const Source& source : sources) top = std::max(top, source.scores[c]);
            for (const Source& source : sources) {
                const double p = std::exp(source.scores[c] - top);
                sum += p;
                value += p * source.values[c];
            }
            entry.push_back(value / sum);
        }
        const double factor = 1 / std::sqrt(mean_square(entry.data(), s.width) + s.eps);
        for (size_t c = 0; c < entry.size(); ++c) entry[c] *= factor * vector(s.norm)[c];
        rotate(entry.data(), s.width, rope(s.rope), w * s.ratio, false);
        if (s.hadamard) hadamard(entry.data(), s.width);
        round_kv(cache(s.entries).format, cache(s.entries).rope, entry.data(), s.width);
        return entry;
    }

    void operator()(const ops::Compress& s) const {
        const int64_t wide = (s.overlap ? 2 : 1) * int64_t{s.width};
        for (size_t i = 0; i < batch.segments.size(); ++i) {
            const ops::Segment& segment = batch.segments[i];
            History& state = history(static_cast<int64_t>(i), s.state);
            History& entries = history(static_cast<int64_t>(i), s.entries);
            state.resize(static_cast<size_t>(segment.position));
            for (int64_t t = segment.first_row; t < segment.first_row + segment.rows; ++t) {
                Vector r = copy(s.values, t, 0, wide);
                const size_t ape = static_cast<size_t>(position(t) % s.ratio * wide);
                for (int64_t c = 0; c < wide; ++c)
                    r.push_back(row(s.scores, t)[c] + vector(s.ape)[ape + static_cast<size_t>(c)]);
                state.push_back(r);
            }
            entries.resize(static_cast<size_t>(segment.position / s.ratio));
            const int64_t complete = (segment.position + segment.rows) / s.ratio;
            for (int64_t w = segment.position / s.ratio; w < complete; ++w)
                entries.push_back(compressed_entry(s, state, w));
        }
    }

    void operator()(const ops::SelectEntries& s) const {
        for (int64_t t = 0; t < batch.rows(); ++t) {
            const int64_t visible = (position(t) + 1) / s.ratio;
            const History& keys = history(segment_of(t), s.keys);
            Vector scores;
            for (int64_t w = 0; w < visible; ++w) {
                double score = 0;
                for (int64_t h = 0; h < s.heads; ++h) {
                    const double product = dot(keys.at(static_cast<size_t>(w)), row(s.q, t) + h * s.width);
                    score += row(s.gates, t)[h] * std::max(product, 0.0);
                }
                scores.push_back(score);
            }
            std::vector<int64_t> chosen = top_indices(scores, std::min<int64_t>(visible, s.top_k));
            std::sort(chosen.begin(), chosen.end());
            double* selection = row(s.selection, t);
            selection[0] = static_cast<double>(chosen.size());
            for (size_t i = 0; i < chosen.size(); ++i) selection[i + 1] = static_cast<double>(chosen[i]);
        }
    }

    /// The keys of row `t`: its window, then its compressed entries (2.5).
    std::vector<Vector> keys_of(const ops::Attention& s, int64_t t) const {
        const int64_t index = segment_of(t), p = position(t);
        const ops::Segment& segment = batch.segments[static_cast<size_t>(index)];
        std::vector<Vector> keys;
        for (int64_t j = std::max<int64_t>(0, p - s.window + 1); j <= p; ++j) {
            if (j < segment.position)
                keys.push_back(history(index, s.window_cache).at(static_cast<size_t>(j)));
            else
                keys.push_back(copy(s.kv, segment.first_row + (j - segment.position), 0, s.width));
        }
        if (s.entries == kNone) return keys;
        const History& entries = history(index, s.entries);
        if (s.selection == kNone) {
            for (int64_t w = 0; w < (p + 1) / s.ratio; ++w) keys.push_back(entries.at(static_cast<size_t>(w)));
        } else {
            const double* selection = row(s.selection, t);
            for (int64_t i = 0; i < static_cast<int64_t>(selection[0]); ++i)
                keys.push_back(entries.at(static_cast<size_t>(selection[1 + i])));
        }
        return keys;
    }

    void operator()(const ops::Attention& s) const {
        for (int64_t t = 0; t < batch.rows(); ++t) {
            const std::vector<Vector> keys = keys_of(s, t);
            for (int64_t h = 0; h < s.heads; ++h) {
                Vector logits;
                for (const Vector& key : keys) logits.push_back(s.scale * dot(key, row(s.q, t) + h * s.width));
                const double top = *std::max_element(logits.begin(), logits.end());
                double sum = std::exp(vector(s.sinks)[static_cast<size_t>(h)] - top);
                Vector out(static_cast<size_t>(s.width), 0.0);
                for (size_t j = 0; j < keys.size(); ++j) {
                    const double p = std::exp(logits[j] - top);
                    sum += p;
                    for (size_t c = 0; c < out.size(); ++c) out[c] += p * keys[j][c];
                }
                for (size_t c = 0; c < out.size(); ++c)
                    row(s.out, t)[h * s.width + static_cast<int64_t>(c)] = out[c] / sum;
            }
        }
    }

    void operator()(const ops::StoreWindow& s) const {
        for (size_t i = 0; i < batch.segments.size(); ++i) {
            const ops::Segment& segment = batch.segments[i];
            History& window = history(static_cast<int64_t>(i), s.window_cache);
            window.resize(static_cast<size_t>(segment.position));
            for (int64_t t = segment.first_row; t < segment.first_row + segment.rows; ++t) {
                Vector key = copy(s.kv, t, 0, s.width);
                round_kv(cache(s.window_cache).format, cache(s.window_cache).rope, key.data(), s.width);
                window.push_back(key);
            }
        }
    }

    void operator()(const ops::Route& s) const {
        for (int64_t t = 0; t < batch.rows(); ++t) {
            Vector scores, biased;
            for (int64_t e = 0; e < s.experts; ++e) {
                const double z = row(s.logits, t)[e];
                scores.push_back(std::sqrt(std::max(z, 0.0) + std::log1p(std::exp(-std::abs(z)))));
                biased.push_back(scores.back() + (s.bias == kNone ? 0.0 : vector(s.bias)[static_cast<size_t>(e)]));
            }
            std::vector<int64_t> ids;
            if (s.table == kNone) {
                ids = top_indices(biased, s.top_k);
            } else {
                const auto& table = plan.tables.at(static_cast<size_t>(s.table)).values;
                const int64_t first = int64_t{batch.tokens[static_cast<size_t>(t)]} * s.top_k;
                for (int64_t k = 0; k < s.top_k; ++k) ids.push_back(table.at(static_cast<size_t>(first + k)));
            }
            double sum = 0;
            for (const int64_t id : ids) sum += scores[static_cast<size_t>(id)];
            for (size_t k = 0; k < ids.size(); ++k) {
                const double score = scores[static_cast<size_t>(ids[k])];
                row(s.ids, t)[k] = static_cast<double>(ids[k]);
                row(s.weights, t)[k] = (s.normalise ? score / sum : score) * s.scale;
            }
        }
    }

    void operator()(const ops::Experts& s) const {
        const ops::ExpertSet& set = plan.experts.at(static_cast<size_t>(s.experts));
        for (int64_t t = 0; t < batch.rows(); ++t) {
            Vector x = copy(s.x, t, 0, set.hidden), sum(static_cast<size_t>(set.hidden), 0.0);
            round_input(s.rounding, set.w1[0], x);
            for (int64_t k = 0; k < s.top_k; ++k) {
                const auto e = static_cast<size_t>(row(s.ids, t)[k]);
                const Vector gate = multiply(set.w1.at(e), x), up = multiply(set.w3.at(e), x);
                Vector inner;
                for (size_t i = 0; i < gate.size(); ++i)
                    inner.push_back(row(s.weights, t)[k] * swiglu(gate[i], up[i], s.limit));
                round_input(s.rounding, set.w2[0], inner);
                const Vector y = multiply(set.w2.at(e), inner);
                for (size_t i = 0; i < y.size(); ++i) sum[i] += y[i];
            }
            std::copy(sum.begin(), sum.end(), row(s.out, t));
        }
    }

    void operator()(const ops::SwiGlu& s) const {
        for (int64_t t = 0; t < rows(s.out); ++t)
            for (int64_t i = 0; i < cols(s.out); ++i)
                row(s.out, t)[i] = swiglu(row(s.gate, t)[i], row(s.up, t)[i], s.limit);
    }

    void operator()(const ops::Add& s) const {
        for (int64_t t = 0; t < rows(s.x); ++t)
            for (int64_t r = 0; r < s.repeat; ++r)
                for (int64_t i = 0; i < cols(s.y); ++i) row(s.x, t)[r * cols(s.y) + i] += row(s.y, t)[i];
    }

    void operator()(const ops::TakeRows& s) const {
        for (int64_t i = 0; i < batch.outputs(); ++i) {
            const Vector r = copy(s.in, batch.output_rows[static_cast<size_t>(i)], 0, cols(s.in));
            std::copy(r.begin(), r.end(), row(s.out, i));
        }
    }
};

}  // namespace

void OracleState::roll_back(const ops::Plan& plan, int64_t to) {
    CHECK(to <= position);
    for (size_t i = 0; i < caches.size(); ++i) {
        const ops::CacheSpec& spec = plan.caches[i];
        const int64_t kept = spec.kind == ops::CacheSpec::Kind::kRing ? to : to / spec.ratio;
        caches[i].resize(static_cast<size_t>(kept));
    }
    position = to;
}

OracleSlots make_slots(const ops::Plan& plan, const ops::Batch& batch) {
    OracleSlots slots;
    for (const ops::SlotSpec& spec : plan.slots) {
        const int64_t rows = spec.rows == ops::Rows::kTokens ? batch.rows() : batch.outputs();
        slots.emplace_back(static_cast<size_t>(rows * spec.cols), 0.0);
    }
    return slots;
}

void oracle_step(const ops::Plan& plan, const ops::Step& step, const ops::Batch& batch, OracleSequences& sequences,
                 OracleSlots& slots) {
    CHECK(sequences.size() == batch.segments.size());
    std::visit(Player{plan, batch, sequences, slots}, step);
}

void oracle_run(const ops::Plan& plan, const ops::Batch& batch, OracleSequences& sequences, OracleSlots& slots) {
    for (const ops::Step& step : plan.steps) oracle_step(plan, step, batch, sequences, slots);
    for (size_t i = 0; i < sequences.size(); ++i)
        sequences[i]->position = batch.segments[i].position + batch.segments[i].rows;
}

OracleBatch::OracleBatch(const OracleSequences& sequences, const std::vector<std::vector<int32_t>>& parts,
                         int32_t outputs) {
    CHECK(sequences.size() == parts.size());
    for (size_t i = 0; i < parts.size(); ++i) {
        const auto first = static_cast<int32_t>(tokens.size());
        const auto rows = static_cast<int32_t>(parts[i].size());
        segments.push_back({first, rows, sequences[i]->position, nullptr});
        for (int32_t j = 0; j < rows; ++j) {
            tokens.push_back(parts[i][static_cast<size_t>(j)]);
            positions.push_back(sequences[i]->position + j);
            if (j >= rows - outputs) output_rows.push_back(first + j);
        }
    }
}

void round_kv(quant::KvFormat format, int64_t rope, double* row, int64_t width) {
    if (format == quant::KvFormat::kF32) return;
    std::vector<float> values(row, row + width);
    std::vector<std::byte> bytes(static_cast<size_t>(quant::kv_row_bytes(format, width, rope)));
    quant::encode_kv_row(format, values.data(), width, rope, bytes.data());
    quant::decode_kv_row(format, bytes.data(), width, rope, values.data());
    const int64_t exact = format == quant::KvFormat::kFp8F32 ? rope : 0;
    std::copy(values.begin(), values.end() - exact, row);
}

void hadamard(double* x, int64_t width) {
    Vector out(static_cast<size_t>(width), 0.0);
    for (int64_t a = 0; a < width; ++a)
        for (int64_t b = 0; b < width; ++b)
            out[static_cast<size_t>(a)] += std::popcount(static_cast<uint64_t>(a & b)) % 2 ? -x[b] : x[b];
    for (int64_t a = 0; a < width; ++a) x[a] = out[static_cast<size_t>(a)] / std::sqrt(static_cast<double>(width));
}

}  // namespace thermocline::oracle
