// Texts against grammars: whether one belongs to it, and random ones of it.
#pragma once

#include "src/text/grammar_machine.h"
#include "src/text/token_masks.h"

#include <memory>
#include <random>
#include <string>

namespace thermocline::testing {

inline bool belongs(const text::Grammar& grammar, const std::string& text) {
    text::GrammarMachine machine(std::make_shared<const text::Grammar>(grammar));
    int32_t config = machine.start();
    for (const char byte : text) {
        config = machine.step(config, static_cast<uint8_t>(byte));
        if (config == text::GrammarMachine::kDead) return false;
    }
    return machine.is_complete(config);
}

/// A random text of the grammar, token by token out of the masks; from `hurry` tokens on it takes what ends strings,
/// lists and objects where that is allowed.
inline std::string random_text(const std::shared_ptr<text::TokenMasks>& masks, std::mt19937& random, int hurry) {
    text::GrammarMatcher matcher(masks);
    const text::Tokenizer& tokenizer = masks->trie().tokenizer();
    std::string out;
    for (int n = 0; matcher.goes_on() && n < hurry + 4000; ++n) {
        if (matcher.is_complete() && (n > hurry || random() % 8 == 0)) return out;
        const std::span<const uint64_t> mask = matcher.mask();
        std::vector<int32_t> ids, ending;
        for (int32_t id = 0; id < tokenizer.vocab_size(); ++id) {
            if ((mask[static_cast<size_t>(id) / 64] >> id % 64 & 1) == 0) continue;
            ids.push_back(id);
            const std::string& bytes = tokenizer.token_bytes(id);
            for (const char* end : {"\"", "}", "]", "n", "z", "<", "/", "｜DSML｜"})
                if (bytes == end) ending.push_back(id);
        }
        if (ids.empty()) return "nothing may follow: " + out;
        const std::vector<int32_t>& from = n > hurry && !ending.empty() ? ending : ids;
        const int32_t id = from[random() % from.size()];
        if (!matcher.accept(id)) return "the mask allows what the matcher refuses: " + out;
        out += tokenizer.token_bytes(id);
    }
    return out;
}

}  // namespace thermocline::testing
