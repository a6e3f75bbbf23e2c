#include "src/text/prompt_deepseek_v4.h"

#include "src/base/checksum.h"
#include "src/base/error.h"
#include "src/base/file.h"
#include "src/text/python_json.h"

#include <algorithm>
#include <span>
#include <unordered_map>
#include <utility>

namespace thermocline::text {

namespace {

constexpr std::string_view kBos = "<｜begin▁of▁sentence｜>";
constexpr std::string_view kEos = "<｜end▁of▁sentence｜>";
constexpr std::string_view kUser = "<｜User｜>";
constexpr std::string_view kAssistant = "<｜Assistant｜>";
constexpr std::string_view kSystem = "<｜System｜>";
constexpr std::string_view kReminder = "<｜latest_reminder｜>";
constexpr std::string_view kThink = "<think>";
constexpr std::string_view kEndThink = "</think>";

constexpr std::string_view kStrongestOfV4 =
    "Reasoning Effort: Absolute maximum with no shortcuts permitted.\n"
    "You MUST be very thorough in your thinking and comprehensively decompose the problem to resolve the root cause, "
    "rigorously stress-testing your logic against all potential paths, edge cases, and adversarial scenarios.\n"
    "Explicitly write out your entire deliberation process, documenting every intermediate step, considered "
    "alternative, and rejected hypothesis to ensure absolutely no assumption is left unchecked.\n\n";
constexpr std::string_view kStrongestOf0731 =
    "Reasoning Effort: Beyond maximum — exhaustive, relentless, and uncompromising.\n"
    "You MUST reason with the utmost depth and rigor, leaving absolutely nothing to chance: exhaustively decompose "
    "the problem into its most fundamental components, trace every causal chain to its root, and resolve the "
    "underlying cause rather than any surface symptom.\n"
    "Do not stop reasoning until you have independently verified the solution from multiple angles and are certain "
    "that no assumption remains unchecked and no error remains undiscovered.\n\n";

/// The text that asks for effort, in front of everything (section 4). The same strong text is the top level of v4
/// and only the middle one of v4-0731.
std::string effort_text(const ChatOptions& options) {
    if (!options.thinking) return "";
    const int effort = options.effort;
    switch (options.revision) {
        case PromptRevision::kV4:
            return effort >= kEffortXhigh ? std::string(kStrongestOfV4) : "";
        case PromptRevision::kV4_0731:
            if (effort >= kEffortMax) return std::string(kStrongestOf0731);
            return effort >= kEffortHigh ? std::string(kStrongestOfV4) : "";
        case PromptRevision::kV4_1:
            break;
    }
    return "Reasoning Effort: " + std::to_string(effort == kEffortUnset ? kEffortHigh : effort) +
           " (range 1-100, the higher the value, the more thorough the reasoning)\n\n";
}

std::string_view task_token(Task task) {
    switch (task) {
        case Task::kAction:
            return "<｜action｜>";
        case Task::kQuery:
            return "<｜query｜>";
        case Task::kAuthority:
            return "<｜authority｜>";
        case Task::kDomain:
            return "<｜domain｜>";
        case Task::kTitle:
            return "<｜title｜>";
        case Task::kReadUrl:
            return "<｜read_url｜>";
        case Task::kNone:
            break;
    }
    return "";
}

std::string open_tag(const std::string& name) { return "<" + name; }
std::string close_tag(const std::string& name) { return "</" + name + ">"; }

std::string tools_block(const std::vector<Tool>& tools, const ToolMarkup& markup) {
    const std::string block = open_tag(markup.block) + ">";
    std::string out =
        "## Tools\n\nYou have access to a set of tools to help answer the user's question. You can "
        "invoke tools by writing a \"" +
        block + "\" block like the following:\n\n" + block + "\n";
    out += open_tag(markup.invoke) + " name=\"$TOOL_NAME\">\n";
    out += open_tag(markup.parameter) + " name=\"$PARAMETER_NAME\" string=\"true|false\">$PARAMETER_VALUE" +
           close_tag(markup.parameter) + "\n...\n" + close_tag(markup.invoke) + "\n";
    out += open_tag(markup.invoke) + " name=\"$TOOL_NAME2\">\n...\n" + close_tag(markup.invoke) + "\n";
    out += close_tag(markup.block);
    out +=
        "\n\nString parameters should be specified as is and set `string=\"true\"`. For all other types (numbers, "
        "booleans, arrays, objects), pass the value in JSON format and set `string=\"false\"`.\n\n"
        "If thinking_mode is enabled (triggered by <think>), you MUST output your complete reasoning inside "
        "<think>...</think> BEFORE any tool calls or final response.\n\n"
        "Otherwise, output directly after </think> with tool calls or final response.\n\n"
        "### Available Tool Schemas\n\n";
    for (const Tool& tool : tools) out += python_json(tool.function) + "\n";
    return out + "\nYou MUST strictly follow the above defined tool name and parameter schemas to invoke tool calls.\n";
}

/// The two optional blocks behind a system or developer text.
std::string appended_blocks(const Message& message, const ToolMarkup& markup) {
    std::string out;
    if (!message.tools.empty()) out += "\n\n" + tools_block(message.tools, markup);
    if (message.response_schema && !message.response_schema->empty())
        out += "\n\n## Response Format:\n\nYou MUST strictly adhere to the following schema to reply:\n" +
               python_json(*message.response_schema);
    return out;
}

/// Arguments that are no JSON object travel as one raw parameter: a history must never be refused (section 3.4).
std::vector<JsonMember> call_parameters(const std::string& arguments) {
    if (arguments.empty()) return {};
    if (auto members = python_json_members(arguments)) return std::move(*members);
    if (python_json_text(arguments) == "null") return {};
    return {{"arguments", arguments, true}};
}

std::string calls_block(const std::vector<ToolCall>& calls, const ToolMarkup& markup) {
    std::string out = "\n\n" + open_tag(markup.block) + ">\n";
    for (const ToolCall& call : calls) {
        out += open_tag(markup.invoke) + " name=\"" + call.name + "\">\n";
        bool is_first = true;
        for (const JsonMember& parameter : call_parameters(call.arguments)) {
            if (!is_first) out += "\n";
            is_first = false;
            out += open_tag(markup.parameter) + " name=\"" + parameter.key + "\" string=\"" +
                   (parameter.is_string ? "true" : "false") + "\">" + parameter.value + close_tag(markup.parameter);
        }
        out += "\n" + close_tag(markup.invoke) + "\n";
    }
    return out + close_tag(markup.block);
}

/// A message after merging; in a user message `results` and texts lie in `blocks` in their order of arrival.
struct Block {
    bool is_result = false;
    std::string call_id;  // results only
    std::string text;
};
struct Turn {
    const Message* message;     // of a merged user turn: the first one
    std::vector<Block> blocks;  // user turns only
    Task task = Task::kNone;
    bool is_user() const { return !blocks.empty(); }
};

std::vector<Turn> merge(const std::vector<Message>& messages) {
    std::vector<Turn> turns;
    for (const Message& message : messages) {
        const bool is_result = message.role == Role::kTool;
        if (!is_result && message.role != Role::kUser) {
            turns.push_back({&message, {}, message.task});
            continue;
        }
        const bool joins = !turns.empty() && turns.back().is_user() && (is_result || turns.back().task == Task::kNone);
        if (!joins) turns.push_back({&message, {}, Task::kNone});
        turns.back().blocks.push_back({is_result, is_result ? message.tool_call_id : "", message.content});
        if (message.task != Task::kNone) turns.back().task = message.task;
    }
    return turns;
}

/// Results in the order of the calls that they answer; texts keep their places.
void sort_results(std::vector<Turn>& turns) {
    std::unordered_map<std::string, size_t> order;
    const auto place = [&order](const Block& block) {
        const auto found = order.find(block.call_id);
        return found == order.end() ? size_t{0} : found->second;
    };
    for (Turn& turn : turns) {
        if (turn.message->role == Role::kAssistant && !turn.message->tool_calls.empty()) {
            order.clear();
            const auto& calls = turn.message->tool_calls;
            for (size_t i = 0; i < calls.size(); ++i)
                if (!calls[i].id.empty()) order[calls[i].id] = i;
        }
        if (order.empty()) continue;
        std::vector<Block> results;
        for (const Block& block : turn.blocks)
            if (block.is_result) results.push_back(block);
        std::stable_sort(results.begin(), results.end(),
                         [&place](const Block& a, const Block& b) { return place(a) < place(b); });
        size_t next = 0;
        for (Block& block : turn.blocks)
            if (block.is_result) block = std::move(results[next++]);
    }
}

/// Writes one conversation; holds what every turn needs to know about the whole.
class Writer {
public:
    Writer(std::vector<Turn> turns, const ChatOptions& options, const WrittenHistory& history)
        : turns_(std::move(turns)),
          options_(options),
          markup_(tool_markup(options.revision)),
          history_(history),
          context_(history.seed) {
        drop_ = options.drop_reasoning && std::none_of(turns_.begin(), turns_.end(),
                                                       [](const Turn& turn) { return !turn.message->tools.empty(); });
        if (options_.thinking && drop_) remove_old_developer_turns();
        last_question_ = find_last_question();
    }

