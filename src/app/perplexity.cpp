// `perplexity`: of a text, in chunks of --max-model-len tokens, each opened with the BOS token.
#include "src/app/commands.h"
#include "src/app/progress.h"
#include "src/app/session.h"
#include "src/app/settings.h"
#include "src/base/error.h"
#include "src/base/file.h"
#include "src/base/json.h"
#include "src/engine/vocabulary.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <memory>
#include <vector>

namespace thermocline::app {

namespace {

constexpr int64_t kRows = 256;

struct PerplexityFlags {
    ModelFlags model;
    std::string file;
    bool json = false;
};

/// Negative log-likelihoods, one for each predicted token.
struct Losses {
    int64_t count = 0;
    double sum = 0.0, sum_of_squares = 0.0;

    void add(double loss) {
        ++count;
        sum += loss;
        sum_of_squares += loss * loss;
    }
    double mean() const { return sum / static_cast<double>(count); }
    /// Standard error of the mean, the losses taken as independent.
    double error() const {
        const double n = static_cast<double>(count);
        return count < 2 ? 0.0 : std::sqrt(std::max(0.0, sum_of_squares / n - mean() * mean()) / (n - 1.0));
    }
};

/// One forward pass after another over `tokens`; every token but the first is predicted.
void add_chunk(Session& session, std::span<const int32_t> tokens, Losses& losses) {
    const auto sequence = session.executor->new_sequence();
    for (size_t begin = 0; begin < tokens.size();) {
        const size_t rows =
            std::min<size_t>(static_cast<size_t>(session.executor->limits().max_rows), tokens.size() - begin);
        if (!sequence->reserve(static_cast<int64_t>(begin + rows))) fail("no memory for the cache of a chunk");
        const scheduler::Part parts[] = {{sequence.get(), tokens.subspan(begin, rows), static_cast<int32_t>(rows)}};
        session.executor->forward(parts);
        for (size_t i = 0; i < rows && begin + i + 1 < tokens.size(); ++i)
            losses.add(-LogSoftmax(session.executor->logits(static_cast<int64_t>(i)), session.model->vocab)
                            .logprob(tokens[begin + i + 1]));
        begin += rows;
    }
}

void perplexity(const PerplexityFlags& flags) {
    Session session = open_session(flags.model, kRows);
    const auto tokenizer = engine::load_tokenizer(session.model->checkpoint);
    const std::vector<int32_t> text = tokenizer.encode(read_text(flags.file), false);
    const int32_t bos = tokenizer.bos_id().value_or(session.model->bos_id);
    const size_t opening = bos >= 0 ? 1 : 0;
    if (text.size() + opening < 2) fail(flags.file, ": ", text.size(), " tokens, expected enough to predict one");
    const auto length = static_cast<size_t>(session.max_tokens) - opening;
    if (length < 1) fail("--max-model-len is ", session.max_tokens, ", expected at least 2");

    Losses losses;
    int64_t chunks = 0;
    Progress progress("perplexity:", static_cast<int64_t>(text.size()), "tokens");
    for (size_t begin = 0; begin < text.size(); begin += length, ++chunks) {
        std::vector<int32_t> chunk(opening, bos);
        chunk.insert(chunk.end(), text.begin() + static_cast<std::ptrdiff_t>(begin),
                     text.begin() + static_cast<std::ptrdiff_t>(std::min(begin + length, text.size())));
        for (const int32_t id : chunk)
            if (id >= session.model->vocab)
                fail("token ", id, " of the tokenizer is outside the model's vocabulary of ", session.model->vocab);
        add_chunk(session, chunk, losses);
        progress.update(static_cast<int64_t>(begin + chunk.size()));
    }
    const double value = std::exp(losses.mean()), error = value * losses.error();
    if (flags.json) {
        const Json out = {{"perplexity", value},
                          {"error", error},
                          {"mean_nll", losses.mean()},
                          {"tokens", losses.count},
                          {"chunks", chunks}};
        std::printf("%s\n", dump_json(out).c_str());
    } else {
        std::printf("perplexity %.4f +- %.4f (mean NLL %.5f over %lld tokens in %lld chunks of up to %lld)\n", value,
                    error, losses.mean(), static_cast<long long>(losses.count), static_cast<long long>(chunks),
                    static_cast<long long>(session.max_tokens));
    }
}

}  // namespace

void add_perplexity(CLI::App& root) {
    auto flags = std::make_shared<PerplexityFlags>();
    CLI::App& command = *root.add_subcommand("perplexity", "perplexity of a text, with error estimate");
    flags->model.declare(command, ModelFlags::Positional::kOptional);
    command.add_option("-f,--file", flags->file, "UTF-8 text")->required();
    command.add_flag("--json", flags->json, "print one JSON document");
    command.callback([flags] { perplexity(*flags); });
}

}  // namespace thermocline::app
