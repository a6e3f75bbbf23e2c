#include "src/app/profile_report.h"

#include "scheduler/printed.h"
#include "src/base/error.h"
#include "src/base/file.h"

#include <algorithm>
#include <cmath>
#include <fcntl.h>
#include <filesystem>
#include <numeric>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>
#include <vector>

namespace thermocline::app {

namespace {

using scheduler::kCurveFractions;
using scheduler::printed;
using scheduler::RoutingClass;
using scheduler::RoutingPhase;
using scheduler::WorkingSet;

constexpr int kWidth = 1100, kMargin = 60, kCurveHeight = 260;

struct Policy {
    const char *name, *colour;
    double WorkingSet::Rates::*rate;
};
constexpr Policy kPolicies[] = {{"adaptive", "#0b6e99", &WorkingSet::Rates::adaptive},
                                {"lru", "#b8602a", &WorkingSet::Rates::lru},
                                {"static", "#6b7280", &WorkingSet::Rates::fixed},
                                {"optimum", "#15803d", &WorkingSet::Rates::optimum}};

std::string escaped(const std::string& text) {
    std::string out;
    for (const char c : text) {
        if (c == '<')
            out += "&lt;";
        else if (c == '&')
            out += "&amp;";
        else
            out += c;
    }
    return out;
}

std::string title_of(const RoutingClass& one) { return one.name.empty() ? "all text" : one.name; }

double mean_next_layer(const RoutingClass& one) {
    double sum = 0.0;
    for (const double precision : one.next_layer) sum += precision;
    return one.next_layer.size() > 1 ? sum / static_cast<double>(one.next_layer.size() - 1) : 0.0;
}

/// Share of all choices that the most chosen tenth of every layer's experts get.
double top_tenth(const RoutingPhase& counts) {
    double top = 0.0, all = 0.0;
    for (std::vector<int64_t> layer : counts.chosen) {
        std::sort(layer.begin(), layer.end(), std::greater<>());
        for (size_t e = 0; e < layer.size(); ++e) {
            all += static_cast<double>(layer[e]);
            if (e < (layer.size() + 9) / 10) top += static_cast<double>(layer[e]);
        }
    }
    return all > 0.0 ? top / all : 0.0;
}

/// From pale (never) over the mean to dark (four times the mean and more).
std::string colour_of(double times_mean) {
    const double at = std::min(1.0, std::sqrt(times_mean / 4.0));
    const auto mix = [&](int from, int to) { return static_cast<int>(std::lround(from + at * (to - from))); };
    return printed("#%02x%02x%02x", mix(247, 8), mix(250, 48), mix(252, 107));
}

class Drawing {
public:
    explicit Drawing(const scheduler::RoutingProfile& profile) : profile_(profile) {
        text(kMargin, 30, 20, printable(profile.model) + ": routing of " + std::to_string(profile.rows()) + " tokens");
        text(kMargin, 52, 13, shape_text(profile.layers));
        y_ = 80;
        for (const RoutingClass& one : profile.classes) {
            text(kMargin, y_ + 16, 16, printable(title_of(one)));
            y_ += 30;
            phase(one.prefill, "prefill");
            phase(one.decode, "decode");
        }
    }

    std::string svg() const {
        return printed(
                   "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 %d %d\" width=\"%d\" height=\"%d\" "
                   "font-family=\"sans-serif\"><rect width=\"%d\" height=\"%d\" fill=\"#fff\"/>\n",
                   kWidth, y_, kWidth, y_, kWidth, y_) +
               body_ + "</svg>\n";
    }

private:
    void text(int x, int y, int size, const std::string& words, const char* more = "") {
        body_ += printed("<text x=\"%d\" y=\"%d\" font-size=\"%d\" fill=\"#111\" %s>", x, y, size, more) +
                 escaped(words) + "</text>\n";
    }

