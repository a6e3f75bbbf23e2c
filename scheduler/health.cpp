#include "scheduler/health.h"

#include "src/base/error.h"

#include <algorithm>

namespace thermocline::scheduler {

namespace {

const char* colour_of(Severity severity) {
    switch (severity) {
        case Severity::kOk:
            return "\033[32m";
        case Severity::kNote:
            return "\033[36m";
        case Severity::kWarning:
            return "\033[33m";
        case Severity::kError:
            return "\033[1;31m";
    }
    return "";
}

}  // namespace

const char* severity_name(Severity severity) {
    constexpr const char* kNames[] = {"ok", "note", "warning", "error"};
    return kNames[static_cast<size_t>(severity)];
}

std::vector<Finding> examine(const HealthFacts& facts) {
    std::vector<Finding> findings;
    examine_gpus(facts, findings);
    examine_memory(facts, findings);
    examine_processor(facts, findings);
    examine_system(facts, findings);
    // Parts of it were read from files: one line each, whatever they held.
    for (Finding& finding : findings) finding.found = printable(finding.found, 400);
    return findings;
}

Severity worst_of(const std::vector<Finding>& findings) {
    Severity worst = Severity::kOk;
    for (const Finding& finding : findings) worst = std::max(worst, finding.severity);
    return worst;
}

std::string findings_text(const std::vector<Finding>& findings, bool colour) {
    size_t width = 0;
    for (const Finding& finding : findings) width = std::max(width, finding.check.size());
    std::string text, group;
    for (const Finding& finding : findings) {
        if (finding.group != group) text += (text.empty() ? "" : "\n") + finding.group + "\n";
        group = finding.group;
        std::string severity = severity_name(finding.severity);
        severity.resize(8, ' ');
        if (colour) severity = colour_of(finding.severity) + severity + "\033[0m";
        std::string check = finding.check;
        check.resize(width, ' ');
        text += "  " + severity + " " + check + "  " + finding.found + "\n";
        const std::string indent(width + 13, ' ');
        if (!finding.why.empty()) text += indent + "why:    " + finding.why + "\n";
        if (!finding.remedy.empty()) text += indent + "remedy: " + finding.remedy + "\n";
    }
    return text;
}

Json findings_json(const std::vector<Finding>& findings) {
    Json list = Json::array();
    for (const Finding& finding : findings)
        list.push_back({{"severity", severity_name(finding.severity)},
                        {"group", finding.group},
                        {"check", finding.check},
                        {"found", finding.found},
                        {"why", finding.why},
                        {"remedy", finding.remedy}});
    return {{"worst", severity_name(worst_of(findings))}, {"findings", std::move(list)}};
}

}  // namespace thermocline::scheduler
