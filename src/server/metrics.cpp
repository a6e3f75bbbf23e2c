#include "src/server/metrics.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdio>
#include <utility>

namespace thermocline::server {
namespace {

// vLLM's bounds, so that its dashboards fit.
const std::vector<double> kFirstTokenBounds = {.001, .005, .01, .02, .04, .06, .08, .1, .25, .5,  .75,
                                               1,    2.5,  5,   7.5, 10,  20,  40,  80, 160, 640, 2560};
const std::vector<double> kTokenBounds = {.01, .025, .05, .075, .1,  .15, .2, .3, .4, .5,
                                          .75, 1,    2.5, 5,    7.5, 10,  20, 40, 80};
const std::vector<double> kRequestBounds = {.3, .5, .8, 1,  1.5, 2,   2.5, 5,   10,   15,  20,
                                            30, 40, 50, 60, 120, 240, 480, 960, 1920, 7680};
const std::vector<double> kSizeBounds = {1,    2,    5,     10,    20,    50,     100,    200,    500,    1000,
                                         2000, 5000, 10000, 20000, 50000, 100000, 200000, 500000, 1000000};
const std::vector<double> kChoiceBounds = {1, 2, 5, 10, 20};

/// As Python's client prints floats.
std::string number(double value) {
    std::array<char, 32> text;
    const auto [end, error] = std::to_chars(text.data(), text.data() + text.size(), value);
    std::string out(text.data(), end);
    return out.find_first_of(".en") == std::string::npos ? out + ".0" : out;
}

void write_counter(std::string& out, const std::string& name, const std::string& help, const std::string& labels,
                   double value) {
    write_header(out, name, help, "counter");
    out += name + "{" + labels + "} " + number(value) + "\n";
}

std::string escaped_label(const std::string& text) {
    std::string out;
    for (const char c : text) {
        if (c == '\\' || c == '"') out += '\\';
        out += c == '\n' ? ' ' : c;
    }
    return out;
}

double seconds(std::chrono::steady_clock::duration time) { return std::chrono::duration<double>(time).count(); }

Json latency_json(const Histogram& histogram) {
    const uint64_t count = histogram.count();
    return {{"count", count},
            {"mean", count > 0 ? histogram.sum() / static_cast<double>(count) : 0.0},
            {"p50", histogram.quantile(0.5)},
            {"p95", histogram.quantile(0.95)}};
}

}  // namespace

void write_header(std::string& out, const std::string& name, const std::string& help, const char* type) {
    out += "# HELP " + name + " " + help + "\n# TYPE " + name + " " + type + "\n";
}

void write_histogram(std::string& out, const std::string& name, const std::string& labels,
                     std::span<const double> bounds, std::span<const uint64_t> counts, double sum) {
    uint64_t count = 0;
    for (size_t i = 0; i < counts.size(); ++i) {
        count += counts[i];
        const std::string bound = i < bounds.size() ? number(bounds[i]) : "+Inf";
        out += name + "_bucket{" + labels + ",le=\"" + bound + "\"} " + number(static_cast<double>(count)) + "\n";
    }
    out += name + "_count{" + labels + "} " + number(static_cast<double>(count)) + "\n";
    out += name + "_sum{" + labels + "} " + number(sum) + "\n";
}

Histogram::Histogram(std::vector<double> bounds)
    : bounds_(std::move(bounds)), counts_(std::make_unique<std::atomic<uint64_t>[]>(bounds_.size() + 1)) {}

void Histogram::observe(double value) {
    const auto bucket = std::lower_bound(bounds_.begin(), bounds_.end(), value) - bounds_.begin();
    ++counts_[static_cast<size_t>(bucket)];
    sum_ += value;
    recent_[observed_++ % kRecent] = static_cast<float>(value);
}

uint64_t Histogram::count() const {
    uint64_t count = 0;
    for (size_t i = 0; i <= bounds_.size(); ++i) count += counts_[i];
    return count;
}

double Histogram::quantile(double share) const {
    std::vector<float> values(recent_.begin(),
                              recent_.begin() + static_cast<std::ptrdiff_t>(std::min(observed_.load(), kRecent)));
    if (values.empty()) return 0;
    const auto rank = static_cast<std::ptrdiff_t>(std::ceil(share * static_cast<double>(values.size())));
    const auto at = values.begin() + std::max<std::ptrdiff_t>(rank, 1) - 1;
    std::nth_element(values.begin(), at, values.end());
    return static_cast<double>(*at);
}

void Histogram::write(std::string& out, const std::string& name, const std::string& labels) const {
    const std::vector<uint64_t> counts(counts_.get(), counts_.get() + bounds_.size() + 1);
    write_histogram(out, name, labels, bounds_, counts, sum_);
}

Metrics::Metrics()
    : first_token(kFirstTokenBounds),
      inter_token(kTokenBounds),
      per_token(kTokenBounds),
      whole(kRequestBounds),
      queue(kRequestBounds),
      inference(kRequestBounds),
      prefill(kRequestBounds),
      decode(kRequestBounds),
      prompt_size(kSizeBounds),
      output_size(kSizeBounds),
      max_tokens(kSizeBounds),
      choices(kChoiceBounds) {}

void Metrics::add(Kind kind, std::string name, std::string help, std::function<double()> read) {
    readings_.push_back({kind, std::move(name), std::move(help), std::move(read)});
}

void Metrics::count_response(int status) {
    if (status >= 0 && static_cast<size_t>(status) < responses_.size()) ++responses_[static_cast<size_t>(status)];
}

std::vector<Metrics::Named> Metrics::histograms() const {
    return {{"vllm:time_to_first_token_seconds", "From a request's arrival to its first token.", &first_token},
            {"vllm:inter_token_latency_seconds", "Between two tokens of a request.", &inter_token},
            {"vllm:request_time_per_output_token_seconds", "Mean of a request, without its first token.", &per_token},
            {"vllm:e2e_request_latency_seconds", "From a request's arrival to its last token.", &whole},
            {"vllm:request_queue_time_seconds", "Waiting for the engine.", &queue},
            {"vllm:request_inference_time_seconds", "In the engine.", &inference},
            {"vllm:request_prefill_time_seconds", "Computing the prompt.", &prefill},
            {"vllm:request_decode_time_seconds", "Computing the output.", &decode},
            {"vllm:request_prompt_tokens", "Tokens of a prompt.", &prompt_size},
            {"vllm:request_generation_tokens", "Tokens of an output.", &output_size},
            {"vllm:request_params_max_tokens", "max_tokens of requests that give it.", &max_tokens},
            {"vllm:request_params_n", "n of a request.", &choices}};
}

std::string Metrics::prometheus(const std::string& model_name) const {
    const std::string labels = "engine=\"0\",model_name=\"" + escaped_label(model_name) + "\"";
    std::string out;
    for (const Reading& reading : readings_) {
        write_header(out, reading.name, reading.help, reading.kind == Kind::kCounter ? "counter" : "gauge");
        out += reading.name + "{" + labels + "} " + number(reading.read()) + "\n";
    }
    for (const Writer& write : writers_) write(out, labels);
    const auto tokens = [](const std::atomic<uint64_t>& count) { return static_cast<double>(count.load()); };
    write_counter(out, "vllm:prompt_tokens_total", "Tokens of prompts.", labels, tokens(prompt_tokens));
    write_counter(out, "vllm:generation_tokens_total", "Tokens generated.", labels, tokens(output_tokens));
    write_counter(out, "vllm:prompt_tokens_cached_total", "Tokens of prompts that the caches had.", labels,
                  tokens(cached_tokens));
    write_counter(out, "vllm:prefix_cache_queries_total", "Tokens looked up in the caches.", labels,
                  tokens(prompt_tokens));
    write_counter(out, "vllm:prefix_cache_hits_total", "Tokens found in the caches.", labels, tokens(cached_tokens));
    write_header(out, "vllm:request_success_total", "Sequences that ended, by reason.", "counter");
    for (size_t i = 0; i < finished.size(); ++i)
        out += "vllm:request_success_total{" + labels + ",finished_reason=\"" + kOutcomeNames[i] + "\"} " +
               number(tokens(finished[i])) + "\n";
    write_header(out, "engine_http_responses_total", "Responses by HTTP status.", "counter");
    for (size_t status = 0; status < responses_.size(); ++status)
        if (responses_[status] > 0)
            out += "engine_http_responses_total{" + labels + ",code=\"" + std::to_string(status) + "\"} " +
                   number(tokens(responses_[status])) + "\n";
    for (const Named& named : histograms()) {
        write_header(out, named.name, named.help, "histogram");
        named.histogram->write(out, named.name, labels);
    }
    return out;
}

Json Metrics::stats() const {
    Json ended = Json::object();
    for (size_t i = 0; i < finished.size(); ++i) ended[kOutcomeNames[i]] = finished[i].load();
    return {{"uptime_seconds", seconds(std::chrono::steady_clock::now() - start_)},
            {"finished", ended},
            {"tokens",
             {{"prompt", prompt_tokens.load()}, {"cached", cached_tokens.load()}, {"generated", output_tokens.load()}}},
            {"seconds",
             {{"time_to_first_token", latency_json(first_token)},
              {"inter_token_latency", latency_json(inter_token)},
              {"queue", latency_json(queue)},
              {"request", latency_json(whole)}}},
            {"last_request",
             {{"decode_tokens_per_second", decode_tokens_per_second.load()},
              {"decode_gb_per_second", decode_gb_per_second.load()},
              {"prefill_gb_per_second", prefill_gb_per_second.load()}}}};
}

RequestTrace::RequestTrace(Metrics& metrics, const Call& call) : metrics_(metrics) {
    metrics_.choices.observe(call.choices);
    if (call.request.max_tokens > 0) metrics_.max_tokens.observe(static_cast<double>(call.request.max_tokens));
}

RequestTrace::~RequestTrace() {
    if (ended_ == 0) ++metrics_.finished[static_cast<size_t>(outcome_)];
    if (has_token_) metrics_.whole.observe(seconds(Clock::now() - start_));
}

void RequestTrace::on_token() {
    const auto now = Clock::now();
    if (std::exchange(has_token_, true)) {
        metrics_.inter_token.observe(seconds(now - last_token_));
    } else {
        first_token_ = now;
        metrics_.first_token.observe(seconds(now - start_));
    }
    last_token_ = now;
    ++metrics_.output_tokens;
}

void RequestTrace::on_ending(const Ending& ending) {
    const engine::Statistics& part = ending.result.statistics;
    ++ended_;
    outcome_ = ending.result.reason == engine::FinishReason::kStop     ? Outcome::kStop
               : ending.result.reason == engine::FinishReason::kLength ? Outcome::kLength
               : ending.result.reason == engine::FinishReason::kError  ? Outcome::kError
                                                                       : Outcome::kAbort;
    ++metrics_.finished[static_cast<size_t>(outcome_)];
    metrics_.prompt_tokens += static_cast<uint64_t>(part.prompt_tokens);
    metrics_.cached_tokens += static_cast<uint64_t>(part.cached_tokens);
    metrics_.queue.observe(part.queue_seconds);
    metrics_.prefill.observe(part.prefill_seconds);
    metrics_.decode.observe(part.decode_seconds);
    metrics_.inference.observe(part.prefill_seconds + part.decode_seconds);
    metrics_.prompt_size.observe(static_cast<double>(part.prompt_tokens));
    metrics_.output_size.observe(static_cast<double>(part.output_tokens));
    if (part.output_tokens > 1)
        metrics_.per_token.observe(part.decode_seconds / static_cast<double>(part.output_tokens - 1));
    if (part.prefill_seconds > 0) metrics_.prefill_gb_per_second = part.prefill_gb_per_second();
    if (part.decode_seconds > 0) {
        metrics_.decode_gb_per_second = part.decode_gb_per_second();
        metrics_.decode_tokens_per_second = part.decode_tokens_per_second();
    }
    sum_.prompt_tokens += part.prompt_tokens;
    sum_.cached_tokens += part.cached_tokens;
    sum_.output_tokens += part.output_tokens;
    sum_.decode_steps += part.decode_steps;
    sum_.queue_seconds += part.queue_seconds;
    sum_.prefill_seconds += part.prefill_seconds;
    sum_.decode_seconds += part.decode_seconds;
    sum_.decode_bytes += part.decode_bytes;
}

void RequestTrace::on(const Delta& delta) {
    for (size_t i = 0; i < delta.tokens.size(); ++i) on_token();
    if (delta.ending) on_ending(*delta.ending);
}

std::string RequestTrace::summary() const {
    char text[240];
    std::snprintf(text, sizeof text,
                  "%lld prompt tokens, %lld cached, %lld output tokens; queue %.2f s, prefill %.2f s, decode %.2f s; "
                  "%.1f tok/s, %.1f GB/s; %s",
                  static_cast<long long>(sum_.prompt_tokens), static_cast<long long>(sum_.cached_tokens),
                  static_cast<long long>(sum_.output_tokens), sum_.queue_seconds, sum_.prefill_seconds,
                  sum_.decode_seconds, sum_.decode_tokens_per_second(), sum_.decode_gb_per_second(),
                  kOutcomeNames[static_cast<size_t>(outcome_)]);
    return text;
}

}  // namespace thermocline::server
