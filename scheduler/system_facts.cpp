#include "scheduler/system_facts.h"

#include <algorithm>
#include <charconv>
#include <fstream>
#include <limits>
#include <sstream>
#include <string_view>

namespace thermocline::scheduler {

namespace {

namespace fs = std::filesystem;

/// Longest text taken from a file; the first CPU of /proc/cpuinfo is well within it.
constexpr size_t kMaxText = 64 << 10;
constexpr size_t kMaxEntries = 8192;  // of a folder

/// "" if there is no such regular file.
std::string text_of(const fs::path& path) {
    std::error_code missing;
    if (!fs::is_regular_file(path, missing)) return "";
    std::ifstream file(path, std::ios::binary);
    std::string text(kMaxText, '\0');
    file.read(text.data(), static_cast<std::streamsize>(text.size()));
    text.resize(static_cast<size_t>(std::max<std::streamsize>(0, file.gcount())));
    return text;
}

std::string_view trimmed(std::string_view text) {
    constexpr std::string_view kBlanks(" \t\r\n\0", 5);
    const size_t begin = text.find_first_not_of(kBlanks);
    if (begin == std::string_view::npos) return {};
    return text.substr(begin, text.find_last_not_of(kBlanks) - begin + 1);
}

std::string word_of(const fs::path& path) { return std::string(trimmed(text_of(path))); }

/// The number that the text begins with; nothing if it is negative or too large.
std::optional<int64_t> number(std::string_view text, int base = 10) {
    text = trimmed(text);
    if (base == 16 && text.starts_with("0x")) text.remove_prefix(2);
    int64_t value = 0;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value, base);
    if (error != std::errc() || value < 0) return std::nullopt;
    return value;
}

std::optional<int64_t> number_in(const fs::path& path, int base = 10) { return number(text_of(path), base); }

std::vector<std::string> words(std::string_view text) {
    std::istringstream stream{std::string(text)};
    std::vector<std::string> all;
    for (std::string word; stream >> word;) all.push_back(word);
    return all;
}

/// What stands behind `key` and a colon, at the begin of a line.
std::string_view value_of(std::string_view text, std::string_view key) {
    for (size_t at = 0; at < text.size();) {
        const size_t end = std::min(text.find('\n', at), text.size());
        const std::string_view line = text.substr(at, end - at);
        if (line.starts_with(key)) {
            const std::string_view rest = trimmed(line.substr(key.size()));
            if (rest.starts_with(':')) return trimmed(rest.substr(1));
        }
        at = end + 1;
    }
    return {};
}

/// "MemTotal: 123 kB" as bytes.
std::optional<int64_t> kibibytes(std::string_view text, std::string_view key) {
    const std::optional<int64_t> count = number(value_of(text, key));
    if (!count || *count > std::numeric_limits<int64_t>::max() / 1024) return std::nullopt;
    return *count * 1024;
}

/// Names in a folder, sorted; none if there is no such folder.
std::vector<std::string> names_in(const fs::path& folder) {
    std::vector<std::string> names;
    std::error_code failed;
    for (fs::directory_iterator item(folder, failed), end; !failed && item != end && names.size() < kMaxEntries;
         item.increment(failed))
        names.push_back(item->path().filename().string());
    std::sort(names.begin(), names.end());
    return names;
}

/// 7 of "node7" with prefix "node"; nothing of "node7x" or "online".
std::optional<int64_t> numbered(std::string_view name, std::string_view prefix) {
    if (!name.starts_with(prefix)) return std::nullopt;
    name.remove_prefix(prefix.size());
    const bool digits =
        !name.empty() && std::all_of(name.begin(), name.end(), [](char c) { return c >= '0' && c <= '9'; });
    return digits ? number(name) : std::nullopt;
}

bool is_there(const fs::path& path) {
    std::error_code failed;
    return fs::exists(path, failed);
}

void read_kernel(const fs::path& root, SystemFacts& facts) {
    facts.kernel_release = word_of(root / "proc/sys/kernel/osrelease");
    facts.boot_parameters = words(text_of(root / "proc/cmdline"));
    std::string release = facts.kernel_release;
    std::transform(release.begin(), release.end(), release.begin(),
                   [](char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c + 32) : c; });
    facts.wsl = release.find("microsoft") != std::string::npos;
    facts.container = is_there(root / ".dockerenv") || is_there(root / "run/.containerenv");
}