    Prompt write() {
        prompt_.text = kBos;
        for (size_t k = 0; k < turns_.size(); ++k) {
            if (k == 0) write_effort();
            write_body(k);
            write_seam(k);
        }
        if (!turns_.empty() && !turns_.back().message->is_prefix) prompt_.context = context();
        return std::move(prompt_);
    }

private:
    /// A turn that the assistant answers.
    bool is_question(size_t k) const {
        const Role role = turns_[k].message->role;
        return turns_[k].is_user() || role == Role::kDeveloper ||
               (options_.revision == PromptRevision::kV4_1 && role == Role::kSystem && k > 0);
    }

    ptrdiff_t find_last_question() const {
        for (size_t k = turns_.size(); k-- > 0;)
            if (is_question(k)) return static_cast<ptrdiff_t>(k);
        return -1;
    }

    void remove_old_developer_turns() {
        const ptrdiff_t last = find_last_question();
        ptrdiff_t index = 0;
        std::erase_if(turns_,
                      [&](const Turn& turn) { return index++ < last && turn.message->role == Role::kDeveloper; });
    }

    /// Reasoning of turn k (or of the answer to turn k) is part of the prompt.
    bool keeps_reasoning(size_t k) const {
        return options_.thinking && (!drop_ || static_cast<ptrdiff_t>(k) >= last_question_);
    }

