// `score`: teacher-forced log-probabilities of token ids (cli.md). Needs no tokenizer.
#include "scheduler/routing_trace.h"
#include "src/app/commands.h"
#include "src/app/session.h"
#include "src/app/settings.h"
#include "src/base/error.h"
#include "src/base/file.h"
#include "src/base/json.h"
#include "src/engine/vocabulary.h"

#include <cmath>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <memory>
#include <optional>

namespace thermocline::app {

namespace {

constexpr int64_t kDefaultChunk = 256;

struct ScoreFlags {
    ModelFlags model;
    std::string tokens, logits, routing;
    int64_t chunk = 0, decode_from = -1, top = 20;
    bool json = false;
};

using Tokens = std::vector<int32_t>;

/// One array of ids or an array of arrays.
std::vector<Tokens> read_tokens(const std::string& path, int64_t vocab, int64_t max_tokens) {
    const Json file = parse_json(read_text(path), path);
    if (!file.is_array() || file.empty()) fail(path, ": expected an array of token ids, or an array of such arrays");
    const Json lists = file.front().is_array() ? file : Json::array({file});
    std::vector<Tokens> sequences;
    for (const Json& list : lists) {
        const std::string where = path + ": sequence " + std::to_string(sequences.size());
        if (!list.is_array() || list.empty()) fail(where, " is empty or no array, expected token ids");
        if (static_cast<int64_t>(list.size()) > max_tokens)
            fail(where, " has ", list.size(), " tokens, expected at most ", max_tokens, " (--max-model-len)");
        Tokens& tokens = sequences.emplace_back();
        for (const Json& id : list) {
            if (!id.is_number_integer() || id.get<int64_t>() < 0 || id.get<int64_t>() >= vocab)
                fail(where, ", token ", tokens.size(), " is ", printable(dump_json(id), 40),
                     ", expected an id from 0 to ", vocab - 1);
            tokens.push_back(id.get<int32_t>());
        }
    }
    return sequences;
}

/// Writes float32 rows as a .npy file of shape [rows, cols].
class NpyWriter {
public:
    NpyWriter(const std::string& path, int64_t rows, int64_t cols) : path_(path), out_(path, std::ios::binary) {
        std::string header = "{'descr': '<f4', 'fortran_order': False, 'shape': (" + std::to_string(rows) + ", " +
                             std::to_string(cols) + "), }";
        header.resize((header.size() + 11 + 63) / 64 * 64 - 11, ' ');
        header += '\n';
        const auto size = static_cast<uint16_t>(header.size());
        out_ << "\x93NUMPY\x01" << '\0' << static_cast<char>(size & 0xff) << static_cast<char>(size >> 8) << header;
    }
    void row(const float* values, int64_t count) {
        out_.write(reinterpret_cast<const char*>(values), static_cast<std::streamsize>(sizeof(float)) * count);
    }
    void close() {
        out_.close();
        if (!out_) fail(path_, ": cannot write");
    }

private:
    std::string path_;
    std::ofstream out_;
};

struct Scored {
    Json json;
    double log_sum = 0.0;
    int64_t predicted = 0;
};

/// Where a trace of the routing goes, if one is wanted.
struct Recording {
    scheduler::RoutingTraceWriter writer;
    scheduler::RoutingRecord pass = {};
};

Scored score_sequence(Session& session, const ScoreFlags& flags, const Tokens& tokens, NpyWriter* npy,
                      Recording* recording) {
    const auto count = static_cast<int64_t>(tokens.size());
    const int64_t prefill = flags.decode_from < 0 ? count : std::min(flags.decode_from, count);
    const int64_t vocab = session.model->vocab;
    const auto sequence = session.executor->new_sequence();
    Scored scored;
    Json logprobs = Json::array({nullptr}), top = Json::array();
    for (int64_t begin = 0; begin < count;) {
        const int64_t rows = begin < prefill ? std::min(session.executor->limits().max_rows, prefill - begin) : 1;
        if (!sequence->reserve(begin + rows)) fail("no memory for the cache of ", begin + rows, " tokens");
        const std::span part(tokens.data() + begin, static_cast<size_t>(rows));
        const scheduler::Part parts[] = {{sequence.get(), part, static_cast<int32_t>(rows)}};
        session.executor->forward(parts);
        if (recording) recording->writer.add(recording->pass, 0, rows, begin >= prefill);
        for (int64_t i = 0; i < rows; ++i) {
            const float* logits = session.executor->logits(i);
            if (npy) npy->row(logits, vocab);
            const LogSoftmax distribution(logits, vocab);
            if (begin + i + 1 < count) {
                const double logprob = distribution.logprob(tokens[static_cast<size_t>(begin + i + 1)]);
                logprobs.push_back(logprob);
                scored.log_sum += logprob;
                ++scored.predicted;
            }
            Json best = Json::array();
            for (const int32_t id : distribution.top(flags.top)) best.push_back({id, distribution.logprob(id)});
            top.push_back(std::move(best));
        }
        begin += rows;
    }
    scored.json = {{"tokens", tokens}, {"logprobs", std::move(logprobs)}, {"top", std::move(top)}};
    return scored;
}

void score(const ScoreFlags& flags) {
    Session session = open_session(flags.model, flags.chunk > 0 ? flags.chunk : kDefaultChunk);
    const auto sequences = read_tokens(flags.tokens, session.model->vocab, session.max_tokens);
    std::unique_ptr<NpyWriter> npy;
    if (!flags.logits.empty())
        npy = std::make_unique<NpyWriter>(flags.logits, static_cast<int64_t>(sequences.front().size()),
                                          session.model->vocab);
    std::optional<Recording> recording;
    if (!flags.routing.empty()) {
        recording =
            Recording{scheduler::RoutingTraceWriter(flags.routing, engine::model_name(session.model->checkpoint),
                                                    scheduler::routed_layers(session.model->trunk))};
        session.executor->record_routing(&recording->pass);
    }

    Json out = {{"model", std::filesystem::path(flags.model.path()).filename().string()}, {"sequences", Json::array()}};
    double log_sum = 0.0;
    int64_t predicted = 0;
    for (const Tokens& tokens : sequences) {
        Scored scored = score_sequence(session, flags, tokens, npy.get(), recording ? &*recording : nullptr);
        if (npy) {
            npy->close();
            npy.reset();  // the first sequence only
        }
        log_sum += scored.log_sum;
        predicted += scored.predicted;
        if (!flags.json)
            std::printf("sequence %zu: %zu tokens, log-probability %.4f\n", out["sequences"].size(), tokens.size(),
                        scored.log_sum);
        out["sequences"].push_back(std::move(scored.json));
    }
    if (recording) recording->writer.close();
    out["perplexity"] = predicted > 0 ? Json(std::exp(-log_sum / static_cast<double>(predicted))) : Json(nullptr);
    if (flags.json)
        std::printf("%s\n", dump_json(out).c_str());
    else if (predicted > 0)
        std::printf("perplexity %.4f over %lld predictions\n", out["perplexity"].get<double>(),
                    static_cast<long long>(predicted));
}

}  // namespace

void add_score(CLI::App& root) {
    auto flags = std::make_shared<ScoreFlags>();
    CLI::App& command = *root.add_subcommand("score", "teacher-forced log-probabilities of token ids");
    flags->model.declare(command, ModelFlags::Positional::kRequired);
    command.add_option("--tokens", flags->tokens, "JSON file: one array of token ids, or an array of arrays")
        ->required();
    command.add_option("--chunk", flags->chunk, "tokens per prefill pass; 0: 256")
        ->check(CLI::Range(int64_t{0}, int64_t{8192}))
        ->capture_default_str();
    command.add_option("--decode-from", flags->decode_from, "tokens from this index on go one by one; -1: none")
        ->check(CLI::Range(int64_t{-1}, INT64_MAX))
        ->capture_default_str();
    command.add_option("--top", flags->top, "best ids listed after each token")
        ->check(CLI::NonNegativeNumber)
        ->capture_default_str();
    command.add_option("--logits", flags->logits, "write float32 logits [tokens, vocab] of the first sequence (.npy)");
    command.add_option("--record-routing", flags->routing,
                       "write the experts that every layer chose for every token (JSON lines), for bench --routing");
    command.add_flag("--json", flags->json, "print one JSON document");
    command.callback([flags] { score(*flags); });
}

}  // namespace thermocline::app
