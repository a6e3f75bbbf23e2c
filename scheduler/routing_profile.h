// Statistics of routing: what `profile` computes from a trace, keeps in a file and `place` places experts by. Pure but
// for reading and writing the file.
//
// The file is one JSON document: {"thermocline_profile": 2, "model": NAME, "layers": as in a trace, "classes": [one for
// each kind of text: {"name", "prefill" and "decode": {"rows", "counts": [layers][experts], "recent":
// [layers][experts], "pairs": [layers][[a, b, rows that chose both], ...], "curves": {"choices", "fractions", POLICY:
// hit rate at each fraction}}, "next_layer": [layers] precision, "foretold": {"rows", "shares": [layers]}}]}.
// "foretold" may be missing.
#pragma once

#include "scheduler/routing_trace.h"
#include "src/base/json.h"

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace thermocline::scheduler {

/// Resident fractions of all experts at which working-set curves are taken.
inline constexpr std::array kCurveFractions = {0.03, 0.06, 0.12, 0.25, 0.375, 0.5, 0.75};

/// Hit rates of the second half of the passes, the first half warming up; `fixed` is learned from the first half. What
/// a pass chooses counts by its rows, and is brought for the passes after it.
struct WorkingSet {
    int64_t choices = 0;  // counted; 0: nothing is known
    struct Rates {
        double adaptive = 0, lru = 0, fixed = 0, optimum = 0;
    };
    std::array<Rates, kCurveFractions.size()> at{};
};

/// Rows after which a choice counts half in RoutingPhase::recent (hybrid-engine.md 4.6).
inline constexpr double kRecentHalfLife = 512;

/// What is known of the rows of prompts, or of those that decode.
struct RoutingPhase {
    int64_t rows = 0;
    std::vector<std::vector<int64_t>> chosen;  // [layers][experts]
    std::vector<std::vector<double>> recent;   // the same, every choice halved with each half-life since
    struct Pair {
        int32_t a, b;
        int64_t rows;
    };
    std::vector<std::vector<Pair>> pairs;  // of each layer, the most frequent first, at most kMostPairs
    static constexpr size_t kMostPairs = 64;
    WorkingSet working_set;
};

struct RoutingClass {
    std::string name;  // of the kind of text; may be empty
    RoutingPhase prefill, decode;
    /// Of each layer but the first: share of a token's experts that its experts in the layer before foretell, learned
    /// as the trace goes on; the first is 0.
    std::vector<double> next_layer;
    /// Of each layer: share of a token's experts that were foretold before attention (RoutingRecord::foretold), over so
    /// many rows; empty: nothing is known.
    std::vector<double> foretold = {};
    int64_t foretold_rows = 0;
};

struct RoutingProfile {
    std::string model;
    std::vector<RoutedLayer> layers;
    std::vector<RoutingClass> classes;

    /// Rows of all classes that chose each expert, prefill and decode: [layers][experts].
    std::vector<std::vector<int64_t>> chosen() const;
    int64_t rows() const;
};

RoutingProfile profile_of(const RoutingTrace& trace);

/// Adds what `other` knows, as the later of the two: counts are added, rates averaged by what they count, pairs that
/// are among the most frequent of only one count with its rows alone. Throws Error if it is of another model.
void merge(RoutingProfile& into, const RoutingProfile& other);

Json to_json(const RoutingProfile& profile);
/// Throws Error naming file and field if it is damaged.
RoutingProfile read_routing_profile(const std::string& path);
/// The same of the content of a file; `name`: of it, for messages.
RoutingProfile parse_routing_profile(std::string_view content, const std::string& name);

/// Throws Error if statistics recorded from `found` are not of a model named `model` with such layers. `path`: of the
/// file, for the message.
void check_model(const std::string& path, const std::string& found_model, const std::vector<RoutedLayer>& found,
                 const std::string& model, const std::vector<RoutedLayer>& layers);

}  // namespace thermocline::scheduler