    void write_effort() {
        const std::string effort = effort_text(options_);
        const bool has_text = !effort.empty() || turns_[0].message->role == Role::kSystem;
        if (options_.revision == PromptRevision::kV4_1 && has_text) prompt_.text += kSystem;
        prompt_.text += effort;
    }

    void write_header(bool thinks) {
        prompt_.text += kAssistant;
        prompt_.text += thinks ? kThink : kEndThink;
        prompt_.starts_in_reasoning = thinks;
    }

    void write_body(size_t k) {
        const Message& message = *turns_[k].message;
        std::string& out = prompt_.text;
        switch (message.role) {
            case Role::kSystem:
                if (options_.revision == PromptRevision::kV4_1 && k > 0) out += kSystem;
                out += message.content + appended_blocks(message, markup_);
                break;
            case Role::kDeveloper:
                if (message.content.empty()) fail("messages: a developer message is empty, expected text");
                out += std::string(kUser) + message.content + appended_blocks(message, markup_);
                break;
            case Role::kUser:
            case Role::kTool:
                write_user(turns_[k]);
                break;
            case Role::kLatestReminder:
                out += std::string(kReminder) + message.content;
                break;
            case Role::kAssistant:
                write_assistant(k, message);
                break;
        }
    }

    void write_user(const Turn& turn) {
        prompt_.text += kUser;
        for (size_t i = 0; i < turn.blocks.size(); ++i) {
            const Block& block = turn.blocks[i];
            if (i > 0) prompt_.text += "\n\n";
            prompt_.text += block.is_result ? "<tool_result>" + block.text + "</tool_result>" : block.text;
        }
    }

