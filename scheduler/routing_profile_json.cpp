// The file of a RoutingProfile.
#include "scheduler/routing_profile.h"
#include "src/base/error.h"
#include "src/base/file.h"

#include <numeric>
#include <utility>

namespace thermocline::scheduler {

namespace {

constexpr int64_t kVersion = 2;

Json curves_json(const WorkingSet& set) {
    Json curves = {{"choices", set.choices}, {"fractions", kCurveFractions}};
    for (const WorkingSet::Rates& rates : set.at) {
        curves["adaptive"].push_back(rates.adaptive);
        curves["lru"].push_back(rates.lru);
        curves["static"].push_back(rates.fixed);
        curves["optimum"].push_back(rates.optimum);
    }
    return curves;
}

Json phase_json(const RoutingPhase& phase) {
    Json pairs = Json::array();
    for (const auto& layer : phase.pairs) {
        Json& list = pairs.emplace_back(Json::array());
        for (const RoutingPhase::Pair& pair : layer) list.push_back({pair.a, pair.b, pair.rows});
    }
    return {{"rows", phase.rows},
            {"counts", phase.chosen},
            {"recent", phase.recent},
            {"pairs", std::move(pairs)},
            {"curves", curves_json(phase.working_set)}};
}

/// Reads the fields of a profile; every wrong one is named with the way to it.
class Reader {
public:
    Reader(std::string path, const std::vector<RoutedLayer>& layers) : path_(std::move(path)), layers_(layers) {}

    RoutingClass read_class(const Json& json, const std::string& at) const {
        const Json& name = member(json, "name", at);
        known(json, {"name", "prefill", "decode", "next_layer", "foretold"}, at);
        if (!name.is_string()) wrong(at + ".name", name, "a text");
        RoutingClass one{name.get<std::string>(),
                         read_phase(member(json, "prefill", at), at + ".prefill"),
                         read_phase(member(json, "decode", at), at + ".decode"),
                         {}};
        for (const Json& value : list(member(json, "next_layer", at), at + ".next_layer", layers_.size()))
            one.next_layer.push_back(share(value, at + ".next_layer"));
        if (json.contains("foretold")) read_foretold(json.at("foretold"), at + ".foretold", one);
        return one;
    }

    const Json& member(const Json& object, const char* key, const std::string& at) const {
        if (!object.is_object() || !object.contains(key)) fail(path_, ": ", at, ".", key, " is missing");
        return object.at(key);
    }

private:
    [[noreturn]] void wrong(const std::string& at, const Json& found, const std::string& expected) const {
        fail(path_, ": ", at, " is ", printable(dump_json(found), 40), ", expected ", expected);
    }
    const Json& list(const Json& json, const std::string& at, size_t size) const {
        if (!json.is_array() || json.size() != size) wrong(at, json, "a list of " + std::to_string(size));
        return json;
    }
    int64_t count(const Json& json, const std::string& at) const {
        constexpr int64_t kMost = int64_t{1} << 48;
        if (!json.is_number_integer() || json < 0 || json > kMost) wrong(at, json, "a count");
        return json.get<int64_t>();
    }
    double share(const Json& json, const std::string& at) const {
        if (!json.is_number() || !(json.get<double>() >= 0.0 && json.get<double>() <= 1.0)) wrong(at, json, "0 to 1");
        return json.get<double>();
    }

    void known(const Json& object, std::initializer_list<std::string_view> keys, const std::string& at) const {
        check_keys(object, keys, path_ + ": " + at);
    }

    void read_foretold(const Json& json, const std::string& at, RoutingClass& one) const {
        one.foretold_rows = count(member(json, "rows", at), at + ".rows");
        for (const Json& value : list(member(json, "shares", at), at + ".shares", layers_.size()))
            one.foretold.push_back(share(value, at + ".shares"));
        known(json, {"rows", "shares"}, at);
        if (one.foretold_rows == 0) wrong(at + ".rows", json.at("rows"), "at least 1");
    }

    WorkingSet read_curves(const Json& json, const std::string& at) const {
        known(json, {"choices", "fractions", "adaptive", "lru", "static", "optimum"}, at);
        const Json& fractions = member(json, "fractions", at);
        if (fractions != Json(kCurveFractions)) wrong(at + ".fractions", fractions, dump_json(kCurveFractions));
        WorkingSet set;
        set.choices = count(member(json, "choices", at), at + ".choices");
        for (const auto& [policy, rate] :
             {std::pair{"adaptive", &WorkingSet::Rates::adaptive}, std::pair{"lru", &WorkingSet::Rates::lru},
              std::pair{"static", &WorkingSet::Rates::fixed}, std::pair{"optimum", &WorkingSet::Rates::optimum}}) {
            const std::string where = at + "." + policy;
            const Json& rates = list(member(json, policy, at), where, set.at.size());
            for (size_t i = 0; i < set.at.size(); ++i) set.at[i].*rate = share(rates[i], where);
        }
        return set;
    }

