#include "src/engine/engine.h"

#include "src/base/check.h"
#include "src/base/error.h"
#include "src/base/log.h"

#include <algorithm>
#include <cmath>
#include <exception>
#include <utility>

namespace thermocline::engine {
namespace {

double seconds_between(Clock::time_point from, Clock::time_point to) {
    return std::chrono::duration<double>(to - from).count();
}

bool contains(const std::vector<int32_t>& ids, int32_t id) {
    return std::find(ids.begin(), ids.end(), id) != ids.end();
}

}  // namespace

ContextOverflow::ContextOverflow(int64_t prompt_tokens, int64_t max_model_len)
    : Error("the prompt has " + std::to_string(prompt_tokens) + " tokens, the context holds " +
            std::to_string(max_model_len) + " with at least one of output"),
      prompt_tokens_(prompt_tokens),
      max_model_len_(max_model_len) {}

Engine::Engine(std::unique_ptr<Forward> model, EngineLimits limits, const cpu::KernelTable& kernels)
    : model_(std::move(model)),
      limits_(std::move(limits)),
      vocab_(model_->vocab()),
      max_model_len_(model_->limits().max_tokens),
      sampler_(vocab_, kernels),
      history_(vocab_),
      cache_(model_->new_sequence()),
      thread_([this] { run(); }) {}

Engine::~Engine() {
    {
        const std::lock_guard lock(mutex_);
        stopping_ = true;
        if (running_) running_->cancel();
    }
    wake_.notify_all();
    thread_.join();
}

void Engine::check(const Request& request) const {
    const auto check_id = [&](int32_t id, const char* what) {
        if (id < 0 || id >= vocab_) fail(what, " ", id, " is out of vocabulary, expected an id from 0 to ", vocab_ - 1);
    };
    if (request.prompt.empty()) fail("the prompt is empty, expected at least one token");
    const auto size = static_cast<int64_t>(request.prompt.size());
    const bool only_prompt = request.max_tokens == 0;
    if (size > max_model_len_ || (size == max_model_len_ && !only_prompt)) throw ContextOverflow(size, max_model_len_);
    for (const int32_t id : request.prompt) check_id(id, "prompt token");
    for (const int32_t id : request.stop_tokens) check_id(id, "stop token");
    for (const auto& bias : request.sampling.logit_bias) check_id(bias.first, "logit_bias token");
    const SamplingParams& sampling = request.sampling;
    const std::pair<const char*, float> numbers[] = {{"temperature", sampling.temperature},
                                                     {"top_p", sampling.top_p},
                                                     {"min_p", sampling.min_p},
                                                     {"presence_penalty", sampling.presence_penalty},
                                                     {"frequency_penalty", sampling.frequency_penalty},
                                                     {"repetition_penalty", sampling.repetition_penalty}};
    for (const auto& [name, value] : numbers)
        if (!std::isfinite(value)) fail(name, " is ", value, ", expected a finite number");
}

std::shared_ptr<Ticket> Engine::submit(Request request, std::shared_ptr<Listener> listener) {
    check(request);
    auto sequence = std::make_unique<Sequence>();
    sequence->request = std::move(request);
    sequence->listener = std::move(listener);
    sequence->ticket = std::make_shared<Ticket>();
    sequence->submitted = Clock::now();
    auto ticket = sequence->ticket;
    {
        const std::lock_guard lock(mutex_);
        const auto queued = std::count_if(waiting_.begin(), waiting_.end(),
                                          [](const auto& waiting) { return !waiting->ticket->cancelled(); });
        if (draining_ || stopping_ || (limits_.max_queue > 0 && queued >= limits_.max_queue)) return nullptr;
        waiting_.push_back(std::move(sequence));
    }
    wake_.notify_one();
    return ticket;
}

Engine::Load Engine::load() const {
    const std::lock_guard lock(mutex_);
    return {running_ ? 1 : 0, static_cast<int64_t>(waiting_.size())};
}

void Engine::drain() {
    {
        const std::lock_guard lock(mutex_);
        draining_ = true;
    }
    wake_.notify_all();
}

bool Engine::draining() const {
    const std::lock_guard lock(mutex_);
    return draining_ || stopping_;
}

/// The next request to run; null at the end. Takes those out that will never run.
std::unique_ptr<Sequence> Engine::next() {
    while (true) {
        std::unique_ptr<Sequence> sequence;
        bool refused = false;
        {
            std::unique_lock lock(mutex_);
            running_.reset();
            wake_.wait(lock, [&] { return stopping_ || !waiting_.empty(); });
            if (waiting_.empty()) return nullptr;
            sequence = std::move(waiting_.front());
            waiting_.pop_front();
            refused = draining_ || stopping_;
            if (!refused) running_ = sequence->ticket;
        }
        if (sequence->ticket->cancelled() || refused) {
            Result result;
            result.reason = refused ? FinishReason::kRefused : FinishReason::kCancelled;
            sequence->started = sequence->first_token = Clock::now();
            finish(*sequence, std::move(result));
            continue;
        }
        return sequence;
    }
}

void Engine::run() {
    while (const auto sequence = next()) {
        try {
            play(*sequence);
        } catch (const std::exception& error) {
            // What the pass left in the caches is unknown: the next request starts from an empty one.
            forget_caches();
            log::error("request failed: {}", error.what());
            Result result;
            result.reason = FinishReason::kError;
            result.error = error.what();
            finish(*sequence, std::move(result));
        }
    }
}

void Engine::play(Sequence& sequence) {
    begin(sequence);
    std::optional<FinishReason> reason;
    while (!reason) {
        if (sequence.ticket->cancelled()) {
            reason = FinishReason::kCancelled;
        } else if (sequence.last_token < 0) {
            reason = prefill(sequence);
        } else {
            reason = decode(sequence);
        }
    }
    Result result;
    result.reason = *reason;
    result.stop_token = stop_token_;
    finish(sequence, std::move(result));
}

void Engine::begin(Sequence& sequence) {
    const Request& request = sequence.request;
    sequence.started = sequence.first_token = Clock::now();
    sequence.statistics.queue_seconds = seconds_between(sequence.submitted, sequence.started);
    sequence.statistics.prompt_tokens = static_cast<int64_t>(request.prompt.size());
    const int64_t room = max_model_len_ - sequence.statistics.prompt_tokens;
    sequence.max_output = request.max_tokens < 0 ? room : std::min(request.max_tokens, room);
    sequence.stop_tokens = request.stop_tokens;
    if (!request.ignore_eos)
        sequence.stop_tokens.insert(sequence.stop_tokens.end(), limits_.eos_ids.begin(), limits_.eos_ids.end());
    history_.clear();
    history_.add_prompt(request.prompt);
    stop_token_ = -1;
    sequence.statistics.cached_tokens = reuse_prefix(request);
    sequence.listener->on_prefill(sequence.statistics.cached_tokens, sequence.statistics.prompt_tokens);
}

/// Prepares the caches for the prompt; returns how many of its tokens they hold already.
int64_t Engine::reuse_prefix(const Request& request) {
    const bool usable = request.reuse_prefix && !request.prompt_logprobs && request.cache_salt == cached_salt_;
    cached_salt_ = request.cache_salt;
    // The last token of the prompt is always computed: its logits are needed.
    const auto limit = std::min(cached_tokens_.size(), request.prompt.size() - 1);
    auto common =
        static_cast<int64_t>(std::mismatch(request.prompt.begin(), request.prompt.begin() + static_cast<int64_t>(limit),
                                           cached_tokens_.begin())
                                 .first -
                             request.prompt.begin());
    if (!usable) common = 0;
    while (common > 0 && common < cache_->position() && !cache_->can_roll_back(common)) --common;
    if (common == 0) {
        forget_caches();
    } else if (common < cache_->position()) {
        cache_->roll_back(common);
        cached_tokens_.resize(static_cast<size_t>(common));
    }
    return common;
}

/// One chunk of the prompt; the last one draws the first token.
std::optional<FinishReason> Engine::prefill(Sequence& sequence) {
    const Request& request = sequence.request;
    const bool scores = request.prompt_logprobs;
    const int64_t total = sequence.statistics.prompt_tokens, done = cache_->position();
    const scheduler::ExecutorLimits limits = model_->limits();
    const int64_t chunk = scores ? std::min(limits.max_rows, limits.max_outputs) : limits.max_rows;
    const int64_t rows = std::min(chunk, total - done);
    const bool is_last = done + rows == total;
    const int64_t outputs = scores ? rows : is_last ? 1 : 0;

    pass(std::span(request.prompt).subspan(static_cast<size_t>(done), static_cast<size_t>(rows)),
         static_cast<int32_t>(outputs));
    sequence.statistics.prefill_bytes += model_->last_bytes();
    sequence.listener->on_prefill(done + rows, total);
    if (scores) report_prompt(sequence, done, rows);
    if (!is_last) return std::nullopt;
    sequence.first_token = Clock::now();
    sequence.statistics.prefill_seconds = seconds_between(sequence.started, sequence.first_token);
    if (sequence.max_output == 0) return FinishReason::kLength;
    return draw(sequence, logits(outputs - 1));
}

std::optional<FinishReason> Engine::decode(Sequence& sequence) {
    pass({&sequence.last_token, 1}, 1);
    sequence.statistics.decode_bytes += model_->last_bytes();
    ++sequence.statistics.decode_steps;
    return draw(sequence, logits(0));
}

/// One forward pass that continues the running sequence.
void Engine::pass(std::span<const int32_t> tokens, int32_t outputs) {
    const int64_t length = cache_->position() + static_cast<int64_t>(tokens.size());
    if (!cache_->reserve(length)) fail("out of memory for the caches of a sequence of ", length, " tokens");
    const scheduler::Part part{cache_.get(), tokens, outputs};
    model_->forward({&part, 1});
    cached_tokens_.insert(cached_tokens_.end(), tokens.begin(), tokens.end());
    CHECK(cache_->position() == static_cast<int64_t>(cached_tokens_.size()));
}

/// Log-probabilities of the prompt tokens that the `count` outputs of the last pass, which began at `first`, predict.
void Engine::report_prompt(Sequence& sequence, int64_t first, int64_t count) {
    const Request& request = sequence.request;
    std::vector<Token> tokens;
    if (first == 0) {
        tokens.emplace_back();
        tokens.back().id = request.prompt.front();
    }
    for (int64_t i = 0; i < count && first + i + 1 < sequence.statistics.prompt_tokens; ++i) {
        const int32_t id = request.prompt[static_cast<size_t>(first + i + 1)];
        tokens.push_back(sampler_.with_logprobs(logits(i), id, request.logprobs));
    }
    sequence.listener->on_prompt(tokens);
}

/// Draws the next token and says whether it is the last one.
std::optional<FinishReason> Engine::draw(Sequence& sequence, std::span<const float> logits) {
    const Request& request = sequence.request;
    const int64_t step = sequence.statistics.output_tokens;
    sequence.forbidden.clear();
    if (step < request.min_tokens) sequence.forbidden = sequence.stop_tokens;
    if (request.ignore_eos)
        sequence.forbidden.insert(sequence.forbidden.end(), limits_.eos_ids.begin(), limits_.eos_ids.end());
    const int32_t id =
        sampler_.sample(logits, request.sampling, history_, sequence.forbidden, static_cast<uint64_t>(step));
    Token token;
    if (request.logprobs >= 0) token = sampler_.with_logprobs(logits, id, request.logprobs);
    token.id = id;
    token.ends = contains(sequence.stop_tokens, id);
    history_.add_output(id);
    sequence.last_token = id;
    ++sequence.statistics.output_tokens;
    const bool goes_on = sequence.listener->on_token(token);
    if (token.ends) {
        if (!contains(limits_.eos_ids, id)) stop_token_ = id;
        return FinishReason::kStop;
    }
    if (!goes_on) return FinishReason::kStop;
    if (sequence.statistics.output_tokens >= sequence.max_output) return FinishReason::kLength;
    return std::nullopt;
}

std::span<const float> Engine::logits(int64_t output) const {
    return {model_->logits(output), static_cast<size_t>(vocab_)};
}

void Engine::finish(Sequence& sequence, Result result) {
    const auto now = Clock::now();
    if (sequence.statistics.output_tokens > 0)
        sequence.statistics.decode_seconds = seconds_between(sequence.first_token, now);
    result.statistics = sequence.statistics;
    sequence.listener->on_finish(result);
}

void Engine::forget_caches() {
    cache_->clear();
    cached_tokens_.clear();
}

}  // namespace thermocline::engine