    void phase(const RoutingPhase& phase, const char* name) {
        if (phase.rows == 0) return;
        heat_map(phase.chosen,
                 printed("%s: %lld tokens; the most chosen tenth of the experts gets %.0f %% of the choices", name,
                         static_cast<long long>(phase.rows), 100.0 * top_tenth(phase)));
        heat_map(phase.recent,
                 printed("%s, lately: a choice counts half after %.0f tokens", name, scheduler::kRecentHalfLife));
        if (phase.working_set.choices > 0) curves(phase.working_set, name);
    }

    template <typename T>
    void heat_map(const std::vector<std::vector<T>>& chosen, const std::string& title) {
        const auto layers = static_cast<int>(chosen.size());
        int64_t experts = 1;
        for (const scheduler::RoutedLayer& layer : profile_.layers) experts = std::max(experts, layer.experts);
        const double width = static_cast<double>(kWidth - 2 * kMargin) / static_cast<double>(experts);
        const double height = std::clamp(400.0 / layers, 4.0, 16.0);
        text(kMargin, y_ + 12, 13, title);
        y_ += 20;
        for (int i = 0; i < layers; ++i) layer_row(chosen[static_cast<size_t>(i)], y_ + i * height, width, height);
        text(kMargin - 8, y_ + 10, 11, "0", "text-anchor=\"end\"");
        text(kMargin - 8, y_ + static_cast<int>(layers * height), 11, std::to_string(layers - 1),
             "text-anchor=\"end\"");
        y_ += static_cast<int>(layers * height) + 16;
        text(kMargin, y_, 11, "layers down, experts across; pale: never chosen, dark: four times the mean and more");
        y_ += 22;
    }

    template <typename T>
    void layer_row(const std::vector<T>& chosen, double y, double width, double height) {
        const double mean = std::accumulate(chosen.begin(), chosen.end(), 0.0) / static_cast<double>(chosen.size());
        for (size_t e = 0; e < chosen.size(); ++e)
            body_ += printed("<rect x=\"%.1f\" y=\"%.1f\" width=\"%.2f\" height=\"%.1f\" fill=\"%s\"/>",
                             kMargin + static_cast<double>(e) * width, y, width, height,
                             colour_of(static_cast<double>(chosen[e]) / mean).c_str());
        body_ += "\n";
    }

    void curves(const WorkingSet& set, const char* name) {
        const int left = kMargin, right = kWidth / 2, top = y_ + 24, bottom = top + kCurveHeight;
        text(left, y_ + 12, 13,
             printed("%s: share of the chosen experts that are resident, by the resident share of all experts", name));
        const auto x_of = [&](double share) { return left + share * (right - left); };
        const auto y_of = [&](double share) { return bottom - share * (bottom - top); };
        for (int tick = 0; tick <= 4; ++tick) {
            const double share = tick / 4.0;
            body_ += printed("<path d=\"M%d %.1fH%d\" stroke=\"#ddd\"/><path d=\"M%.1f %dV%d\" stroke=\"#ddd\"/>\n",
                             left, y_of(share), right, x_of(share), top, bottom);
            const std::string label = printed("%.2f", share);
            text(left - 6, static_cast<int>(y_of(share)) + 4, 11, label, "text-anchor=\"end\"");
            text(static_cast<int>(x_of(share)), bottom + 16, 11, label, "text-anchor=\"middle\"");
        }
        int legend = top + 12;
        for (const Policy& policy : kPolicies) {
            body_ += printed("<polyline fill=\"none\" stroke=\"%s\" stroke-width=\"2\" points=\"", policy.colour);
            for (size_t i = 0; i < kCurveFractions.size(); ++i)
                body_ += printed("%.1f,%.1f ", x_of(kCurveFractions[i]), y_of(set.at[i].*policy.rate));
            body_ += "\"/>\n" + printed("<rect x=\"%d\" y=\"%d\" width=\"14\" height=\"4\" fill=\"%s\"/>\n", right + 30,
                                        legend - 5, policy.colour);
            text(right + 52, legend, 13, policy.name);
            legend += 22;
        }
        y_ = bottom + 44;
    }