/// "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.95.05  Release Build": the first word that is a
/// version.
void read_driver(const fs::path& root, SystemFacts& facts) {
    facts.nouveau_loaded = is_there(root / "sys/module/nouveau");
    facts.nvidia_device_nodes = is_there(root / "dev/nvidiactl");
    const std::string text = text_of(root / "proc/driver/nvidia/version");
    const std::string_view line = value_of(text, "NVRM version");
    facts.nvidia_open_module = line.find("Open Kernel Module") != std::string_view::npos;
    for (const std::string& word : words(line))
        if (facts.nvidia_driver.empty() && word[0] >= '1' && word[0] <= '9' && word.find('.') != std::string::npos &&
            word.find_first_not_of("0123456789.") == std::string::npos)
            facts.nvidia_driver = word;
    if (facts.nvidia_driver.empty()) facts.nvidia_driver = word_of(root / "sys/module/nvidia/version");
}

/// "32.0 GT/s PCIe"; "Unknown" of devices without a link.
std::optional<double> transfers(const fs::path& path) {
    const std::string text = word_of(path);
    double rate = 0.0;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), rate);
    if (error != std::errc() || !(rate > 0.0 && rate < 1000.0)) return std::nullopt;
    return rate;
}

/// `which`: "current" or "max". A width of 0 is no link.
PciLink link_of(const fs::path& device, const std::string& which) {
    PciLink link{transfers(device / (which + "_link_speed")), number_in(device / (which + "_link_width"))};
    if (link.lanes && (*link.lanes < 1 || *link.lanes > 32)) link.lanes.reset();
    return link;
}

void read_cards(const fs::path& root, SystemFacts& facts) {
    constexpr int64_t kNvidia = 0x10de, kDisplay = 0x03;
    const fs::path bus = root / "sys/bus/pci/devices";
    for (const std::string& address : names_in(bus)) {
        const fs::path device = bus / address;
        if (number_in(device / "vendor", 16) != kNvidia) continue;
        if (number_in(device / "class", 16).value_or(0) >> 16 != kDisplay) continue;
        PciCard card;
        card.address = address;
        card.device_id = number_in(device / "device", 16).value_or(0);
        std::error_code failed;
        card.kernel_driver = fs::read_symlink(device / "driver", failed).filename().string();
        card.now = link_of(device, "current");
        card.card_most = link_of(device, "max");
        const fs::path place = fs::canonical(device, failed);  // .../0000:00:01.0/0000:01:00.0
        if (!failed) card.slot_most = link_of(place.parent_path(), "max");
        card.numa_node = number_in(device / "numa_node");  // -1: the firmware does not say
        facts.cards.push_back(std::move(card));
    }
}

void read_memory(const fs::path& root, SystemFacts& facts) {
    const std::string meminfo = text_of(root / "proc/meminfo");
    facts.memory_total = kibibytes(meminfo, "MemTotal");
    facts.memory_available = kibibytes(meminfo, "MemAvailable");
    facts.swap_total = kibibytes(meminfo, "SwapTotal");
    facts.swap_free = kibibytes(meminfo, "SwapFree");
    const fs::path folder = root / "sys/devices/system/node";
    for (const std::string& name : names_in(folder)) {
        const std::optional<int64_t> id = numbered(name, "node");
        if (!id) continue;
        const std::string text = text_of(folder / name / "meminfo");  // "Node 0 MemTotal: ..."
        std::string lines;
        std::istringstream stream(text);
        const std::string prefix = "Node " + std::to_string(*id) + " ";
        for (std::string line; std::getline(stream, line);)
            if (line.starts_with(prefix)) lines += line.substr(prefix.size()) + "\n";
        facts.nodes.push_back({*id, kibibytes(lines, "MemTotal").value_or(0), kibibytes(lines, "MemFree").value_or(0),
                               !word_of(folder / name / "cpulist").empty()});
    }
    std::sort(facts.nodes.begin(), facts.nodes.end(),
              [](const MemoryNode& a, const MemoryNode& b) { return a.id < b.id; });
    facts.numa_balancing = number_in(root / "proc/sys/kernel/numa_balancing");
}

/// "always [madvise] never"
std::string chosen(const fs::path& path) {
    const std::string text = text_of(path);
    const size_t open = text.find('['), close = text.find(']');
    return open == std::string::npos || close == std::string::npos || close < open
               ? ""
               : text.substr(open + 1, close - open - 1);
}

