#include "src/ops/plan.h"

#include "src/base/check.h"

#include <array>
#include <sstream>

namespace thermocline::ops {

namespace {

template <typename... Steps>
constexpr auto names_of(const std::variant<Steps...>*) {
    return std::array{Steps::kName...};
}

/// Prints one step as "Name in -> out weights".
struct Printer {
    const Plan& plan;
    std::ostringstream& out;

    std::string slot(Slot id) const {
        if (id == kNone) return "-";
        const SlotSpec& spec = plan.slots[static_cast<size_t>(id)];
        return spec.name + "[" + std::to_string(spec.cols) + "]";
    }
    std::string matrix(MatrixId id) const {
        const NamedMatrix& named = plan.matrices[static_cast<size_t>(id)];
        std::ostringstream text;
        text << named.name << " " << quant::traits(named.matrix.format).name << "[" << named.matrix.rows << ", "
             << named.matrix.cols << "]";
        return text.str();
    }
    std::string cache(CacheId id) const { return id == kNone ? "-" : plan.caches[static_cast<size_t>(id)].name; }

    void operator()(const Embed& s) { out << matrix(s.table) << " -> " << slot(s.out); }
    void operator()(const Linear& s) {
        out << slot(s.in) << " * " << matrix(s.weight) << " -> " << slot(s.out);
        if (s.groups > 1) out << " groups " << s.groups;
        if (s.fold > 1) out << " fold " << s.fold;
        if (s.rounding == InputRounding::kE4M3) out << " e4m3 input";
        if (s.rounding == InputRounding::kInt8) out << " int8 input";
        if (s.rounding == InputRounding::kBF16) out << " bf16 input";
    }
    void operator()(const RmsNorm& s) { out << slot(s.in) << " -> " << slot(s.out) << " width " << s.width; }
    void operator()(const Rope& s) { out << slot(s.x) << " width " << s.width << (s.inverse ? " inverse" : ""); }
    void operator()(const HyperIn& s) { out << slot(s.streams) << ", " << slot(s.mix) << " -> " << slot(s.x); }
    void operator()(const HyperOut& s) { out << slot(s.y) << " -> " << slot(s.streams); }
    void operator()(const HyperHead& s) { out << slot(s.streams) << ", " << slot(s.mix) << " -> " << slot(s.x); }
    void operator()(const RoundKv& s) { out << slot(s.x) << " width " << s.width << (s.hadamard ? " hadamard" : ""); }
    void operator()(const Compress& s) {
        out << slot(s.values) << ", " << slot(s.scores) << " ratio " << s.ratio << " -> " << cache(s.entries);
    }
    void operator()(const SelectEntries& s) {
        out << slot(s.q) << ", " << cache(s.keys) << " top " << s.top_k << " -> " << slot(s.selection);
    }
    void operator()(const Attention& s) {
        out << slot(s.q) << ", " << cache(s.window_cache) << ", " << cache(s.entries) << " -> " << slot(s.out);
    }
    void operator()(const StoreWindow& s) { out << slot(s.kv) << " -> " << cache(s.window_cache); }
    void operator()(const Route& s) {
        out << slot(s.logits) << (s.table == kNone ? " by score" : " by token") << " top " << s.top_k << " of "
            << s.experts << " -> " << slot(s.ids);
    }
    void operator()(const Experts& s) {
        const ExpertSet& set = plan.experts[static_cast<size_t>(s.experts)];
        out << slot(s.x) << " * " << set.name << " " << set.w1.size() << " x "
            << quant::traits(set.w1.front().format).name << "[" << set.intermediate << ", " << set.hidden << "] -> "
            << slot(s.out);
    }
    void operator()(const SwiGlu& s) { out << slot(s.gate) << ", " << slot(s.up) << " -> " << slot(s.out); }
    void operator()(const Add& s) { out << slot(s.x) << " += " << slot(s.y); }
    void operator()(const TakeRows& s) { out << slot(s.in) << " -> " << slot(s.out); }
};

}  // namespace

const char* step_name(const Step& step) {
    static constexpr auto kNames = names_of(static_cast<const Step*>(nullptr));
    return kNames[step.index()];
}

std::string to_string(const Plan& plan) {
    std::ostringstream out;
    out << "plan " << plan.name << ": " << plan.steps.size() << " steps, " << plan.slots.size() << " slots, "
        << plan.caches.size() << " caches\n";
    for (const Step& step : plan.steps) {
        out << "  " << step_name(step) << " ";
        std::visit(Printer{plan, out}, step);
        out << "\n";
    }
    return out.str();
}

}  // namespace thermocline::ops
