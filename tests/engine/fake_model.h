// A model for tests that is a table: the best next token is a function of the last one, so that what the engine must
// produce can be said beforehand. Its vocabulary is the bytes and a few special tokens.
//
// It spells: <think> -> "hm" -> </think> -> "a" -> "b" -> ... -> "z" -> end of sentence. After "!" it computes NaN.
#pragma once

#include "src/base/error.h"
#include "src/engine/forward.h"
#include "src/text/tokenizer.h"
#include "src/text/unicode.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <functional>
#include <limits>
#include <map>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

namespace thermocline::testing {

constexpr int32_t kBos = 0, kEos = 1, kFirstByte = 2;
constexpr int32_t kUser = 258, kAssistant = 259, kThink = 260, kThinkEnd = 261, kDsml = 262, kVocab = 263;

inline int32_t byte_id(char c) { return kFirstByte + static_cast<unsigned char>(c); }

inline std::vector<int32_t> byte_ids(const std::string& text) {
    std::vector<int32_t> ids;
    for (const char c : text) ids.push_back(byte_id(c));
    return ids;
}

/// The tokenizer of that vocabulary. `renamed`: other texts for added tokens.
inline text::Tokenizer fake_tokenizer(const std::map<int32_t, std::string>& renamed = {}) {
    text::TokenizerData data;
    data.tokens.resize(kVocab);
    char32_t next = 256;  // the byte alphabet: printable bytes stand for themselves, the others follow from 256 on
    for (int byte = 0; byte < 256; ++byte) {
        const bool is_printable = (byte >= 33 && byte <= 126) || (byte >= 161 && byte <= 172) || byte >= 174;
        text::append_code_point(is_printable ? static_cast<char32_t>(byte) : next++, data.tokens[kFirstByte + byte]);
    }
    const std::pair<int32_t, const char*> added[] = {{kBos, "<｜begin▁of▁sentence｜>"},
                                                     {kEos, "<｜end▁of▁sentence｜>"},
                                                     {kUser, "<｜User｜>"},
                                                     {kAssistant, "<｜Assistant｜>"},
                                                     {kThink, "<think>"},
                                                     {kThinkEnd, "</think>"},
                                                     {kDsml, "｜DSML｜"}};
    for (const auto& [id, content] : added) {
        const auto other = renamed.find(id);
        data.added_tokens.push_back({id, other == renamed.end() ? content : other->second, id <= kEos, false});
    }
    data.bos_id = kBos;
    data.eos_id = kEos;
    return text::Tokenizer(std::move(data));
}

inline int32_t fake_next(int32_t last) {
    if (last == kThink) return byte_id('h');
    if (last == byte_id('h')) return byte_id('m');
    if (last == byte_id('m')) return kThinkEnd;
    if (last == byte_id('z')) return kEos;
    const char c = static_cast<char>(last - kFirstByte);
    if (c >= 'a' && c < 'z') return byte_id(c == 'g' || c == 'l' ? static_cast<char>(c + 2) : static_cast<char>(c + 1));
    return byte_id('a');
}

class FakeForward : public engine::Forward {
public:
    struct Script {
        scheduler::ExecutorLimits limits{.max_rows = 4, .max_outputs = 4, .max_tokens = 64};
        std::atomic<int> step_milliseconds = 0;
        std::atomic<int64_t> rows = 0;        // computed so far
        std::atomic<int64_t> most_parts = 0;  // in one pass
        std::function<void()> in_pass = {};   // called by every pass
        std::atomic<int> failures = 0;        // so many passes fail from now on, as when a card is lost
        bool computes_nan = true;             // after "!"
        int64_t bytes_per_token = 0;          // that the caches are said to take
        memory::PageStore* pages = nullptr;   // of caches that keep an entry for every token; null: there are none
    };
    explicit FakeForward(std::shared_ptr<Script> script) : script_(std::move(script)) {}

    int64_t vocab() const override { return kVocab; }
    scheduler::ExecutorLimits limits() const override { return script_->limits; }
    std::unique_ptr<memory::SequenceCache> new_sequence() override {
        if (script_->pages == nullptr)
            return std::make_unique<memory::SequenceCache>(std::vector<ops::CacheSpec>{}, script_->limits.max_tokens);
        // A page a token.
        const ops::CacheSpec entries{
            .name = "entries", .kind = ops::CacheSpec::Kind::kEntries, .format = quant::KvFormat::kF32, .width = 16384};
        return std::make_unique<memory::SequenceCache>(std::vector{entries}, script_->limits.max_tokens,
                                                       *script_->pages);
    }
    int64_t sequence_bytes(int64_t tokens) const override { return script_->bytes_per_token * tokens; }
    void forward(std::span<const scheduler::Part> parts) override {
        std::this_thread::sleep_for(std::chrono::milliseconds(script_->step_milliseconds.load()));
        if (script_->in_pass) script_->in_pass();
        if (script_->failures > 0) {
            --script_->failures;
            fail("the card is lost");
        }
        script_->most_parts = std::max<int64_t>(script_->most_parts, std::ssize(parts));
        logits_.clear();
        for (const scheduler::Part& part : parts) {
            const auto size = static_cast<int32_t>(part.tokens.size());
            for (int32_t i = size - part.outputs; i < size; ++i) add_row(part.tokens[static_cast<size_t>(i)]);
            part.sequence->advance(size);
            script_->rows += size;
        }
    }
    const float* logits(int64_t output) const override { return logits_.data() + output * kVocab; }
    int64_t last_bytes() const override { return 1000; }

private:
    void add_row(int32_t last) {
        for (int32_t id = 0; id < kVocab; ++id) logits_.push_back(-0.01f * static_cast<float>(id));
        float* row = logits_.data() + logits_.size() - kVocab;
        row[fake_next(last)] = 8.0f;
        row[byte_id('a')] += 4.0f;  // the second choice
        if (last == byte_id('!') && script_->computes_nan) row[7] = std::numeric_limits<float>::quiet_NaN();
    }

    std::shared_ptr<Script> script_;
    std::vector<float> logits_;
};

}  // namespace thermocline::testing
