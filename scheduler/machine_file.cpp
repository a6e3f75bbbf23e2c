#include "scheduler/machine_file.h"

#include "scheduler/bandwidth.h"
#include "src/base/error.h"
#include "src/base/file.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <set>
#include <string_view>

namespace thermocline::scheduler {

namespace {

constexpr const char* kVersionKey = "thermocline_machine";
constexpr int64_t kVersion = 1;
constexpr size_t kMaxFile = 1 << 20;
constexpr int64_t kMaxCores = 1 << 14;
constexpr int64_t kMaxBytes = int64_t{1} << 50;
constexpr double kMaxFigure = 1e9;

/// The fields of one object. Every accessor throws Error for a missing or wrong value; done() for keys not asked for.
class Fields {
public:
    Fields(const Json& json, std::string where) : json_(json), where_(std::move(where)) {
        if (!json.is_object()) fail(where_, " is ", json.type_name(), ", expected an object");
    }

    bool has(const char* key) const { return json_.contains(key); }
    const Json& at(const char* key) {
        known_.insert(key);
        const auto found = json_.find(key);
        if (found == json_.end()) fail(where_, ": ", key, " is missing");
        return *found;
    }
    std::string path(const char* key) const { return where_ + ": " + key; }

    int64_t integer(const char* key, int64_t low, int64_t high) {
        const Json& value = at(key);
        const bool whole =
            value.is_number_integer() && !(value.is_number_unsigned() && value.get<uint64_t>() > INT64_MAX);
        if (!whole || value.get<int64_t>() < low || value.get<int64_t>() > high)
            fail(path(key), " is ", printable(dump_json(value)), ", expected an integer from ", low, " to ", high);
        return value.get<int64_t>();
    }
    /// Greater than 0.
    double figure(const char* key) { return figure(at(key), path(key)); }
    double figure_or_none(const char* key) { return has(key) ? figure(key) : 0.0; }
    static double figure(const Json& value, const std::string& path) {
        const double number = value.is_number() ? value.get<double>() : 0.0;
        if (!(number > 0.0 && number <= kMaxFigure))
            fail(path, " is ", printable(dump_json(value)), ", expected a number above 0, at most ", kMaxFigure);
        return number;
    }
    std::string text(const char* key) {
        const Json& value = at(key);
        if (!value.is_string()) fail(path(key), " is ", printable(dump_json(value)), ", expected a string");
        return value.get<std::string>();
    }
    bool flag_or_false(const char* key) {
        if (!has(key)) return false;
        const Json& value = at(key);
        if (!value.is_boolean()) fail(path(key), " is ", printable(dump_json(value)), ", expected true or false");
        return value.get<bool>();
    }
    /// Calls body(item, where) for the items of an array.
    template <typename Body>
    void each(const char* key, size_t most, Body body) {
        const Json& value = at(key);
        if (!value.is_array() || value.size() > most)
            fail(path(key), " is ", value.is_array() ? std::to_string(value.size()) + " items" : value.type_name(),
                 ", expected an array of at most ", most);
        for (size_t i = 0; i < value.size(); ++i) body(value[i], path(key) + "[" + std::to_string(i) + "]");
    }
    void done() const {
        for (const auto& [key, value] : json_.items())
            if (!known_.contains(key)) fail(where_, ": ", printable(key), " is no key of a machine file");
    }

private:
    const Json& json_;
    std::string where_;
    std::set<std::string, std::less<>> known_;
};

/// Key by key, without those whose value is not known.
void add_if_known(Json& json, const char* key, double figure) {
    if (rounded(figure) > 0.0) json[key] = rounded(figure);
}

void add_group(Json& json, const GroupSpeed& group) {
    json["cores"] = group.cores;
    if (group.cores == 0) return;  // memory of no core
    json["read_gb_per_s"] = Json::array();
    for (const double rate : group.read_gb_per_s) json["read_gb_per_s"].push_back(rounded(rate));
    add_if_known(json, "write_gb_per_s", group.write_gb_per_s);
    add_if_known(json, "copy_gb_per_s", group.copy_gb_per_s);
    add_if_known(json, "barrier_us", group.barrier_us);
}

GroupSpeed read_group(Fields& fields) {
    GroupSpeed group;
    group.cores = static_cast<int>(fields.integer("cores", 0, kMaxCores));
    if (group.cores == 0) return group;
    fields.each("read_gb_per_s", static_cast<size_t>(group.cores), [&](const Json& rate, const std::string& where) {
        group.read_gb_per_s.push_back(Fields::figure(rate, where));
    });
    const size_t rates = group.read_gb_per_s.size();
    if (rates != 1 && rates != static_cast<size_t>(group.cores))
        fail(fields.path("read_gb_per_s"), " has ", rates, " rates, expected one of all cores, or one each for 1 to ",
             group.cores, " cores");
    group.write_gb_per_s = fields.figure_or_none("write_gb_per_s");
    group.copy_gb_per_s = fields.figure_or_none("copy_gb_per_s");
    group.barrier_us = fields.figure_or_none("barrier_us");
    return group;
}

void add_link(Json& json, const cuda::LinkSpeed& link) {
    add_if_known(json, "to_device_gb_per_s", link.to_device);
    add_if_known(json, "to_host_gb_per_s", link.to_host);
    add_if_known(json, "both_gb_per_s", link.both);
}

cuda::LinkSpeed read_link(Fields& fields) {
    return {fields.figure("to_device_gb_per_s"), fields.figure("to_host_gb_per_s"),
            fields.figure_or_none("both_gb_per_s")};
}

Json gpu_json(const DescribedGpu& gpu) {
    const cuda::DeviceInfo& device = gpu.speed.device;
    Json json = {{"name", device.name},
                 {"compute", std::to_string(device.compute_major) + "." + std::to_string(device.compute_minor)},
                 {"memory_bytes", device.memory_bytes}};
    if (gpu.unified_memory) json["unified_memory"] = true;
    if (device.multiprocessors > 0) json["multiprocessors"] = device.multiprocessors;
    if (!device.pci_address.empty()) json["pci_address"] = device.pci_address;
    add_if_known(json, "memory_read_gb_per_s", gpu.speed.memory_read);
    add_if_known(json, "memory_nominal_gb_per_s", gpu.nominal_gb_per_s);
    add_if_known(json, "matmul_tflops", gpu.matmul_tflops);
    Json link = Json::object(), busy = Json::object();
    add_link(link, gpu.speed.link);
    json["link"] = std::move(link);
    add_link(busy, gpu.speed.busy_link);
    add_if_known(busy, "cpu_read_gb_per_s", gpu.speed.busy_cpu_read);
    if (!busy.empty()) json["link_while_cpu_reads"] = std::move(busy);
    add_if_known(json, "handoff_us", gpu.speed.handoff_us);
    Json ways = Json::object();
    for (const cuda::HandoffSpeed& speed : gpu.speed.handoffs) add_if_known(ways, cuda::name_of(speed.way), speed.us);
    if (!ways.empty()) json["handoff_us_by_way"] = std::move(ways);
    return json;
}

/// "12.0"
void read_compute(Fields& fields, cuda::DeviceInfo& device) {
    const std::string text = fields.text("compute");
    const size_t point = text.find('.');
    const auto digits = [](std::string_view part) {
        return !part.empty() && part.size() <= 2 && part.find_first_not_of("0123456789") == std::string_view::npos;
    };
    const std::string_view all = text;
    if (point == std::string::npos || !digits(all.substr(0, point)) || !digits(all.substr(point + 1)))
        fail(fields.path("compute"), " is \"", printable(text), "\", expected an SM version such as 12.0");
    device.compute_major = std::stoi(text.substr(0, point));
    device.compute_minor = std::stoi(text.substr(point + 1));
}

DescribedGpu read_gpu(const Json& json, const std::string& where, int index) {
    Fields fields(json, where);
    DescribedGpu gpu;
    cuda::DeviceInfo& device = gpu.speed.device;
    device.index = index;
    device.name = fields.text("name");
    read_compute(fields, device);
    device.memory_bytes = fields.integer("memory_bytes", 1, kMaxBytes);
    gpu.unified_memory = fields.flag_or_false("unified_memory");
    if (fields.has("multiprocessors"))
        device.multiprocessors = static_cast<int>(fields.integer("multiprocessors", 1, 1 << 16));
    if (fields.has("pci_address")) device.pci_address = fields.text("pci_address");
    gpu.speed.memory_read = fields.figure("memory_read_gb_per_s");
    gpu.nominal_gb_per_s = fields.figure_or_none("memory_nominal_gb_per_s");
    gpu.matmul_tflops = fields.figure_or_none("matmul_tflops");
    Fields link(fields.at("link"), fields.path("link"));
    gpu.speed.link = read_link(link);
    link.done();
    if (fields.has("link_while_cpu_reads")) {
        Fields busy(fields.at("link_while_cpu_reads"), fields.path("link_while_cpu_reads"));
        gpu.speed.busy_link = read_link(busy);
        gpu.speed.busy_cpu_read = busy.figure("cpu_read_gb_per_s");
        busy.done();
    }
    gpu.speed.handoff_us = fields.figure("handoff_us");
    if (fields.has("handoff_us_by_way")) {
        Fields ways(fields.at("handoff_us_by_way"), fields.path("handoff_us_by_way"));
        for (const cuda::FlagWait way : cuda::kFlagWaits)
            if (ways.has(cuda::name_of(way)))
                gpu.speed.handoffs.push_back({.way = way, .us = ways.figure(cuda::name_of(way))});
        ways.done();
    }
    fields.done();
    return gpu;
}

void read_nodes(Fields& fields, MachineDescription& machine) {
    fields.each("nodes", 1024, [&](const Json& item, const std::string& where) {
        Fields node(item, where);
        DescribedNode described;
        described.id = static_cast<int>(node.integer("id", 0, 1 << 20));
        described.memory_bytes = node.integer("memory_bytes", 0, kMaxBytes);
        described.speed = read_group(node);
        node.done();
        if (!machine.nodes.empty() && machine.nodes.back().id >= described.id)
            fail(where, ": id is ", described.id, ", expected more than that of the node before");
        machine.nodes.push_back(std::move(described));
    });
    int64_t cores = 0;
    for (const DescribedNode& node : machine.nodes) cores += node.speed.cores;
    if (cores != machine.cores)
        fail(fields.path("nodes"), " have ", cores, " cores together, expected ", machine.cores,
             ", those of the machine");
}

void read_caches(Fields& fields, MachineDescription& machine) {
    fields.each("caches", 16, [&](const Json& item, const std::string& where) {
        Fields cache(item, where);
        machine.caches.push_back({static_cast<int>(cache.integer("level", 1, 16)), cache.integer("bytes", 1, kMaxBytes),
                                  static_cast<int>(cache.integer("cores", 1, kMaxCores))});
        cache.done();
    });
}

void read_peaks(Fields& fields, MachineDescription& machine) {
    constexpr std::array kUnits = {cpu::Unit::kF32, cpu::Unit::kBF16, cpu::Unit::kI8};
    const Json& tiers = fields.at("peaks_gops");
    if (!tiers.is_object()) fail(fields.path("peaks_gops"), " is ", tiers.type_name(), ", expected an object");
    for (const auto& [isa, units] : tiers.items()) {
        Fields tier(units, fields.path("peaks_gops") + "." + printable(isa));
        for (const cpu::Unit unit : kUnits) {
            if (!tier.has(unit_name(unit))) continue;
            Fields peak(tier.at(unit_name(unit)), tier.path(unit_name(unit)));
            machine.peaks.push_back({isa, unit, peak.figure("one_core"), peak.figure("all_cores")});
            peak.done();
        }
        tier.done();
    }
}

/// Whether the file has a value at "gpus.link.to_host_gb_per_s"; of arrays the first item stands for all.
bool has_path(const Json& json, std::string_view path) {
    const Json* at = &json;
    while (!path.empty()) {
        if (at->is_array() && !at->empty()) at = &at->front();
        const size_t point = std::min(path.find('.'), path.size());
        const auto found = at->is_object() ? at->find(std::string(path.substr(0, point))) : at->end();
        if (!at->is_object() || found == at->end()) return false;
        at = &*found;
        path.remove_prefix(std::min(point + 1, path.size()));
    }
    return true;
}

void read_origins(Fields& fields, const Json& json, MachineDescription& machine) {
    constexpr std::array<std::string_view, 4> kWords = {"measured", "published", "derived", "assumed"};
    const Json& origins = fields.at("origins");
    if (!origins.is_object() || origins.empty())
        fail(fields.path("origins"), " is ", printable(dump_json(origins)),
             ", expected keys and where their values come from");
    for (const auto& [key, value] : origins.items()) {
        const std::string where = fields.path("origins") + "." + printable(key);
        if (key != "*" && (key.empty() || !has_path(json, key))) fail(where, ": the file has no such key");
        const std::string text = value.is_string() ? value.get<std::string>() : "";
        if (std::none_of(kWords.begin(), kWords.end(), [&](std::string_view word) { return text.starts_with(word); }))
            fail(where, " is ", printable(dump_json(value)),
                 ", expected measured, published, derived or assumed, then a text");
        machine.origins.emplace_back(key, text);
    }
}

}  // namespace

int64_t MachineDescription::memory_bytes() const {
    int64_t total = 0;
    for (const DescribedNode& node : nodes) total += node.memory_bytes;
    return total;
}

MachineDescription measured_description(const Machine& machine, const MachineSpeed& speed) {
    MachineDescription described;
    described.cpu = machine.cpu_model;
    described.cores = machine.cores();
    described.caches = machine.caches;
    for (size_t i = 0; i < machine.nodes.size(); ++i)
        described.nodes.push_back({machine.nodes[i].id, machine.nodes[i].memory_bytes, speed.nodes[i]});
    described.all = speed.all;
    described.peaks = speed.peaks;
    for (const GpuSpeed& gpu : speed.gpus) described.gpus.push_back({.speed = gpu});
    described.origins = {{"*", "measured: thermocline bench-machine"}};
    return described;
}

Json machine_json(const MachineDescription& machine) {
    Json caches = Json::array(), nodes = Json::array(), all = Json::object(), peaks = Json::object(),
         gpus = Json::array();
    for (const Cache& cache : machine.caches)
        caches.push_back({{"level", cache.level}, {"bytes", cache.bytes}, {"cores", cache.cores}});
    for (const DescribedNode& node : machine.nodes) {
        Json item = {{"id", node.id}, {"memory_bytes", node.memory_bytes}};
        add_group(item, node.speed);
        nodes.push_back(std::move(item));
    }
    add_group(all, machine.all);
    for (const TierPeak& peak : machine.peaks)
        peaks[peak.isa][unit_name(peak.unit)] = {{"one_core", rounded(peak.one_core)},
                                                 {"all_cores", rounded(peak.all_cores)}};
    for (const DescribedGpu& gpu : machine.gpus) gpus.push_back(gpu_json(gpu));
    Json json = {{kVersionKey, kVersion}, {"cpu", machine.cpu}, {"cores", machine.cores}};
    if (!caches.empty()) json["caches"] = std::move(caches);
    json["nodes"] = std::move(nodes);
    json["all"] = std::move(all);
    add_if_known(json, "memory_nominal_gb_per_s", machine.nominal_gb_per_s);
    add_if_known(json, "disk_read_gb_per_s", machine.disk_gb_per_s);
    json["peaks_gops"] = std::move(peaks);
    json["gpus"] = std::move(gpus);
    for (const auto& [key, text] : machine.origins) json["origins"][key] = text;
    return json;
}

MachineDescription parse_machine(const Json& json, const std::string& where) {
    Fields fields(json, where);
    MachineDescription machine;
    fields.integer(kVersionKey, kVersion, kVersion);
    machine.cpu = fields.text("cpu");
    machine.cores = static_cast<int>(fields.integer("cores", 1, kMaxCores));
    if (fields.has("caches")) read_caches(fields, machine);
    read_nodes(fields, machine);
    Fields all(fields.at("all"), fields.path("all"));
    machine.all = read_group(all);
    all.done();
    if (machine.all.cores != machine.cores || machine.all.read_gb_per_s.size() != 1)
        fail(fields.path("all"), " has ", machine.all.cores, " cores and ", machine.all.read_gb_per_s.size(),
             " read rates, expected ", machine.cores, " cores and one rate");
    machine.nominal_gb_per_s = fields.figure_or_none("memory_nominal_gb_per_s");
    machine.disk_gb_per_s = fields.figure_or_none("disk_read_gb_per_s");
    read_peaks(fields, machine);
    fields.each("gpus", 64, [&](const Json& item, const std::string& at) {
        machine.gpus.push_back(read_gpu(item, at, static_cast<int>(machine.gpus.size())));
    });
    read_origins(fields, json, machine);
    fields.done();
    return machine;
}

MachineDescription read_machine(const std::filesystem::path& path) {
    const std::string name = printable(path.string());
    return parse_machine(parse_json(read_text(path, kMaxFile), name), name);
}

}  // namespace thermocline::scheduler
