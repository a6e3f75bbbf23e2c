#include "scheduler/placement_file.h"

#include "scheduler/routing_profile.h"
#include "src/base/error.h"
#include "src/base/file.h"

#include <set>

namespace thermocline::scheduler {

namespace {

constexpr int64_t kVersion = 1;

std::vector<std::vector<double>> shares_of(const Json& json, const std::vector<RoutedLayer>& layers,
                                           const std::string& file) {
    const Json shares = json.value("shares", Json());
    if (shares.is_null()) return {};
    std::vector<std::vector<double>> read;
    if (!shares.is_array() || shares.size() != layers.size())
        fail(file, ": shares is no list of ", layers.size(), " layers");
    for (size_t i = 0; i < layers.size(); ++i) {
        if (!shares[i].is_array() || std::ssize(shares[i]) != layers[i].experts)
            fail(file, ": shares[", i, "] is no list of ", layers[i].experts, " numbers");
        std::vector<double>& layer = read.emplace_back();
        for (const Json& share : shares[i]) {
            const double number = share.is_number() ? share.get<double>() : -1.0;
            if (!(number >= 0.0 && number <= static_cast<double>(layers[i].top_k)))
                fail(file, ": shares[", i, "] holds ", printable(dump_json(share), 40), ", expected shares of tokens");
            layer.push_back(number);
        }
    }
    return read;
}

std::vector<int64_t> layers_of_cards(const Json& json, const std::vector<RoutedLayer>& layers,
                                     const std::string& file) {
    const Json counts = json.value("layers_of_cards", Json());
    if (counts.is_null()) return {};
    std::vector<int64_t> read;
    int64_t sum = 0;
    if (counts.is_array())
        for (const Json& count : counts) {
            const int64_t number = count.is_number_integer() ? count.get<int64_t>() : 0;
            if (number < 1 || number > std::ssize(layers)) break;
            sum += read.emplace_back(number);
        }
    if (!counts.is_array() || read.size() != counts.size() || sum != std::ssize(layers))
        fail(file, ": layers_of_cards is ", printable(dump_json(counts), 40), ", expected numbers of layers, ",
             layers.size(), " together");
    return read;
}

}  // namespace

Json placement_json(const Placement& placement, const std::string& model, const std::vector<RoutedLayer>& layers) {
    std::vector<std::vector<int32_t>> resident(layers.size());
    for (const ExpertName& name : placement.resident) resident[static_cast<size_t>(name.set)].push_back(name.expert);
    Json json = {{"thermocline_placement", kVersion},  {"model", model},
                 {"layers", layers_json(layers)},      {"resident", std::move(resident)},
                 {"expected_hit_rate", placement.hit}, {"expected_expert_seconds", placement.seconds}};
    if (!placement.shares.empty()) json["shares"] = placement.shares;
    return json;
}

PlacedExperts read_placement(const std::string& path, const std::string& model,
                             const std::vector<RoutedLayer>& layers) {
    return parse_placement(read_text(path), path, model, layers);
}

PlacedExperts parse_placement(std::string_view content, const std::string& path, const std::string& model,
                              const std::vector<RoutedLayer>& layers) {
    const std::string file = printable(path);
    const Json json = parse_json(content, file);
    if (!json.is_object() || json.value("thermocline_placement", Json()) != kVersion)
        fail(file, ": expected \"thermocline_placement\": ", kVersion, ", as `thermocline place` writes it");
    check_keys(json,
               {"thermocline_placement", "model", "layers", "resident", "shares", "layers_of_cards",
                "expected_hit_rate", "expected_expert_seconds", "machine", "slots", "card_only", "card"},
               file);
    const Json name = json.value("model", Json());
    check_model(path, name.is_string() ? name.get<std::string>() : "", layers_of(json.value("layers", Json()), file),
                model, layers);
    const Json resident = json.value("resident", Json());
    if (!resident.is_array() || resident.size() != layers.size())
        fail(file, ": resident is no list of ", layers.size(), " layers");
    std::vector<ExpertName> names;
    for (size_t i = 0; i < layers.size(); ++i) {
        std::set<int32_t> seen;
        if (!resident[i].is_array()) fail(file, ": resident[", i, "] is no list of experts");
        for (const Json& id : resident[i]) {
            if (!id.is_number_integer() || id < 0 || id >= layers[i].experts || !seen.insert(id.get<int32_t>()).second)
                fail(file, ": resident[", i, "] holds ", printable(dump_json(id), 40), ", expected ids from 0 to ",
                     layers[i].experts - 1, ", each once");
            names.push_back({static_cast<ops::ExpertsId>(i), id.get<int32_t>()});
        }
    }
    return {std::move(names), shares_of(json, layers, file), layers_of_cards(json, layers, file)};
}

}  // namespace thermocline::scheduler
