// The file of a RoutingProfile.
#include "scheduler/routing_profile.h"
#include "src/base/error.h"
#include "src/base/file.h"

#include <numeric>
#include <utility>

namespace thermocline::scheduler {

namespace {

constexpr int64_t kVersion = 1;

Json counts_json(const RoutingCounts& counts) {
    Json pairs = Json::array();
    for (const auto& layer : counts.pairs) {
        Json& list = pairs.emplace_back(Json::array());
        for (const RoutingCounts::Pair& pair : layer) list.push_back({pair.a, pair.b, pair.rows});
    }
    return {{"rows", counts.rows}, {"counts", counts.chosen}, {"pairs", std::move(pairs)}};
}

/// Reads the fields of a profile; every wrong one is named with the way to it.
class Reader {
public:
    Reader(std::string path, const std::vector<RoutedLayer>& layers) : path_(std::move(path)), layers_(layers) {}

    RoutingClass read_class(const Json& json, const std::string& at) const {
        const Json& name = member(json, "name", at);
        known(json, {"name", "prefill", "decode", "next_layer", "foretold", "curves"}, at);
        if (!name.is_string()) wrong(at + ".name", name, "a text");
        RoutingClass one{name.get<std::string>(),
                         read_counts(member(json, "prefill", at), at + ".prefill"),
                         read_counts(member(json, "decode", at), at + ".decode"),
                         {},
                         {}};
        for (const Json& value : list(member(json, "next_layer", at), at + ".next_layer", layers_.size()))
            one.next_layer.push_back(share(value, at + ".next_layer"));
        if (json.contains("foretold")) read_foretold(json.at("foretold"), at + ".foretold", one);
        const Json& curves = member(json, "curves", at);
        known(curves, {"choices", "fractions", "adaptive", "lru", "static", "optimum"}, at + ".curves");
        const Json& fractions = member(curves, "fractions", at + ".curves");
        if (fractions != Json(kCurveFractions)) wrong(at + ".curves.fractions", fractions, dump_json(kCurveFractions));
        one.working_set.choices = count(member(curves, "choices", at + ".curves"), at + ".curves.choices");
        read_rates(curves, "adaptive", at, one.working_set, &WorkingSet::Rates::adaptive);
        read_rates(curves, "lru", at, one.working_set, &WorkingSet::Rates::lru);
        read_rates(curves, "static", at, one.working_set, &WorkingSet::Rates::fixed);
        read_rates(curves, "optimum", at, one.working_set, &WorkingSet::Rates::optimum);
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

    void read_rates(const Json& curves, const char* policy, const std::string& at, WorkingSet& set,
                    double WorkingSet::Rates::*rate) const {
        const std::string where = at + ".curves." + policy;
        const Json& rates = member(curves, policy, at + ".curves");
        for (size_t i = 0; i < set.at.size(); ++i) set.at[i].*rate = share(list(rates, where, set.at.size())[i], where);
    }

    RoutingCounts read_counts(const Json& json, const std::string& at) const {
        RoutingCounts counts;
        counts.rows = count(member(json, "rows", at), at + ".rows");
        const Json &chosen = member(json, "counts", at), &pairs = member(json, "pairs", at);
        known(json, {"rows", "counts", "pairs"}, at);
        (void)list(chosen, at + ".counts", layers_.size());
        (void)list(pairs, at + ".pairs", layers_.size());
        for (size_t i = 0; i < layers_.size(); ++i) {
            const auto experts = static_cast<size_t>(layers_[i].experts);
            const std::string layer = "[" + std::to_string(i) + "]";
            std::vector<int64_t>& out = counts.chosen.emplace_back();
            for (const Json& value : list(chosen[i], at + ".counts" + layer, experts))
                out.push_back(count(value, at + ".counts" + layer));
            if (std::accumulate(out.begin(), out.end(), int64_t{0}) != counts.rows * layers_[i].top_k)
                fail(path_, ": ", at, ".counts", layer, " does not add up to ", counts.rows, " rows of ",
                     layers_[i].top_k, " experts");
            counts.pairs.push_back(read_pairs(pairs[i], experts, at + ".pairs" + layer));
        }
        return counts;
    }

    std::vector<RoutingCounts::Pair> read_pairs(const Json& json, size_t experts, const std::string& at) const {
        if (!json.is_array() || json.size() > RoutingCounts::kMostPairs) wrong(at, json, "a list of pairs");
        std::vector<RoutingCounts::Pair> pairs;
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
        Json curves = {{"choices", one.working_set.choices}, {"fractions", kCurveFractions}};
        for (const WorkingSet::Rates& rates : one.working_set.at) {
            curves["adaptive"].push_back(rates.adaptive);
            curves["lru"].push_back(rates.lru);
            curves["static"].push_back(rates.fixed);
            curves["optimum"].push_back(rates.optimum);
        }
        Json& last = classes.emplace_back(Json{{"name", one.name},
                                               {"prefill", counts_json(one.prefill)},
                                               {"decode", counts_json(one.decode)},
                                               {"next_layer", one.next_layer},
                                               {"curves", std::move(curves)}});
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