    RoutingPhase read_phase(const Json& json, const std::string& at) const {
        RoutingPhase counts;
        counts.rows = count(member(json, "rows", at), at + ".rows");
        const Json &chosen = member(json, "counts", at), &recent = member(json, "recent", at),
                   &pairs = member(json, "pairs", at);
        known(json, {"rows", "counts", "recent", "pairs", "curves"}, at);
        (void)list(chosen, at + ".counts", layers_.size());
        (void)list(recent, at + ".recent", layers_.size());
        (void)list(pairs, at + ".pairs", layers_.size());
        counts.working_set = read_curves(member(json, "curves", at), at + ".curves");
        for (size_t i = 0; i < layers_.size(); ++i) {
            const auto experts = static_cast<size_t>(layers_[i].experts);
            const std::string layer = "[" + std::to_string(i) + "]";
            std::vector<int64_t>& out = counts.chosen.emplace_back();
            for (const Json& value : list(chosen[i], at + ".counts" + layer, experts))
                out.push_back(count(value, at + ".counts" + layer));
            if (std::accumulate(out.begin(), out.end(), int64_t{0}) != counts.rows * layers_[i].top_k)
                fail(path_, ": ", at, ".counts", layer, " does not add up to ", counts.rows, " rows of ",
                     layers_[i].top_k, " experts");
            std::vector<double>& decayed = counts.recent.emplace_back();
            for (const Json& value : list(recent[i], at + ".recent" + layer, experts)) {
                const int64_t most = out[decayed.size()];
                if (!value.is_number() || !(value.get<double>() >= 0.0 && value <= most))
                    wrong(at + ".recent" + layer, value, "0 to its count, " + std::to_string(most));
                decayed.push_back(value.get<double>());
            }
            counts.pairs.push_back(read_pairs(pairs[i], experts, at + ".pairs" + layer));
        }
        return counts;
    }

    std::vector<RoutingPhase::Pair> read_pairs(const Json& json, size_t experts, const std::string& at) const {
        if (!json.is_array() || json.size() > RoutingPhase::kMostPairs) wrong(at, json, "a list of pairs");
        std::vector<RoutingPhase::Pair> pairs;
        for (const Json& item : json) {
            (void)list(item, at, 3);
            const int64_t a = count(item[0], at), b = count(item[1], at);
            if (a >= b || b >= static_cast<int64_t>(experts)) wrong(at, item, "two experts, the lower first");
            pairs.push_back({static_cast<int32_t>(a), static_cast<int32_t>(b), count(item[2], at)});
        }
        return pairs;
    }

    std::string path_;
    const std::vector<RoutedLayer>& layers_;
};

}  // namespace

Json to_json(const RoutingProfile& profile) {
    Json classes = Json::array();
    for (const RoutingClass& one : profile.classes) {
        Json& last = classes.emplace_back(Json{{"name", one.name},
                                               {"prefill", phase_json(one.prefill)},
                                               {"decode", phase_json(one.decode)},
                                               {"next_layer", one.next_layer}});
        if (one.foretold_rows > 0) last["foretold"] = {{"rows", one.foretold_rows}, {"shares", one.foretold}};
    }
    return {{"thermocline_profile", kVersion},
            {"model", profile.model},
            {"layers", layers_json(profile.layers)},
            {"classes", std::move(classes)}};
}

RoutingProfile read_routing_profile(const std::string& path) { return parse_routing_profile(read_text(path), path); }

RoutingProfile parse_routing_profile(std::string_view content, const std::string& path) {
    const std::string name = printable(path);
    const Json json = parse_json(content, name);
    if (!json.is_object() || json.value("thermocline_profile", Json()) != kVersion)
        fail(name, ": expected \"thermocline_profile\": ", kVersion, ", as `thermocline profile` writes it");
    check_keys(json, {"thermocline_profile", "model", "layers", "classes"}, name);
    RoutingProfile profile;
    const Json model = json.value("model", Json());
    if (model.is_string()) profile.model = model.get<std::string>();
    profile.layers = layers_of(json.value("layers", Json()), name);
    const Reader reader(name, profile.layers);
    const Json& classes = reader.member(json, "classes", "profile");
    if (!classes.is_array() || classes.empty()) fail(name, ": classes is no list, or empty");
    for (size_t i = 0; i < classes.size(); ++i) {
        const std::string at = "classes[" + std::to_string(i) + "]";
        RoutingClass one = reader.read_class(classes[i], at);
        for (const RoutingClass& before : profile.classes)
            if (before.name == one.name) fail(name, ": ", at, " is named ", printable(one.name), " as one before it");
        profile.classes.push_back(std::move(one));
    }
    return profile;
}

}  // namespace thermocline::scheduler
