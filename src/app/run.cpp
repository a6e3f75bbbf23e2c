// `run`: one completion of a prompt, or a chat in the terminal.
#include "scheduler/bandwidth.h"
#include "src/app/commands.h"
#include "src/app/generation.h"
#include "src/app/line_editor.h"
#include "src/app/settings.h"
#include "src/base/error.h"
#include "src/base/file.h"
#include "src/base/log.h"
#include "src/text/chat_request.h"

#include <cstdio>
#include <memory>
#include <optional>
#include <unistd.h>

namespace thermocline::app {

namespace {

struct RunFlags {
    ModelFlags model;
    std::optional<std::string> prompt;  ///< unset: a chat, if there is no file either
    std::string file, system, effort, chat_encoding = "auto";
    bool thinking = false, ignore_eos = false;
    int64_t max_tokens = -1;
    std::vector<std::string> stop;
    // Unset ones are the checkpoint's (generation_config.json).
    std::optional<float> temperature, top_p, min_p;
    std::optional<int32_t> top_k;
    float presence = 0.0f, frequency = 0.0f, repetition = 1.0f;
};

engine::Request request_of(const RunFlags& flags, const engine::Assembly& assembly) {
    engine::Request request;
    request.sampling = assembly.sampling;
    if (flags.temperature) request.sampling.temperature = *flags.temperature;
    if (flags.top_p) request.sampling.top_p = *flags.top_p;
    if (flags.min_p) request.sampling.min_p = *flags.min_p;
    if (flags.top_k) request.sampling.top_k = *flags.top_k;
    request.sampling.presence_penalty = flags.presence;
    request.sampling.frequency_penalty = flags.frequency;
    request.sampling.repetition_penalty = flags.repetition;
    request.sampling.seed = flags.model.seed;
    request.max_tokens = flags.max_tokens;
    request.ignore_eos = flags.ignore_eos;
    return request;
}

void show_experts(const engine::Assembly& assembly) {
    const std::string line = expert_line(engine::expert_use(assembly));
    if (!line.empty()) std::fprintf(stderr, "%s\n", line.c_str());
}

void complete(const RunFlags& flags, engine::Assembly& assembly, const std::string& prompt) {
    if (prompt.empty()) fail("the prompt is empty, expected text to continue");
    engine::Request request = request_of(flags, assembly);
    request.prompt = assembly.tokenizer->encode(prompt);
    // A prompt that is continued, not a chat: BOS as the model was trained to see a text begin.
    if (assembly.tokenizer->bos_id() && assembly.tokenizer->add_bos())
        request.prompt.insert(request.prompt.begin(), *assembly.tokenizer->bos_id());
    assembly.engine->check(request);  // before anything is printed
    std::printf("%s", prompt.c_str());
    std::fflush(stdout);
    auto output = std::make_unique<engine::PlainOutput>(*assembly.tokenizer, flags.stop, false, true, 0);
    const Generated generated = generate(assembly, std::move(request), std::move(output));
    std::fprintf(stderr, "%s\n",
                 speed_line(generated.result.statistics, scheduler::measure_read_bandwidth(*assembly.workers)).c_str());
    show_experts(assembly);
}

text::Message turn(text::Role role, std::string content, std::string reasoning = {}) {
    text::Message message;
    message.role = role;
    message.content = std::move(content);
    message.reasoning = std::move(reasoning);
    return message;
}

/// The conversation so far and the words it is steered with.
class ChatLoop {
public:
    ChatLoop(const RunFlags& flags, engine::Assembly& assembly)
        : flags_(flags), assembly_(assembly), bandwidth_(scheduler::measure_read_bandwidth(*assembly.workers)) {
        options_.revision = assembly.encoding.revision;
        options_.thinking = flags.thinking;
        if (!flags.effort.empty()) options_.effort = text::effort_from_word(flags.effort, "--reasoning-effort");
        reset();
    }

    void run() {
        std::fprintf(stderr,
                     "%s. /reset forgets the conversation, /stats shows speed, Ctrl-C stops an answer, Ctrl-D ends.\n",
                     assembly_.name.c_str());
        while (const auto line = read_line("> ")) {
            if (line->empty()) continue;
            if (line->front() != '/')
                answer(*line);
            else if (*line == "/reset")
                reset();
            else if (*line == "/stats")
                show_stats();
            else if (*line == "/exit" || *line == "/quit")
                return;
            else
                std::fprintf(stderr, "%s is no command: /reset, /stats, /exit\n", line->c_str());
        }
    }

private:
    void reset() {
        messages_.clear();
        if (!flags_.system.empty()) messages_.push_back(turn(text::Role::kSystem, flags_.system));
    }

