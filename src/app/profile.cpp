// `profile`: runs prompts through the model, or takes recorded traces, and writes statistics of the routing.
#include "scheduler/routing_profile.h"
#include "scheduler/routing_watch.h"
#include "src/app/commands.h"
#include "src/app/profile_report.h"
#include "src/app/progress.h"
#include "src/app/settings.h"
#include "src/base/error.h"
#include "src/base/file.h"
#include "src/base/json.h"
#include "src/base/log.h"
#include "src/text/chat_request.h"

#include <algorithm>
#include <condition_variable>
#include <cstdio>
#include <memory>
#include <mutex>
#include <optional>
#include <string_view>
#include <utility>
#include <vector>

namespace thermocline::app {

namespace {

struct ProfileFlags {
    ModelFlags model;
    std::vector<std::string> prompts, traces, merged;
    std::string out, trace_out, kind, report;
    int64_t max_tokens = 128;
    float temperature = 1.0f;
    bool json = false;
};

struct Prompt {
    std::vector<int32_t> tokens;
    std::string kind;
};

std::vector<int32_t> chat_tokens(const engine::Assembly& assembly, const Json& body) {
    const text::PromptRevision revision = assembly.encoding.revision;
    const text::Chat chat = text::chat_from_openai(body, revision, {});
    return assembly.tokenizer->encode(text::render_deepseek_v4(chat.messages, chat.options).text);
}

std::vector<int32_t> text_tokens(const engine::Assembly& assembly, const std::string& text) {
    std::vector<int32_t> tokens = assembly.tokenizer->encode(text);
    if (assembly.tokenizer->bos_id() && assembly.tokenizer->add_bos())
        tokens.insert(tokens.begin(), *assembly.tokenizer->bos_id());
    return tokens;
}

/// A line of a JSON-lines file: a text, {"prompt": text} or the body of a chat request; "class" says the kind.
Prompt prompt_of_line(const engine::Assembly& assembly, const Json& line, const std::string& where,
                      const std::string& kind) {
    if (line.is_string()) return {text_tokens(assembly, line.get<std::string>()), kind};
    if (!line.is_object()) fail(where, ": is ", line.type_name(), ", expected a text or an object");
    const Json found_kind = line.value("class", Json(kind));
    if (!found_kind.is_string()) fail(where, ": class is ", found_kind.type_name(), ", expected a text");
    if (line.contains("messages")) return {chat_tokens(assembly, line), found_kind.get<std::string>()};
    if (!line.contains("prompt") || !line["prompt"].is_string())
        fail(where, ": has no \"messages\", nor a text as \"prompt\"");
    return {text_tokens(assembly, line["prompt"].get<std::string>()), found_kind.get<std::string>()};
}

std::vector<Prompt> read_prompts(const engine::Assembly& assembly, const std::string& path, const std::string& kind) {
    const std::string content = read_text(path);
    std::vector<Prompt> prompts;
    if (!path.ends_with(".jsonl")) {
        prompts.push_back({text_tokens(assembly, content), kind});
    } else {
        size_t number = 1;
        for (size_t at = 0; at < content.size(); ++number) {
            const size_t end = std::min(content.find('\n', at), content.size());
            const std::string where = printable(path) + ", line " + std::to_string(number);
            const std::string_view line = std::string_view(content).substr(at, end - at);
            at = end + 1;
            if (line.find_first_not_of(" \t\r") == std::string_view::npos) continue;
            prompts.push_back(prompt_of_line(assembly, parse_json(line, where), where, kind));
        }
    }
    if (prompts.empty() || prompts.front().tokens.empty()) fail(printable(path), ": holds no prompt");
    return prompts;
}

/// Waits for the end of a request; what it says does not matter.
class Waiting : public engine::Listener {
public:
    bool on_token(const engine::Token&) override { return true; }
    void on_finish(const engine::Result& result) override {
        const std::lock_guard lock(mutex_);
        result_ = result;
        done_ = true;
        wake_.notify_all();
    }
    engine::Result wait() {
        std::unique_lock lock(mutex_);
        wake_.wait(lock, [&] { return done_; });
        return result_;
    }

private:
    std::mutex mutex_;
    std::condition_variable wake_;
    engine::Result result_;
    bool done_ = false;
};

void play(const ProfileFlags& flags, engine::Assembly& assembly, const Prompt& prompt, size_t number) {
    engine::Request request;
    request.prompt = prompt.tokens;
    request.max_tokens = flags.max_tokens;
    request.sampling = assembly.sampling;
    request.sampling.temperature = flags.temperature;
    request.sampling.seed = flags.model.seed + number;
    request.reuse_prefix = false;  // every token is to be seen
    const auto listener = std::make_shared<Waiting>();
    if (!assembly.engine->submit(std::move(request), listener)) fail("the engine takes no more requests");
    const engine::Result result = listener->wait();
    if (result.reason == engine::FinishReason::kError) fail(result.error);
}

/// The statistics of the prompts, and the trace where it is wanted.
scheduler::RoutingProfile record(const ProfileFlags& flags) {
    engine::EngineOptions options = flags.model.engine_options("auto");
    options.prefix_bytes = 0;
    options.record_routing = flags.trace_out;
    options.keep_routing = true;
    engine::Assembly assembly = engine::assemble(options);
    std::vector<Prompt> prompts;
    for (const std::string& path : flags.prompts)
        for (Prompt& prompt : read_prompts(assembly, path, flags.kind)) prompts.push_back(std::move(prompt));
    Progress progress("profiling", std::ssize(prompts), "prompts");
    for (size_t i = 0; i < prompts.size(); ++i) {
        assembly.routing->set_kind(prompts[i].kind);
        play(flags, assembly, prompts[i], i);
        progress.update(static_cast<int64_t>(i + 1));
    }
    assembly.engine.reset();  // its thread has ended: the trace is whole
    return scheduler::profile_of(assembly.routing->trace());
}

void add(std::optional<scheduler::RoutingProfile>& sum, scheduler::RoutingProfile more) {
    if (sum)
        scheduler::merge(*sum, more);
    else
        sum = std::move(more);
}

void profile(const ProfileFlags& flags) {
    log::start(flags.model.log_level);
    if (flags.prompts.empty() && flags.traces.empty() && flags.merged.empty())
        fail("nothing to profile: give prompts (-f), traces (--from-trace) or profiles (--merge)");
    check_report_path(flags.report);
    std::optional<scheduler::RoutingProfile> sum;
    for (const std::string& path : flags.merged) add(sum, scheduler::read_routing_profile(path));
    for (const std::string& path : flags.traces) add(sum, scheduler::profile_of(scheduler::read_routing_trace(path)));
    if (!flags.prompts.empty()) add(sum, record(flags));
    if (!flags.out.empty()) write_text(flags.out, dump_json(scheduler::to_json(*sum)) + "\n");
    if (flags.json)
        std::printf("%s\n", dump_json(scheduler::to_json(*sum)).c_str());
    else
        std::printf("%s", profile_text(*sum).c_str());
    if (!flags.report.empty()) write_report(*sum, flags.report);
}

}  // namespace

void add_profile(CLI::App& root) {
    auto flags = std::make_shared<ProfileFlags>();
    CLI::App& command = *root.add_subcommand(
        "profile", "runs prompts through the model and records which experts its routers choose, for `place`");
    flags->model.declare(command, ModelFlags::Positional::kOptional);
    command
        .add_option("-f,--prompts", flags->prompts,
                    "prompts: a text file, or .jsonl with a text, {\"prompt\": text} or the body of a chat request a "
                    "line; \"class\" in a line names its kind of text")
        ->multi_option_policy(CLI::MultiOptionPolicy::TakeAll);
    command.add_option("--from-trace", flags->traces, "traces of score, profile or serve --record-routing")
        ->multi_option_policy(CLI::MultiOptionPolicy::TakeAll);
    command.add_option("--merge", flags->merged, "profiles of the same model to add to")
        ->multi_option_policy(CLI::MultiOptionPolicy::TakeAll);
    command.add_option("-o,--output", flags->out, "write the profile here");
    command.add_option("--record-routing", flags->trace_out, "write the trace here, for bench/residency_replay");
    command.add_option("--class", flags->kind, "kind of text of prompts that do not say theirs");
    command.add_option("--max-tokens", flags->max_tokens, "tokens generated after each prompt")
        ->check(CLI::NonNegativeNumber)
        ->capture_default_str();
    command.add_option("--temperature", flags->temperature, "of these")
        ->check(CLI::Range(0.0, 100.0))
        ->capture_default_str();
    command.add_option("--report", flags->report, "write heat maps and curves here, .html, .svg or .png");
    command.add_flag("--json", flags->json, "print the profile as one JSON document");
    flags->model.log_level = "warn";
    command.callback([flags] { profile(*flags); });
}

}  // namespace thermocline::app