    const scheduler::RoutingProfile& profile_;
    std::string body_;
    int y_ = 0;
};

constexpr const char* kPngProgram = "rsvg-convert";

/// Its exit status, -1 if it did not run; its output is thrown away.
int run_program(const std::vector<std::string>& words) {
    std::vector<char*> arguments;
    for (const std::string& word : words) arguments.push_back(const_cast<char*>(word.c_str()));
    arguments.push_back(nullptr);
    posix_spawn_file_actions_t files;
    posix_spawn_file_actions_init(&files);
    posix_spawn_file_actions_addopen(&files, STDOUT_FILENO, "/dev/null", O_WRONLY, 0);
    pid_t child = 0;
    const int failure = posix_spawnp(&child, arguments.front(), &files, nullptr, arguments.data(), environ);
    posix_spawn_file_actions_destroy(&files);
    int status = 0;
    if (failure != 0 || waitpid(child, &status, 0) != child || !WIFEXITED(status)) return -1;
    return WEXITSTATUS(status);
}

}  // namespace

std::string profile_text(const scheduler::RoutingProfile& profile) {
    std::string text = printed("%s: %s; %lld tokens\n", printable(profile.model).c_str(),
                               shape_text(profile.layers).c_str(), static_cast<long long>(profile.rows()));
    for (const RoutingClass& one : profile.classes) {
        text += printed("\n%s: %lld tokens of prompts, %lld generated\n", printable(title_of(one)).c_str(),
                        static_cast<long long>(one.prefill.rows), static_cast<long long>(one.decode.rows));
        text += printed(
            "  the most chosen tenth of the experts gets %.0f %% of the choices of prompts, %.0f %% of "
            "generated tokens\n",
            100.0 * top_tenth(one.prefill), 100.0 * top_tenth(one.decode));
        text += printed("  a layer's experts foretell %.0f %% of the next layer's\n", 100.0 * mean_next_layer(one));
        if (one.foretold_rows > 0) {
            text += "  share of its experts that a layer knows before attention, by layer ";
            for (const double share : one.foretold) text += printed(" %.2f", share);
            text += "\n";
        }
        for (const RoutingPhase* phase : {&one.prefill, &one.decode}) {
            if (phase->working_set.choices == 0) continue;
            text += "  resident share of all experts";
            for (const double fraction : kCurveFractions) text += printed("%7.3f", fraction);
            for (const Policy& policy : kPolicies) {
                text += printed("\n  hit rate, %s, %-10s", phase == &one.prefill ? "prefill" : "decode ", policy.name);
                for (const WorkingSet::Rates& rates : phase->working_set.at)
                    text += printed("%7.3f", rates.*policy.rate);
            }
            text += "\n";
        }
    }
    return text;
}

void check_report_path(const std::string& path) {
    if (path.empty() || path.ends_with(".html") || path.ends_with(".svg")) return;
    if (!path.ends_with(".png"))
        fail("--report is ", printable(path), ", expected a file that ends with .html, .svg or .png");
    if (run_program({kPngProgram, "--version"}) != 0)
        fail("--report ", printable(path), " needs ", kPngProgram,
             ", which does not run here: apt-get install librsvg2-bin fonts-dejavu-core, or write .svg or .html");
}

void write_report(const scheduler::RoutingProfile& profile, const std::string& path) {
    const std::string svg = Drawing(profile).svg();
    if (path.ends_with(".svg")) return write_text(path, svg);
    if (path.ends_with(".html"))
        return write_text(path, "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><title>Routing of " +
                                    escaped(printable(profile.model)) +
                                    "</title><style>body{margin:2rem;font-family:sans-serif}svg{max-width:100%;"
                                    "height:auto}pre{overflow-x:auto}</style>\n" +
                                    svg + "<pre>" + escaped(profile_text(profile)) + "</pre></html>\n");
    const std::string drawing = path + ".part.svg", part = path + ".part.png";
    write_text(drawing, svg);
    const int status = run_program({kPngProgram, "--background-color=white", "--output=" + part, "--", drawing});
    std::filesystem::remove(drawing);
    if (status == 0) return std::filesystem::rename(part, path);
    std::filesystem::remove(part);
    fail(printable(path), ": ", kPngProgram, " ended with status ", status, "; write .svg or .html");
}

}  // namespace thermocline::app