    void answer(const std::string& line) {
        messages_.push_back(turn(text::Role::kUser, line));
        const text::Prompt prompt = text::render_deepseek_v4(messages_, options_);
        engine::Request request = request_of(flags_, assembly_);
        request.prompt = assembly_.tokenizer->encode(prompt.text);
        text::ParserOptions parser;
        parser.revision = options_.revision;
        parser.starts_in_reasoning = prompt.starts_in_reasoning;
        parser.stop = flags_.stop;
        try {
            auto output = std::make_unique<engine::ChatOutput>(*assembly_.tokenizer, parser, true);
            Generated generated = generate(assembly_, std::move(request), std::move(output));
            last_ = generated.result.statistics;
            messages_.push_back(turn(text::Role::kAssistant, std::move(generated.output.content),
                                     std::move(generated.output.reasoning)));
        } catch (const Error& error) {  // a full context, say: the conversation stays as it was
            messages_.pop_back();
            std::fprintf(stderr, "%s\n", error.what());
        }
    }

    void show_stats() const {
        if (!last_)
            std::fprintf(stderr, "nothing has been generated yet\n");
        else
            std::fprintf(stderr, "%s\n", speed_line(*last_, bandwidth_).c_str());
        show_experts(assembly_);
    }

    const RunFlags& flags_;
    engine::Assembly& assembly_;
    const double bandwidth_;
    text::ChatOptions options_;
    std::vector<text::Message> messages_;
    std::optional<engine::Statistics> last_;
};

void run(const RunFlags& flags) {
    log::start(flags.model.log_level);
    engine::Assembly assembly = engine::assemble(flags.model.engine_options(flags.chat_encoding));
    if (!flags.file.empty())
        complete(flags, assembly, read_text(flags.file));
    else if (flags.prompt)
        complete(flags, assembly, *flags.prompt);
    else
        ChatLoop(flags, assembly).run();
}

}  // namespace

void add_run(CLI::App& root) {
    auto flags = std::make_shared<RunFlags>();
    CLI::App& command = *root.add_subcommand("run", "chat in the terminal, or one completion with -p");
    flags->model.declare(command, ModelFlags::Positional::kOptional);
    const char* group = "Prompt";
    auto* prompt =
        command.add_option("-p,--prompt", flags->prompt, "continue this text instead of chatting")->group(group);
    command.add_option("-f,--file", flags->file, "continue the text of this file")->excludes(prompt)->group(group);
    command.add_option("--system", flags->system, "system message of the chat")->group(group);
    command.add_flag("--thinking", flags->thinking, "let the model reason before it answers")->group(group);
    command.add_option("--reasoning-effort", flags->effort, "low, medium, high, xhigh or max")->group(group);
    command.add_option("--chat-encoding", flags->chat_encoding, "auto, v4, v4-0731 or v4.1")
        ->group(group)
        ->capture_default_str();
    group = "Sampling (defaults: the checkpoint's generation_config.json)";
    command.add_option("-n,--max-tokens", flags->max_tokens, "most tokens of an answer; -1: until the context is full")
        ->check(CLI::Range(int64_t{-1}, INT64_MAX))
        ->group(group)
        ->capture_default_str();
    command.add_option("--temperature", flags->temperature, "0: always the most likely token")
        ->check(CLI::Range(0.0, 100.0))
        ->group(group);
    command.add_option("--top-p", flags->top_p, "smallest set of tokens with this probability")
        ->check(CLI::Range(1e-6, 1.0))
        ->group(group);
    command.add_option("--top-k", flags->top_k, "the k most likely tokens; 0: off")
        ->check(CLI::NonNegativeNumber)
        ->group(group);
    command.add_option("--min-p", flags->min_p, "at least this part of the best probability")
        ->check(CLI::Range(0.0, 1.0))
        ->group(group);
    command.add_option("--presence-penalty", flags->presence, "-2 to 2")
        ->check(CLI::Range(-2.0, 2.0))
        ->group(group)
        ->capture_default_str();
    command.add_option("--frequency-penalty", flags->frequency, "-2 to 2")
        ->check(CLI::Range(-2.0, 2.0))
        ->group(group)
        ->capture_default_str();
    command.add_option("--repetition-penalty", flags->repetition, "1: off")
        ->check(CLI::Range(1e-3, 100.0))
        ->group(group)
        ->capture_default_str();
    command.add_option("--stop", flags->stop, "end at this text; may be given several times")
        ->multi_option_policy(CLI::MultiOptionPolicy::TakeAll)
        ->group(group);
    command.add_flag("--ignore-eos", flags->ignore_eos, "go on when the model wants to end")->group(group);
    command.callback([flags] { run(*flags); });
}

}  // namespace thermocline::app