    /// A hash of the text so far. Asked at the beginning of every answer, the model's next one too, and nowhere else:
    /// it depends on where it was asked before.
    uint64_t context() {
        const std::string_view more = std::string_view(prompt_.text).substr(hashed_);
        hashed_ = prompt_.text.size();
        return context_ = checksum_of(std::as_bytes(std::span(more)), context_);
    }

    /// False: no such turn is known.
    bool write_as_written(size_t k, const Message& message) {
        const uint64_t key = context();
        if (history_.turns == nullptr || message.is_prefix) return false;
        auto turn = history_.turns->find(key, message, keeps_reasoning(k));
        if (!turn) return false;
        const size_t begin = prompt_.text.size();
        prompt_.text += turn->text;
        prompt_.text += kEos;
        prompt_.starts_in_reasoning = false;
        prompt_.written.push_back({begin, std::move(turn)});
        return true;
    }

    void write_assistant(size_t k, const Message& message) {
        const bool follows_task = k > 0 && turns_[k - 1].task != Task::kNone;
        if (write_as_written(k, message)) return;
        // A prefix with nothing but a thought is a thought that goes on.
        const bool thought_goes_on = message.is_prefix && message.content.empty() && message.tool_calls.empty();
        prompt_.starts_in_reasoning = false;
        if (keeps_reasoning(k) && !follows_task) {
            prompt_.text += message.reasoning;
            if (thought_goes_on)
                prompt_.starts_in_reasoning = true;
            else
                prompt_.text += kEndThink;
        }
        prompt_.text += message.content;
        if (!message.tool_calls.empty()) prompt_.text += calls_block(message.tool_calls, markup_);
        if (!message.is_prefix) prompt_.text += kEos;
    }

    /// What stands between turn k and the next one: nothing, a task token or the assistant header.
    void write_seam(size_t k) {
        const Turn& turn = turns_[k];
        const bool is_last = k + 1 == turns_.size();
        const Role next = is_last ? Role::kAssistant : turns_[k + 1].message->role;
        if (next != Role::kAssistant && next != Role::kLatestReminder) return;
        if (turn.task != Task::kNone) {
            if (turn.task == Task::kAction) write_header(options_.thinking);
            prompt_.starts_in_reasoning = false;
            prompt_.text += task_token(turn.task);
        } else if (is_question(k)) {
            write_header(keeps_reasoning(k));
        } else if (turn.message->role == Role::kAssistant && !turn.message->is_prefix && next == Role::kAssistant) {
            // Two answers in a row, or the end: sections 5.10 and 5.5.
            if (!is_last || options_.open_turn) write_header(keeps_reasoning(k));
        } else if (is_last && turn.message->role == Role::kSystem && options_.open_turn) {
            write_header(options_.thinking);
        }
    }