void read_huge_pages(const fs::path& root, SystemFacts& facts) {
    for (const int64_t kib : {2048, 1048576}) {
        const fs::path folder = root / "sys/kernel/mm/hugepages" / ("hugepages-" + std::to_string(kib) + "kB");
        const std::optional<int64_t> total = number_in(folder / "nr_hugepages");
        if (total && *total <= (int64_t{1} << 40))
            facts.huge_pages.push_back({kib << 10, *total, number_in(folder / "free_hugepages").value_or(0)});
    }
    facts.thp_mode = chosen(root / "sys/kernel/mm/transparent_hugepage/enabled");
    facts.thp_defrag = chosen(root / "sys/kernel/mm/transparent_hugepage/defrag");
}

/// "Max locked memory   8388608   8388608   bytes"
void read_memlock(const fs::path& root, SystemFacts& facts) {
    const std::string text = text_of(root / "proc/self/limits");
    constexpr std::string_view kName = "Max locked memory";
    const size_t at = text.find(kName);
    if (at == std::string::npos) return;
    const std::vector<std::string> values = words(std::string_view(text).substr(at + kName.size(), 100));
    if (values.empty()) return;
    facts.memlock_bytes = number(values[0]);
    facts.memlock_known = facts.memlock_bytes || values[0] == "unlimited";
}

template <typename Number>
void keep_smaller(std::optional<Number>& kept, std::optional<Number> found) {
    if (found && (!kept || *found < *kept)) kept = found;
}

/// quota / period in CPUs; "max" and -1 are none.
std::optional<double> quota(std::optional<int64_t> used, std::optional<int64_t> period) {
    if (!used || !period || *used == 0 || *period == 0) return std::nullopt;
    return static_cast<double>(*used) / static_cast<double>(*period);
}

/// The limits of one group of cgroup v2 or v1; a v1 folder has one controller's files.
void read_group(const fs::path& group, SystemFacts& facts) {
    keep_smaller(facts.cgroup_memory_bytes, number_in(group / "memory.max"));
    keep_smaller(facts.cgroup_memory_bytes, number_in(group / "memory.limit_in_bytes"));
    const std::vector<std::string> v2 = words(text_of(group / "cpu.max"));  // "max 100000"
    if (v2.size() == 2) keep_smaller(facts.cgroup_cpus, quota(number(v2[0]), number(v2[1])));
    keep_smaller(facts.cgroup_cpus,
                 quota(number_in(group / "cpu.cfs_quota_us"), number_in(group / "cpu.cfs_period_us")));
}

/// Limits of this process's groups and of all above them. Lines "0::/a/b" (v2) and "4:memory:/a/b" (v1); in a
/// container the path may be one of the host, then the root group is the container's own.
void read_cgroups(const fs::path& root, SystemFacts& facts) {
    const fs::path mounted = root / "sys/fs/cgroup";
    std::istringstream lines(text_of(root / "proc/self/cgroup"));
    for (std::string line; std::getline(lines, line);) {
        const size_t first = line.find(':'), second = line.find(':', first + 1);
        if (first == std::string::npos || second == std::string::npos) continue;
        const std::string controllers = line.substr(first + 1, second - first - 1);
        if (controllers.find('/') != std::string::npos || controllers.find("..") != std::string::npos) continue;
        const fs::path top = controllers.empty() ? mounted : mounted / controllers;
        read_group(top, facts);
        fs::path group = top;
        for (const fs::path& part : fs::path(line.substr(second + 1)).relative_path()) {
            if (part == "..") break;
            group /= part;
            read_group(group, facts);
        }
    }
}

void read_processor(const fs::path& root, SystemFacts& facts) {
    const std::string cpuinfo = text_of(root / "proc/cpuinfo");
    facts.cpu_flags = words(value_of(cpuinfo, "flags"));
    const fs::path folder = root / "sys/devices/system/cpu";
    facts.smt = word_of(folder / "smt/control");
    for (const std::string& name : names_in(folder)) {
        if (!numbered(name, "cpu")) continue;
        const fs::path cpu = folder / name;
        if (number_in(cpu / "online").value_or(1) != 0) ++facts.online_cpus;  // the first CPU has no such file
        if (const std::string governor = word_of(cpu / "cpufreq/scaling_governor"); !governor.empty())
            ++facts.governors[governor];
        if (facts.frequency_driver.empty()) facts.frequency_driver = word_of(cpu / "cpufreq/scaling_driver");
    }
}

}  // namespace

SystemFacts read_system_facts(const fs::path& root) {
    SystemFacts facts;
    read_kernel(root, facts);
    read_driver(root, facts);
    read_cards(root, facts);
    read_memory(root, facts);
    read_huge_pages(root, facts);
    read_memlock(root, facts);
    read_cgroups(root, facts);
    read_processor(root, facts);
    return facts;
}

}  // namespace thermocline::scheduler
