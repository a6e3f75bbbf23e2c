#include "src/text/written_turns.h"

#include "src/base/error.h"
#include "src/base/json.h"
#include "src/text/prompt_deepseek_v4.h"

#include <optional>
#include <string_view>
#include <utility>

namespace thermocline::text {
namespace {

/// The parts of an entry that do not grow with the text.
constexpr int64_t kEntryBytes = 512;

std::string_view trimmed(std::string_view text) {
    constexpr std::string_view kSpace = " \t\r\n";
    const size_t begin = text.find_first_not_of(kSpace);
    if (begin == std::string_view::npos) return {};
    return text.substr(begin, text.find_last_not_of(kSpace) - begin + 1);
}

std::optional<SortedJson> json_of(const std::string& arguments) {
    try {
        return parse_sorted_json(trimmed(arguments).empty() ? "{}" : arguments, "arguments");
    } catch (const Error&) {
        return std::nullopt;
    }
}

bool is_same_call(const ToolCall& a, const ToolCall& b) {
    if (a.name != b.name) return false;
    if (a.arguments == b.arguments) return true;
    const auto first = json_of(a.arguments), second = json_of(b.arguments);
    return first && second && *first == *second;
}

bool says(const ParsedOutput& said, const Message& shown, bool with_reasoning) {
    if (said.tool_calls.size() != shown.tool_calls.size() || trimmed(said.content) != trimmed(shown.content))
        return false;
    if (with_reasoning ? trimmed(said.reasoning) != trimmed(shown.reasoning) : !said.reasoning.empty()) return false;
    for (size_t i = 0; i < said.tool_calls.size(); ++i)
        if (!is_same_call(said.tool_calls[i], shown.tool_calls[i])) return false;
    return true;
}

int64_t bytes_of(const WrittenTurn& turn) {
    size_t bytes =
        turn.text.size() + turn.ids.size() * sizeof(int32_t) + turn.said.content.size() + turn.said.reasoning.size();
    for (const ToolCall& call : turn.said.tool_calls) bytes += sizeof call + call.name.size() + call.arguments.size();
    return static_cast<int64_t>(bytes) + kEntryBytes;
}

size_t count(std::string_view text, std::string_view part) {
    size_t found = 0;
    for (size_t at = text.find(part); at != std::string_view::npos; at = text.find(part, at + part.size())) ++found;
    return found;
}

}  // namespace

void WrittenTurns::keep(uint64_t context, WrittenTurn turn) {
    const int64_t bytes = bytes_of(turn);
    if (bytes > budget_) return;
    const std::lock_guard lock(mutex_);
    const auto [first, last] = by_context_.equal_range(context);
    for (auto at = first; at != last; ++at)
        if (at->second->turn->ids == turn.ids) return entries_.splice(entries_.begin(), entries_, at->second);
    entries_.push_front({context, std::make_shared<const WrittenTurn>(std::move(turn)), bytes});
    by_context_.emplace(context, entries_.begin());
    bytes_ += bytes;
    while (bytes_ > budget_) {
        const auto oldest = std::prev(entries_.end());
        auto at = by_context_.equal_range(oldest->context).first;
        while (at->second != oldest) ++at;
        by_context_.erase(at);
        bytes_ -= oldest->bytes;
        entries_.erase(oldest);
    }
}

std::shared_ptr<const WrittenTurn> WrittenTurns::find(uint64_t context, const Message& shown, bool with_reasoning) {
    const std::lock_guard lock(mutex_);
    const auto [first, last] = by_context_.equal_range(context);
    for (auto at = first; at != last; ++at) {
        if (!says(at->second->turn->said, shown, with_reasoning)) continue;
        entries_.splice(entries_.begin(), entries_, at->second);
        return at->second->turn;
    }
    return nullptr;
}

int64_t WrittenTurns::bytes() const {
    const std::lock_guard lock(mutex_);
    return bytes_;
}

bool is_well_formed(const WrittenTurn& turn, PromptRevision revision, bool starts_in_reasoning) {
    const std::string_view text = turn.text;
    if (count(text, "</think>") != (starts_in_reasoning ? 1u : 0u) || text.find("<think>") != std::string_view::npos)
        return false;
    const size_t calls = turn.said.tool_calls.size();
    if (calls == 0) return text.find("｜DSML｜") == std::string_view::npos;
    const ToolMarkup& markup = tool_markup(revision);
    return count(text, "<" + markup.block) == 1 && count(text, "<" + markup.invoke) == calls &&
           count(text, "</" + markup.invoke + ">") == calls && trimmed(text).ends_with("</" + markup.block + ">");
}

}  // namespace thermocline::text
