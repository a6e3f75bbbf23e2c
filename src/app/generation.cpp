#include "src/app/generation.h"

#include "scheduler/printed.h"
#include "src/base/error.h"

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <csignal>
#include <cstdio>
#include <mutex>
#include <unistd.h>

namespace thermocline::app {

namespace {

using Kind = text::OutputEvent::Kind;

std::atomic<bool> interrupted{false};

/// Writes events to the terminal as they come.
class Printer {
public:
    void print(const text::OutputEvent& event) {
        switch (event.kind) {
            case Kind::kReasoning:
                dim(true);
                break;
            case Kind::kContent:
                dim(false);
                break;
            case Kind::kCallBegin:
                dim(true);
                put("\n[" + event.text + " ");
                return;
            case Kind::kCallEnd:
                put("]\n");
                return;
            case Kind::kFinish:
                dim(false);
                return;
            case Kind::kCallArguments:
                break;
        }
        put(event.text);
    }

private:
    void put(const std::string& text) {
        std::fwrite(text.data(), 1, text.size(), stdout);
        std::fflush(stdout);
    }
    void dim(bool on) {
        if (on == dimmed_) return;
        dimmed_ = on;
        if (terminal_) put(on ? "\x1b[2m" : "\x1b[0m");
        if (!on) put("\n");
    }
    const bool terminal_ = ::isatty(STDOUT_FILENO) == 1;
    bool dimmed_ = false;
};

/// Hears the engine thread, prints, and wakes the caller at the end.
class PrintingListener : public engine::Listener {
public:
    explicit PrintingListener(std::unique_ptr<engine::Output> output) : output_(std::move(output)) {}

    bool on_token(const engine::Token& token) override {
        if (!token.ends) take(output_->push(token.id));
        return !output_->stopped_by();
    }
    void on_finish(const engine::Result& result) override {
        take(output_->finish(result.reason == engine::FinishReason::kLength ? text::Ending::kLength
                                                                            : text::Ending::kStop));
        const std::lock_guard lock(mutex_);
        result_ = result;
        done_ = true;
        wake_.notify_all();
    }
    /// False if the request still runs after a tenth of a second.
    bool wait_a_little() {
        std::unique_lock lock(mutex_);
        return wake_.wait_for(lock, std::chrono::milliseconds(100), [&] { return done_; });
    }
    Generated generated() const { return {text::join_events(events_), result_}; }

private:
    void take(engine::TextEvents events) {
        for (auto& event : events) {
            printer_.print(event);
            events_.push_back(std::move(event));
        }
    }
    std::unique_ptr<engine::Output> output_;
    Printer printer_;
    engine::TextEvents events_;
    std::mutex mutex_;  // guards what follows
    std::condition_variable wake_;
    engine::Result result_;
    bool done_ = false;
};

}  // namespace

bool Interrupt::taken() { return interrupted.exchange(false); }

void Interrupt::catch_signals(bool on) {
    std::signal(SIGINT, on ? +[](int) { interrupted.store(true); } : SIG_DFL);
}

Generated generate(engine::Assembly& assembly, engine::Request request, std::unique_ptr<engine::Output> output) {
    const auto listener = std::make_shared<PrintingListener>(std::move(output));
    const auto ticket = assembly.engine->submit(std::move(request), listener);
    if (!ticket) fail("the engine takes no more requests");
    Interrupt::catch_signals(true);
    while (!listener->wait_a_little())
        if (Interrupt::taken()) ticket->cancel();
    Interrupt::catch_signals(false);
    const Generated generated = listener->generated();
    std::printf("\n");
    if (generated.result.reason == engine::FinishReason::kError) fail(generated.result.error);
    return generated;
}

std::string speed_line(const engine::Statistics& s, double bandwidth_gb_per_s) {
    char line[256];
    const double rate = s.decode_gb_per_second();
    std::snprintf(
        line, sizeof line,
        "prompt %lld tokens (%lld cached), %.1f tok/s | output %lld tokens, %.1f tok/s, %.2f GB/s = %.0f %% of "
        "%.1f GB/s measured",
        static_cast<long long>(s.prompt_tokens), static_cast<long long>(s.cached_tokens), s.prefill_tokens_per_second(),
        static_cast<long long>(s.output_tokens), s.decode_tokens_per_second(), rate,
        bandwidth_gb_per_s > 0 ? 100.0 * rate / bandwidth_gb_per_s : 0.0, bandwidth_gb_per_s);
    return line;
}

namespace {

std::string prefetch_text(const engine::ExpertUse& use) {
    const auto mb_a_token = [&](int64_t bytes) {
        return 1e-6 * static_cast<double>(bytes) / static_cast<double>(std::max<int64_t>(use.tokens, 1));
    };
    std::string text;
    if (use.read_ahead_bytes > 0)
        text += scheduler::printed("; %.2f MB a token read ahead", mb_a_token(use.read_ahead_bytes));
    if (use.foretold == 0) return text;
    return text +
           scheduler::printed("; %.0f %% of what gates foretold was chosen, %.2f MB a token brought near%s",
                              100.0 * static_cast<double>(use.foretold_right) / static_cast<double>(use.foretold),
                              mb_a_token(use.warmed_bytes), use.prefetch_on ? "" : "; no more, it does not pay");
}

}  // namespace

std::string expert_line(const engine::ExpertUse& use) {
    if (use.layers_played == 0) {  // no card
        const std::string text = prefetch_text(use);
        return text.empty() ? "" : "experts: " + text.substr(2);
    }
    const double tokens = static_cast<double>(std::max<int64_t>(use.tokens, 1)),
                 layers = static_cast<double>(use.layers_played);
    const auto mb = [&](int64_t bytes) { return static_cast<double>(bytes) * 1e-6 / tokens; };
    char line[400];
    const std::string core =
        use.core > 0 ? " (" + std::to_string(use.core) + " experts are there alone and stay)" : std::string();
    std::snprintf(line, sizeof line,
                  "experts: %.1f %% of the choices on the card%s; a token reads %.2f MB there, %.2f MB in host memory, "
                  "%.2f MB over the link, busy %.1f us; CPU %.1f us a layer, %.1f us not hidden%s",
                  100.0 * static_cast<double>(use.hits) / static_cast<double>(std::max<int64_t>(use.choices, 1)),
                  core.c_str(), mb(use.card_bytes()), mb(use.host_bytes()), mb(use.link_bytes()),
                  1e6 * use.link_seconds / tokens, 1e6 * use.cpu_seconds / layers, 1e6 * use.exposed_seconds / layers,
                  use.decode_on_card ? "" : "; the card's are left out, they do not pay");
    return line + prefetch_text(use);
}

}  // namespace thermocline::app
