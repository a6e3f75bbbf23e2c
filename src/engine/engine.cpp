#include "src/engine/engine.h"

#include "src/base/end_process.h"
#include "src/base/error.h"
#include "src/base/log.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <exception>
#include <new>
#include <utility>

namespace thermocline::engine {
namespace {

/// A sequence leaves a state in the prefix cache every so many tokens (hybrid-engine.md 5.3).
constexpr int64_t kRememberTokens = 2048;

/// A card that is lost fails every pass. What a request does wrong is found before or behind one (RequestFault).
constexpr int kMostFailedPasses = 8;

/// For a pass that was given up to end after all.
constexpr std::chrono::seconds kLastChance(5);

double seconds_between(Clock::time_point from, Clock::time_point to) {
    return std::chrono::duration<double>(to - from).count();
}

bool contains(const std::vector<int32_t>& ids, int32_t id) {
    return std::find(ids.begin(), ids.end(), id) != ids.end();
}

int64_t sequences_at_once(int64_t wanted, const scheduler::ExecutorLimits& limits) {
    return std::max<int64_t>(1, std::min({wanted, limits.max_parts, limits.max_rows, limits.max_outputs}));
}

/// Of the caches of a sequence; the batcher also asks for some tokens more than it may have.
int64_t bytes_of(const Forward& model, int64_t tokens) {
    return model.sequence_bytes(std::min(tokens, model.limits().max_tokens));
}

BatchLimits batch_limits(const Forward& model, int64_t max_sequences, int64_t kv_bytes) {
    const scheduler::ExecutorLimits limits = model.limits();
    const int64_t longest = bytes_of(model, limits.max_tokens);
    if (kv_bytes == 0) kv_bytes = max_sequences * longest;
    if (kv_bytes < longest)
        fail("--kv-cache-memory-bytes is ", kv_bytes, ", but the caches of one sequence of ", limits.max_tokens,
             " tokens take ", longest, ": raise it, or lower --max-model-len");
    return {max_sequences, limits.max_rows, limits.max_outputs, kv_bytes};
}

bool wants_all_logits(const Request& request) {
    return request.logprobs >= 0 || request.prompt_logprobs >= 0 ||
           Sampler::may_need_all(request.sampling,
                                 request.constraint != nullptr || request.ignore_eos || request.min_tokens > 0);
}

float sampling_factor(const SamplingParams& sampling) {
    return sampling.temperature < kGreedyTemperature ? 1.0f : 1.0f / sampling.temperature;
}

/// Begins what the log says about a sequence.
std::string label(const Sequence& sequence) {
    return sequence.request.id.empty() ? "" : "[" + sequence.request.id + "] ";
}

const char* word_of(FinishReason reason) {
    switch (reason) {
        case FinishReason::kStop:
            return "finished";
        case FinishReason::kLength:
            return "reached its length";
        case FinishReason::kCancelled:
            return "was cancelled";
        case FinishReason::kRefused:
            return "was refused, the engine shuts down";
        case FinishReason::kError:
            break;
    }
    return "failed";
}

}  // namespace

ContextOverflow::ContextOverflow(int64_t prompt_tokens, int64_t max_model_len)
    : Error("the prompt has " + std::to_string(prompt_tokens) + " tokens, the context holds " +
            std::to_string(max_model_len) + " with at least one of output"),
      prompt_tokens_(prompt_tokens),
      max_model_len_(max_model_len) {}

Engine::Engine(std::unique_ptr<Forward> model, EngineLimits limits, const cpu::KernelTable& kernels,
               std::unique_ptr<memory::PrefixDisk> disk)
    : model_(std::move(model)),
      limits_(std::move(limits)),
      vocab_(model_->vocab()),
      max_model_len_(model_->limits().max_tokens),
      max_sequences_(sequences_at_once(limits_.max_sequences, model_->limits())),
      sampler_(vocab_, kernels),
      prefixes_(limits_.prefix_bytes, std::move(disk)),
      batcher_(batch_limits(*model_, max_sequences_, limits_.kv_bytes),
               [model = model_.get()](int64_t tokens) { return bytes_of(*model, tokens); }) {
    counted_.kv_sequence_bytes = bytes_of(*model_, max_model_len_);
    slots_.resize(static_cast<size_t>(max_sequences_));
    publish();
    thread_ = std::thread([this] { run(); });
}

Engine::~Engine() {
    {
        const std::lock_guard lock(mutex_);
        stopping_ = true;
    }
    wake_.notify_all();
    {
        std::unique_lock lock(mutex_);
        wake_.wait(lock, [&] { return ended_ || given_up_; });
        if (!wake_.wait_for(lock, kLastChance, [&] { return ended_; }))
            end_process("a pass that was given up does not end");
    }
    thread_.join();
    prefixes_.close();  // its thread reports to this object
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
    sequence->tokens = std::move(sequence->request.prompt);
    sequence->statistics.prompt_tokens = std::ssize(sequence->tokens);
    sequence->listener = std::move(listener);
    sequence->ticket = std::make_shared<Ticket>();
    sequence->submitted = Clock::now();
    auto ticket = sequence->ticket;
    {
        const std::lock_guard lock(mutex_);
        const auto queued = std::count_if(waiting_.begin(), waiting_.end(),
                                          [](const auto& waiting) { return !waiting.second->ticket->cancelled(); });
        if (draining_ || stopping_ || broken_ || (limits_.max_queue > 0 && queued >= limits_.max_queue)) return nullptr;
        sequence->id = next_id_++;
        batcher_.add(sequence->id, sequence->request.priority, std::ssize(sequence->tokens),
                     sequence->request.prompt_logprobs >= 0);
        waiting_.emplace(sequence->id, std::move(sequence));
    }
    wake_.notify_one();
    return ticket;
}

Engine::Load Engine::load() const {
    const std::lock_guard lock(mutex_);
    return {batcher_.running(), batcher_.waiting()};
}

Counters Engine::counters() const {
    const std::lock_guard lock(mutex_);
    Counters now = counters_;
    now.running = batcher_.running();
    now.waiting = batcher_.waiting();
    return now;
}

std::vector<Engine::Slot> Engine::slots() const {
    const std::lock_guard lock(mutex_);
    return slots_;
}

bool Engine::broken() const {
    const std::lock_guard lock(mutex_);
    return broken_;
}

void Engine::watch(const cpu::Workers& workers, std::chrono::milliseconds patience) {
    watch_.emplace(workers, patience, [this](const std::string& why) { give_up(why); });
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

void Engine::run() {
    while (await_work()) {
        take_loaded();
        end_unwanted();
        turn_over();
        reserve_room();
        if (!shares_.empty())
            pass();
        else if (!running_.empty())
            rest();
        const std::lock_guard lock(mutex_);
        publish();
    }
    const std::lock_guard lock(mutex_);
    ended_ = true;
    wake_.notify_all();
}

/// False at the end.
bool Engine::await_work() {
    std::unique_lock lock(mutex_);
    wake_.wait(lock, [&] { return stopping_ || !waiting_.empty() || !running_.empty(); });
    return !waiting_.empty() || !running_.empty();
}

/// Everything that runs waits for the disk. Cancelling wakes nobody: it is looked for now and then.
void Engine::rest() {
    std::unique_lock lock(mutex_);
    wake_.wait_for(lock, std::chrono::milliseconds(10), [&] { return stopping_ || !loaded_.empty(); });
}

/// Those that are cancelled, or will never begin.
void Engine::end_unwanted() {
    std::vector<std::pair<Sequence*, FinishReason>> unwanted;
    {
        const std::lock_guard lock(mutex_);
        for (const Sequences* some : {&running_, &waiting_})
            for (const auto& one : *some)
                if (const auto why = why_unwanted(*one.second)) unwanted.emplace_back(one.second.get(), *why);
    }
    for (const auto& [sequence, why] : unwanted) {
        Result result;
        result.reason = why;
        end(*sequence, std::move(result));
    }
}

std::optional<FinishReason> Engine::why_unwanted(const Sequence& sequence) const {
    if (!sequence.history && (draining_ || stopping_)) return FinishReason::kRefused;
    if (sequence.ticket->cancelled() || stopping_) return FinishReason::kCancelled;
    return std::nullopt;
}

/// Who runs next, and with which share.
void Engine::turn_over() {
    Batcher::Turnover turn;
    {
        const std::lock_guard lock(mutex_);
        turn = batcher_.turn_over();
    }
    for (const SequenceId id : turn.preempted) {
        Sequence& sequence = *running_.at(id);
        remember(sequence, sequence.cache->position());
        const std::lock_guard lock(mutex_);
        to_queue(id);
    }
    for (const SequenceId id : turn.admitted) {
        Sequence& sequence = take_slot(id);
        try {
            begin(sequence);
        } catch (const std::bad_alloc&) {
            give_way(sequence);
        } catch (const std::exception& error) {
            fail_with(sequence, error.what());
        }
    }
    const std::lock_guard lock(mutex_);
    batcher_.plan(shares_);
}

/// A waiting sequence runs. Those that were preempted in its favour have left their slots.
Sequence& Engine::take_slot(SequenceId id) {
    const std::lock_guard lock(mutex_);
    Sequence& sequence = *running_.insert(waiting_.extract(id)).position->second;
    const auto free = std::find_if(slots_.begin(), slots_.end(), [](const Slot& s) { return s.sequence < 0; });
    CHECK(free != slots_.end());
    sequence.slot = static_cast<size_t>(free - slots_.begin());
    *free = {id, sequence.statistics.prompt_tokens, sequence.statistics.output_tokens};
    return sequence;
}

/// A running sequence loses its caches and waits. Under the lock.
void Engine::to_queue(SequenceId id) {
    ++counted_.preemptions;
    auto node = running_.extract(id);
    slots_[node.mapped()->slot] = {};
    node.mapped()->cache.reset();
    node.mapped()->loading = false;
    waiting_.insert(std::move(node));
}

void Engine::begin(Sequence& sequence) {
    sequence.cache = model_->new_sequence();
    const Request& request = sequence.request;
    const bool reuses = request.reuse_prefix && request.prompt_logprobs < 0;
    const int64_t on_disk =
        reuses ? prefixes_.worth_loading(request.cache_salt, sequence.tokens, std::ssize(sequence.tokens) - 1) : 0;
    if (on_disk > 0)
        load_prefix(sequence, on_disk);
    else
        go_on(sequence);
}

/// The sequence rests until the state after its first `tokens` has come.
void Engine::load_prefix(Sequence& sequence, int64_t tokens) {
    sequence.loading = true;
    {
        const std::lock_guard lock(mutex_);
        batcher_.hold(sequence.id, true);
    }
    prefixes_.load(sequence.request.cache_salt, std::span(sequence.tokens).first(static_cast<size_t>(tokens)),
                   [this, id = sequence.id](std::optional<memory::StoredState> state) {
                       {
                           const std::lock_guard lock(mutex_);
                           loaded_.push_back({id, std::move(state)});
                       }
                       wake_.notify_all();
                   });
}

/// Those whose states have come go on; who was cancelled or preempted meanwhile is not there or finds it later.
void Engine::take_loaded() {
    std::vector<Loaded> loaded;
    {
        const std::lock_guard lock(mutex_);
        loaded.swap(loaded_);
    }
    for (const Loaded& one : loaded) {
        const auto found = running_.find(one.id);
        if (found == running_.end() || !found->second->loading) continue;
        Sequence& sequence = *found->second;
        sequence.loading = false;
        {
            const std::lock_guard lock(mutex_);
            batcher_.hold(one.id, false);
        }
        try {
            if (one.state) {
                ++counted_.prefix_loads;
                prefixes_.take(sequence.request.cache_salt, sequence.tokens, *one.state);
            }
            go_on(sequence, one.state ? one.state->position : 0);
        } catch (const std::bad_alloc&) {
            give_way(sequence);
        } catch (const std::exception& error) {
            fail_with(sequence, error.what());
        }
    }
}

/// From what is in memory of the tokens of an empty sequence, of which `loaded` have just come from the disk.
void Engine::go_on(Sequence& sequence, int64_t loaded) {
    const Request& request = sequence.request;
    int64_t cached = 0;
    // The last token is always computed: its logits are needed.
    if (request.reuse_prefix && request.prompt_logprobs < 0)
        cached =
            prefixes_.resume(*sequence.cache, request.cache_salt, sequence.tokens, std::ssize(sequence.tokens) - 1);
    sequence.remembered = cached;
    {
        const std::lock_guard lock(mutex_);
        batcher_.set_cached(sequence.id, cached);
    }
    if (sequence.history) return;
    start(sequence, cached);
    if (cached == loaded) counted_.prefix_disk_hits += loaded;
}

/// Keeps the state at a position for others, who may begin with the same tokens.
void Engine::remember(Sequence& sequence, int64_t position) {
    // Those with prompt_logprobs come by thousands, and never read.
    if (sequence.request.prompt_logprobs >= 0 || !sequence.request.reuse_prefix) return;
    prefixes_.keep(*sequence.cache, sequence.request.cache_salt,
                   std::span(sequence.tokens).first(static_cast<size_t>(position)));
    sequence.remembered = position;
}

/// After a pass: at the end of the prompt but one token, so that the same prompt, and a next turn that shows the answer
/// otherwise, can go on from there; and every kRememberTokens at the end of a block.
void Engine::remember_progress(Sequence& sequence) {
    const int64_t position = sequence.cache->position(), prompt = sequence.statistics.prompt_tokens;
    const int64_t block_end = position / memory::PrefixTree::kBlockTokens * memory::PrefixTree::kBlockTokens;
    if (position == prompt && sequence.remembered < prompt - 1) remember(sequence, prompt - 1);
    if (block_end - sequence.remembered >= kRememberTokens) remember(sequence, block_end);
}

/// What is done once for a sequence, however often it begins.
void Engine::start(Sequence& sequence, int64_t cached) {
    const Request& request = sequence.request;
    Statistics& statistics = sequence.statistics;
    sequence.started = sequence.first_token = Clock::now();
    statistics.queue_seconds = seconds_between(sequence.submitted, sequence.started);
    const int64_t room = max_model_len_ - statistics.prompt_tokens;
    sequence.max_output = request.max_tokens < 0 ? room : std::min(request.max_tokens, room);
    sequence.stop_tokens = request.stop_tokens;
    if (!request.ignore_eos)
        sequence.stop_tokens.insert(sequence.stop_tokens.end(), limits_.eos_ids.begin(), limits_.eos_ids.end());
    sequence.history.emplace(vocab_);
    sequence.history->add_prompt(sequence.tokens);
    statistics.cached_tokens = sequence.reported = cached;
    counted_.prompt_tokens += statistics.prompt_tokens;
    counted_.prefix_queries += statistics.prompt_tokens;
    counted_.prefix_hits += cached;
    log::debug("{}begins after {:.3f} s: {} prompt tokens, {} of them cached", label(sequence),
               statistics.queue_seconds, statistics.prompt_tokens, cached);
    sequence.listener->on_prefill(cached, statistics.prompt_tokens);
}

/// There was no memory for a running sequence although the budget has some left.
void Engine::give_way(Sequence& sequence) {
    bool waits = false;
    {
        const std::lock_guard lock(mutex_);
        waits = batcher_.give_way(sequence.id);
        if (waits) {
            to_queue(sequence.id);
            log::warn("{}memory is short: the caches of all requests keep to {} MB from now on", label(sequence),
                      batcher_.limits().kv_bytes / 1'000'000);
        }
    }
    if (!waits)
        fail_with(sequence, "out of memory for the caches of a sequence of " + std::to_string(sequence.tokens.size()) +
                                " tokens: lower --kv-cache-memory-bytes or --max-model-len");
}

/// Takes the memory of the pass; those for which there is none take no part.
void Engine::reserve_room() {
    std::erase_if(shares_, [&](const Share& share) {
        const auto found = running_.find(share.id);
        if (found == running_.end()) return true;
        Sequence& sequence = *found->second;
        const int64_t length = sequence.cache->position() + share.rows;
        if (sequence.cache->reserve(length) || (prefixes_.clear() && sequence.cache->reserve(length))) return false;
        give_way(sequence);
        return true;
    });
}

/// One forward pass over the shares.
void Engine::pass() {
    parts_.clear();
    for (const Share& share : shares_) {
        Sequence& sequence = *running_.at(share.id);
        const auto first = static_cast<size_t>(sequence.cache->position());
        parts_.push_back({sequence.cache.get(),
                          std::span(sequence.tokens).subspan(first, static_cast<size_t>(share.rows)),
                          static_cast<int32_t>(share.outputs), wants_all_logits(sequence.request),
                          sampling_factor(sequence.request.sampling)});
    }
    std::optional<std::string> failure;
    set_passing(true);
    try {
        model_->forward(parts_);
    } catch (const std::exception& error) {
        failure = error.what();
    }
    if (!set_passing(false)) return;
    if (failure) return fail_pass(*failure);
    count_pass();
    int64_t output = 0;
    for (const Share& share : shares_) {
        Sequence& sequence = *running_.at(share.id);
        try {
            advance(sequence, share, output);
        } catch (const RequestFault& fault) {
            refuse(sequence, fault.what());
        } catch (const std::exception& error) {
            fail_with(sequence, error.what());
        }
        output += share.outputs;
    }
}

void Engine::count_pass() {
    failed_passes_ = 0;
    ++counted_.passes;
    int64_t tokens = 0;
    for (const Share& share : shares_) {
        tokens += share.rows;
        counted_.longest_sequence = std::max(counted_.longest_sequence, running_.at(share.id)->cache->position());
    }
    counted_.pass_tokens += tokens;
    counted_.pass_sequences += std::ssize(shares_);
    const auto size = static_cast<size_t>(std::bit_width(static_cast<uint64_t>(tokens - 1)));
    ++counted_.passes_by_tokens[std::min(size, Counters::kPassSizes - 1)];
}

/// Those that took part have failed; after too many such passes everybody has.
void Engine::fail_pass(const std::string& error) {
    std::vector<Sequence*> failed;
    for (const Share& share : shares_) failed.push_back(running_.at(share.id).get());
    if (++failed_passes_ == kMostFailedPasses) {
        log::error("{} passes failed one after the other, nothing more is computed: {}", kMostFailedPasses, error);
        const std::lock_guard lock(mutex_);
        broken_ = true;
        failed.clear();
        for (const Sequences* some : {&running_, &waiting_})
            for (const auto& one : *some) failed.push_back(one.second.get());
    }
    for (Sequence* sequence : failed) fail_with(*sequence, error);
}

/// False if the pass that ends was given up: nobody waits for anything any more.
bool Engine::set_passing(bool now) {
    const std::lock_guard lock(mutex_);
    passing_ = now;
    if (!given_up_) return true;
    running_.clear();
    waiting_.clear();
    return false;
}

/// By the thread of the watch. The pass still has the caches and the tokens in its hands.
void Engine::give_up(const std::string& why) {
    std::vector<std::pair<std::shared_ptr<Listener>, Result>> ended;
    {
        const std::lock_guard lock(mutex_);
        if (!passing_) end_process(why);  // the workers hang in something that nobody has asked for
        broken_ = given_up_ = true;
        for (const Sequences* some : {&running_, &waiting_})
            for (const auto& [id, sequence] : *some) {
                batcher_.remove(id);
                Result result;
                result.reason = FinishReason::kError;
                result.error = why;
                result.statistics = sequence->statistics;
                ended.emplace_back(sequence->listener, std::move(result));
            }
    }
    log::error("a pass was given up, nothing more is computed: {}", why);
    for (const auto& [listener, result] : ended) listener->on_finish(result);
    wake_.notify_all();
}

/// After a pass: reports, and draws if all tokens are in the caches.
void Engine::advance(Sequence& sequence, const Share& share, int64_t first_output) {
    Statistics& statistics = sequence.statistics;
    const int64_t position = sequence.cache->position();
    const bool in_prompt = statistics.output_tokens == 0, is_last = position == std::ssize(sequence.tokens);
    (in_prompt ? statistics.prefill_bytes : statistics.decode_bytes) += model_->last_bytes();
    if (in_prompt && position > sequence.reported) {
        sequence.reported = position;
        sequence.listener->on_prefill(position, statistics.prompt_tokens);
    }
    if (sequence.request.prompt_logprobs >= 0)
        report_prompt(sequence, position - share.rows, first_output, share.outputs);
    std::optional<FinishReason> reason;
    if (is_last && in_prompt) {
        sequence.first_token = Clock::now();
        statistics.prefill_seconds = seconds_between(sequence.started, sequence.first_token);
    }
    if (is_last && !in_prompt) ++statistics.decode_steps;
    if (is_last && sequence.max_output == 0) reason = FinishReason::kLength;
    if (is_last && !reason) reason = draw(sequence, first_output + share.outputs - 1);
    remember_progress(sequence);
    if (reason) {
        Result result;
        result.reason = *reason;
        result.stop_token = sequence.stop_token;
        return end(sequence, std::move(result));
    }
    const std::lock_guard lock(mutex_);
    batcher_.computed(sequence.id, share.rows, is_last);
}

/// Log-probabilities of the prompt tokens that `count` outputs of the last pass predict; the first of these outputs is
/// that of the sequence's token `first`. A sequence that computes again reports what it has not reported.
void Engine::report_prompt(Sequence& sequence, int64_t first, int64_t first_output, int64_t count) {
    const int32_t candidates = sequence.request.prompt_logprobs;
    std::vector<Token> tokens;
    if (sequence.scored == 0) {
        tokens.emplace_back();
        tokens.back().id = sequence.tokens.front();
        sequence.scored = 1;
    }
    for (int64_t i = 0; i < count && first + i + 1 < sequence.statistics.prompt_tokens; ++i) {
        if (first + i + 1 < sequence.scored) continue;
        const int32_t id = sequence.tokens[static_cast<size_t>(first + i + 1)];
        const std::span<const float> row = logits(first_output + i);
        tokens.push_back(sampler_.with_logprobs(row, id, candidates));
        const float own = row[static_cast<size_t>(id)];
        tokens.back().rank =
            1 + static_cast<int32_t>(std::count_if(row.begin(), row.end(), [own](float logit) { return logit > own; }));
        ++sequence.scored;
    }
    if (!tokens.empty()) sequence.listener->on_prompt(tokens);
}

/// Draws the next token and says whether it is the last one.
std::optional<FinishReason> Engine::draw(Sequence& sequence, int64_t output) {
    const Request& request = sequence.request;
    const int64_t step = sequence.statistics.output_tokens;
    sequence.forbidden.clear();
    if (step < request.min_tokens) sequence.forbidden = sequence.stop_tokens;
    if (request.ignore_eos)
        sequence.forbidden.insert(sequence.forbidden.end(), limits_.eos_ids.begin(), limits_.eos_ids.end());
    std::span<const uint64_t> allowed;
    if (request.constraint) allowed = request.constraint->mask();
    const Choosable choosable{allowed, sequence.forbidden};
    std::optional<int32_t> drawn;
    if (const auto top = request.logprobs < 0 ? model_->top_logits(output) : std::nullopt)
        drawn = sampler_.sample(*top, request.sampling, *sequence.history, choosable, static_cast<uint64_t>(step));
    if (!drawn)
        drawn = sampler_.sample(logits(output), request.sampling, *sequence.history, choosable,
                                static_cast<uint64_t>(step));
    const int32_t id = *drawn;
    if (request.constraint) request.constraint->accept(id);
    Token token;
    if (request.logprobs >= 0)
        token = sampler_.with_logprobs(request.processed_logprobs ? sampler_.drawn_from() : logits(output), id,
                                       request.logprobs);
    token.id = id;
    token.ends = contains(sequence.stop_tokens, id);
    sequence.history->add_output(id);
    sequence.tokens.push_back(id);
    ++sequence.statistics.output_tokens;
    ++counted_.output_tokens;
    if (token.ends && !contains(limits_.eos_ids, id)) sequence.stop_token = id;
    std::optional<FinishReason> reason;
    if (token.ends || (request.constraint && request.constraint->ended()))
        reason = FinishReason::kStop;
    else if (sequence.statistics.output_tokens >= sequence.max_output)
        reason = FinishReason::kLength;
    token.is_last = reason.has_value();
    const bool goes_on = sequence.listener->on_token(token);
    return goes_on ? reason : FinishReason::kStop;
}

std::span<const float> Engine::logits(int64_t output) const {
    return {model_->logits(output), static_cast<size_t>(vocab_)};
}

void Engine::fail_with(Sequence& sequence, const std::string& error) {
    log::error("{}request failed: {}", label(sequence), error);
    Result result;
    result.reason = FinishReason::kError;
    result.error = error;
    prefixes_.forget(sequence.request.cache_salt, sequence.tokens);  // whatever went wrong may be in there
    end(sequence, std::move(result));
}

/// Ends a sequence whose request asks for what cannot be done.
void Engine::refuse(Sequence& sequence, const std::string& fault) {
    Result result;
    result.reason = FinishReason::kError;
    result.error = fault;
    result.by_request = true;
    end(sequence, std::move(result));
}

/// Takes a sequence out, gives its memory back and tells its listener.
void Engine::end(Sequence& sequence, Result result) {
    const auto now = Clock::now();
    if (!sequence.history) sequence.started = sequence.first_token = now;
    if (sequence.statistics.output_tokens > 0)
        sequence.statistics.decode_seconds = seconds_between(sequence.first_token, now);
    result.statistics = sequence.statistics;
    log::debug("{}{}: {} output tokens, prompt {:.3f} s, output {:.3f} s", label(sequence), word_of(result.reason),
               result.statistics.output_tokens, result.statistics.prefill_seconds, result.statistics.decode_seconds);
    if (sequence.cache && result.reason != FinishReason::kError) remember(sequence, sequence.cache->position());
    const std::shared_ptr<Listener> listener = sequence.listener;
    sequence.cache.reset();
    {
        const std::lock_guard lock(mutex_);
        const SequenceId id = sequence.id;
        batcher_.remove(id);
        const auto running = running_.find(id);
        if (running != running_.end()) {
            slots_[running->second->slot] = {};
            running_.erase(running);
        } else {
            waiting_.erase(id);
        }
        publish();
    }
    listener->on_finish(result);
}

/// Makes the counters public. Under the lock.
void Engine::publish() {
    counters_ = counted_;
    counters_.prefix_bytes = prefixes_.bytes();
    counters_.prefix_disk_bytes = prefixes_.disk_bytes();
    counters_.kv_used_bytes = batcher_.kv_used();
    counters_.kv_total_bytes = batcher_.limits().kv_bytes;
    for (const auto& [id, sequence] : running_)
        slots_[sequence->slot] = {id, sequence->statistics.prompt_tokens, sequence->statistics.output_tokens};
}

}  // namespace thermocline::engine