    std::vector<Turn> turns_;
    const ChatOptions& options_;
    const ToolMarkup& markup_;
    bool drop_ = true;
    ptrdiff_t last_question_ = -1;
    const WrittenHistory history_;
    uint64_t context_;
    size_t hashed_ = 0;  // bytes of the text that context_ covers
    Prompt prompt_;
};

/// Puts the request's tools, schema and task where the encoder expects them (section 5.1).
std::vector<Message> with_options_placed(const std::vector<Message>& messages, const ChatOptions& options) {
    std::vector<Message> placed = messages;
    if (!options.tools.empty() || options.response_schema) {
        const bool has_host =
            !placed.empty() && (placed[0].role == Role::kSystem || placed[0].role == Role::kDeveloper);
        if (!has_host) placed.emplace(placed.begin())->role = Role::kSystem;
        if (!options.tools.empty()) placed[0].tools = options.tools;
        if (options.response_schema) placed[0].response_schema = options.response_schema;
    }
    if (options.task != Task::kNone) {
        const auto last_user = std::find_if(placed.rbegin(), placed.rend(),
                                            [](const Message& message) { return message.role == Role::kUser; });
        if (last_user == placed.rend()) fail("task: the request has no user message to put it on");
        last_user->task = options.task;
    }
    return placed;
}

bool contains(std::string_view text, std::string_view part) { return text.find(part) != std::string_view::npos; }

/// All of encoding/*.py in one string; empty if there is none.
std::string encoder_source(const std::filesystem::path& directory) {
    constexpr size_t kLongestSource = size_t{4} << 20;
    std::error_code error;
    std::string source;
    for (const auto& entry : std::filesystem::directory_iterator(directory / "encoding", error))
        if (entry.path().extension() == ".py") source += read_text(entry.path(), kLongestSource) + "\n";
    return source;
}

}  // namespace

const ToolMarkup& tool_markup(PromptRevision revision) {
    static const ToolMarkup kPlain{"｜DSML｜tool_calls", "｜DSML｜invoke", "｜DSML｜parameter"};
    static const ToolMarkup kSpaced{"｜DSML｜ calls", "｜DSML｜ invoke", "｜DSML｜ parameter"};
    return revision == PromptRevision::kV4_1 ? kSpaced : kPlain;
}

Prompt render_deepseek_v4(const std::vector<Message>& messages, const ChatOptions& options,
                          const WrittenHistory& history) {
    const std::vector<Message> placed = with_options_placed(messages, options);
    std::vector<Turn> turns = merge(placed);
    sort_results(turns);
    return Writer(std::move(turns), options, history).write();
}

std::string_view revision_name(PromptRevision revision) {
    switch (revision) {
        case PromptRevision::kV4:
            return "v4";
        case PromptRevision::kV4_0731:
            return "v4-0731";
        case PromptRevision::kV4_1:
            break;
    }
    return "v4.1";
}

std::optional<PromptRevision> revision_from_flag(std::string_view flag) {
    for (const auto revision : {PromptRevision::kV4, PromptRevision::kV4_0731, PromptRevision::kV4_1})
        if (flag == revision_name(revision)) return revision;
    return std::nullopt;
}

std::optional<PromptRevision> revision_from_encoder_source(std::string_view source) {
    if (contains(source, "REASONING_EFFORT_MAPPINGS") || contains(source, kSystem)) return PromptRevision::kV4_1;
    if (contains(source, "REASONING_EFFORT_PROMPTS")) return PromptRevision::kV4_0731;
    if (contains(source, "REASONING_EFFORT_MAX")) return PromptRevision::kV4;
    return std::nullopt;
}

std::optional<PromptRevision> revision_from_chat_template(std::string_view chat_template) {
    if (contains(chat_template, "Beyond maximum")) return PromptRevision::kV4_0731;
    if (contains(chat_template, kSystem)) return PromptRevision::kV4_1;
    if (contains(chat_template, "DSML")) return PromptRevision::kV4;
    return std::nullopt;
}

std::optional<PromptRevision> revision_from_model_name(std::string_view name) {
    if (contains(name, "0731")) return PromptRevision::kV4_0731;
    if (contains(name, "4.1")) return PromptRevision::kV4_1;
    return std::nullopt;
}

RevisionChoice detect_prompt_revision(std::string_view flag, const std::filesystem::path& directory,
                                      std::string_view chat_template, std::string_view model_name) {
    if (!flag.empty() && flag != "auto") {
        const auto named = revision_from_flag(flag);
        if (!named) fail("--chat-encoding is ", printable(flag), ", expected v4, v4-0731, v4.1 or auto");
        return {*named, "named by --chat-encoding"};
    }
    if (!directory.empty())
        if (const auto found = revision_from_encoder_source(encoder_source(directory)))
            return {*found, "found in the checkpoint's encoding/*.py"};
    if (const auto found = revision_from_chat_template(chat_template)) return {*found, "found in the chat template"};
    if (const auto found = revision_from_model_name(model_name)) return {*found, "found in the model's name"};
    return {PromptRevision::kV4, "nothing tells the revision, v4 assumed", true};
}

}  // namespace thermocline::text
