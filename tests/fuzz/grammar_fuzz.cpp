// Readers of schemas, regular expressions and GBNF: the first byte of the input says which one reads the rest. What
// compiles must have a text, found by always going on somehow; nothing may crash, hang or take memory without bound.
#include "src/base/error.h"
#include "src/text/gbnf_grammar.h"
#include "src/text/grammar_machine.h"
#include "src/text/regex_grammar.h"
#include "src/text/schema_grammar.h"

#include <cstddef>
#include <cstdint>
#include <cstdlib>

using namespace thermocline;
using namespace thermocline::text;

namespace {

Grammar read(uint8_t kind, const std::string& text) {
    if (kind % 3 == 0) return schema_grammar(parse_json(text, "schema"), "schema");
    if (kind % 3 == 1) return gbnf_grammar(text);
    GrammarBuilder builder;
    const Speller spell = [&builder](const CharSet& set) { return builder.chars(set); };
    return builder.build(builder.rule("regex", regex_expression(text, RegexMatch::kWhole, builder, spell)));
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    if (size == 0 || size > 4096) return 0;
    try {
        const std::string text(reinterpret_cast<const char*>(data) + 1, size - 1);
        GrammarMachine machine(std::make_shared<const Grammar>(read(data[0], text)));
        int32_t config = machine.start();
        for (int i = 0; i < 40 && machine.goes_on(config); ++i) {
            int32_t next = GrammarMachine::kDead;
            for (int byte = 0; byte < 256 && next == GrammarMachine::kDead; ++byte)
                next = machine.step(config, static_cast<uint8_t>(byte + data[i % size * 7 % size]));
            if (next == GrammarMachine::kDead) std::abort();
            config = next;
        }
        if (!machine.goes_on(config) && !machine.is_complete(config)) std::abort();
    } catch (const Error&) {
    }
    return 0;
}
