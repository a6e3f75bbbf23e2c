// What the server counts, in Prometheus' text form and as JSON for the page (serving-api.md section 5). Names are
// vLLM's where the meaning is the same; our own begin with "engine_". All counting is lock-free and may be done on any
// thread; what another room counts joins by one line: add(kind, name, help, read).
#pragma once

#include "src/server/generation.h"
#include "src/server/openai.h"

#include <array>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

namespace thermocline::server {

/// Counts of values below ascending bounds.
class Histogram {
public:
    static constexpr size_t kRecent = 512;
    explicit Histogram(std::vector<double> bounds);
    void observe(double value);
    uint64_t count() const;
    double sum() const { return sum_; }
    /// The value that a part `share` of the last kRecent observations does not exceed; 0 without any.
    double quantile(double share) const;
    void write(std::string& out, const std::string& name, const std::string& labels) const;

private:
    std::vector<double> bounds_;
    std::unique_ptr<std::atomic<uint64_t>[]> counts_;  // [bounds + 1]
    std::atomic<double> sum_ = 0;
    std::array<std::atomic<float>, kRecent> recent_{};
    std::atomic<size_t> observed_ = 0;
};

/// Why a sequence ended, in the words of vllm:request_success_total.
enum class Outcome { kStop, kLength, kAbort, kError };
inline constexpr std::array<const char*, 4> kOutcomeNames = {"stop", "length", "abort", "error"};

/// Lines of what /metrics answers.
void write_header(std::string& out, const std::string& name, const std::string& help, const char* type);
/// `counts`: below each bound, then beyond the last.
void write_histogram(std::string& out, const std::string& name, const std::string& labels,
                     std::span<const double> bounds, std::span<const uint64_t> counts, double sum);

class Metrics {
public:
    Metrics();

    enum class Kind { kCounter, kGauge };
    /// A number that is read when somebody asks. Before the first request only.
    void add(Kind kind, std::string name, std::string help, std::function<double()> read);
    /// The same for what is more than one number: `write` makes its lines with the labels that all samples have.
    using Writer = std::function<void(std::string& out, const std::string& labels)>;
    void add(Writer write) { writers_.push_back(std::move(write)); }

    std::string prometheus(const std::string& model_name) const;
    /// What the page shows, without what the engine alone knows.
    Json stats() const;
    void count_response(int status);

    std::array<std::atomic<uint64_t>, 4> finished{};  // by Outcome
    std::atomic<uint64_t> prompt_tokens = 0, cached_tokens = 0, output_tokens = 0;
    std::atomic<double> prefill_gb_per_second = 0, decode_gb_per_second = 0, decode_tokens_per_second = 0;  // the last

    Histogram first_token, inter_token, per_token, whole, queue, inference, prefill, decode;  // seconds
    Histogram prompt_size, output_size, max_tokens, choices;

private:
    struct Reading {
        Kind kind;
        std::string name, help;
        std::function<double()> read;
    };
    struct Named {
        const char *name, *help;
        const Histogram* histogram;
    };
    std::vector<Named> histograms() const;

    const std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
    std::vector<Reading> readings_;
    std::vector<Writer> writers_;
    std::array<std::atomic<uint64_t>, 600> responses_{};  // by status
};

/// Follows one request for the metrics and the log. Used by one thread at a time; a request that has not ended when
/// its trace goes counts as aborted.
class RequestTrace {
public:
    RequestTrace(Metrics& metrics, const Call& call);
    ~RequestTrace();
    RequestTrace(const RequestTrace&) = delete;
    RequestTrace& operator=(const RequestTrace&) = delete;

    void on(const Delta& delta);
    /// The engine failed.
    void fail() { outcome_ = Outcome::kError; }
    /// Figures of what has ended, for the log.
    std::string summary() const;

private:
    using Clock = std::chrono::steady_clock;
    void on_token();
    void on_ending(const Ending& ending);

    Metrics& metrics_;
    const Clock::time_point start_ = Clock::now();
    Clock::time_point first_token_, last_token_;
    bool has_token_ = false;
    int64_t ended_ = 0;
    engine::Statistics sum_;
    Outcome outcome_ = Outcome::kAbort;  // of the last choice; of those that have not ended
};

}  // namespace thermocline::server
