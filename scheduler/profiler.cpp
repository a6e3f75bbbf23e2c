#include "scheduler/profiler.h"

#include <algorithm>
#include <cstdio>
#include <variant>

namespace thermocline::scheduler {

namespace {

/// "layers.3.attn.wq_b" -> "attn.wq_b".
std::string without_layer(const std::string& name) {
    if (!name.starts_with("layers.")) return name;
    return name.substr(name.find('.', sizeof "layers." - 1) + 1);
}

std::string line_name(const ops::Plan& plan, const ops::Step& step) {
    const std::string kind = ops::step_name(step);
    if (const auto* linear = std::get_if<ops::Linear>(&step))
        return kind + " " + without_layer(plan.matrices[static_cast<size_t>(linear->weight)].name);
    if (const auto* attention = std::get_if<ops::Attention>(&step); attention && attention->ratio > 0)
        return kind + " ratio " + std::to_string(attention->ratio);
    return kind;
}

std::string row(const StepProfile::Line& line, double all_seconds, double bandwidth) {
    const double gb_per_s = static_cast<double>(line.cost.bytes) / line.seconds * 1e-9;
    const double gflops = static_cast<double>(line.cost.flops) / line.seconds * 1e-9;
    char text[160];
    std::snprintf(text, sizeof text, "%-38s %7lld %10.3f %6.1f %% %10.3f %7.2f %5.1f %% %8.2f\n", line.name.c_str(),
                  static_cast<long long>(line.calls), line.seconds * 1e3, 100.0 * line.seconds / all_seconds,
                  static_cast<double>(line.cost.bytes) * 1e-6, gb_per_s, 100.0 * gb_per_s / bandwidth, gflops);
    return text;
}

}  // namespace

StepProfile::StepProfile(const ops::Plan& plan) {
    for (const ops::Step& step : plan.steps) {
        const std::string name = line_name(plan, step);
        const auto found =
            std::find_if(lines_.begin(), lines_.end(), [&](const Line& line) { return line.name == name; });
        line_of_.push_back(static_cast<size_t>(found - lines_.begin()));
        if (found == lines_.end()) lines_.push_back({name, 0, 0.0, {}});
    }
}

void StepProfile::add(size_t index, double seconds, ops::Cost cost) {
    Line& line = lines_[line_of_[index]];
    ++line.calls;
    line.seconds += seconds;
    line.cost += cost;
}

std::vector<StepProfile::Line> StepProfile::lines() const {
    std::vector<Line> sorted = lines_;
    Line rest{"between steps", 0, passes_, {}};
    for (const Line& line : lines_) rest.seconds -= line.seconds;
    sorted.push_back(rest);
    std::stable_sort(sorted.begin(), sorted.end(), [](const Line& a, const Line& b) { return a.seconds > b.seconds; });
    return sorted;
}

std::string profile_table(const StepProfile& profile, double bandwidth) {
    char header[160];
    std::snprintf(header, sizeof header, "%-38s %7s %10s %8s %10s %7s %7s %8s\n", "operator", "calls", "time ms",
                  "share", "MB", "GB/s", "of bw", "GFLOP/s");
    std::string text = header;
    StepProfile::Line all{"all", 0, profile.seconds(), {}};
    for (const StepProfile::Line& line : profile.lines()) {
        text += row(line, profile.seconds(), bandwidth);
        all.calls += line.calls;
        all.cost += line.cost;
    }
    return text + row(all, profile.seconds(), bandwidth);
}

}  // namespace thermocline::scheduler
