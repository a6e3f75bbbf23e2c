// Findings about memory, processor and system.
#include "scheduler/health.h"
#include "scheduler/printed.h"

#include <algorithm>
#include <string_view>

namespace thermocline::scheduler {

namespace {

constexpr const char *kMemory = "Memory", *kProcessor = "Processor", *kSystem = "System";

double gb(int64_t bytes) { return static_cast<double>(bytes) * 1e-9; }

/// A finding that needs mending, or that all is well.
Finding judged(bool bad, Severity severity, const char* group, const char* check, std::string found, const char* why,
               const char* remedy) {
    if (!bad) return {Severity::kOk, group, check, std::move(found), "", ""};
    return {severity, group, check, std::move(found), why, remedy};
}

void examine_ram(const SystemFacts& system, std::vector<Finding>& findings) {
    if (!system.memory_total || !system.memory_available) {
        findings.push_back({Severity::kNote, kMemory, "RAM", "not shown (/proc/meminfo)", "", ""});
        return;
    }
    findings.push_back(
        judged(*system.memory_available < *system.memory_total / 2, Severity::kNote, kMemory, "RAM",
               printed("%.1f GB, %.1f GB available", gb(*system.memory_total), gb(*system.memory_available)),
               "more than half is taken by other programs", "ps aux --sort=-rss | head"));
    const int64_t swap = system.swap_total.value_or(0);
    const int64_t used = std::max<int64_t>(0, swap - system.swap_free.value_or(0));
    findings.push_back(
        judged(used > (int64_t{1} << 30), Severity::kWarning, kMemory, "swap",
               printed("%.1f GB, %.1f GB in use", gb(swap), gb(used)),
               "weights that were swapped out are read back at the speed of the disk",
               "end what fills the memory, then: sudo swapoff -a && sudo swapon -a; sudo sysctl vm.swappiness=1"));
}

void examine_nodes(const SystemFacts& system, std::vector<Finding>& findings) {
    int64_t least = INT64_MAX, most = 0;
    std::string sizes;
    for (const MemoryNode& node : system.nodes) {
        sizes += printed("%snode %lld: %.1f GB%s", sizes.empty() ? "" : ", ", static_cast<long long>(node.id),
                         gb(node.total_bytes), node.has_cpus ? "" : " without cores");
        if (!node.has_cpus) continue;
        least = std::min(least, node.total_bytes);
        most = std::max(most, node.total_bytes);
    }
    if (system.nodes.empty()) return;
    findings.push_back(
        judged(most > 0 && least < most / 4 * 3, Severity::kWarning, kMemory, "NUMA nodes", sizes,
               "every node computes its slice of the weights: the smallest memory bounds all, and channels without "
               "modules halve the speed",
               "put the same modules into every channel of every socket (sudo dmidecode -t memory)"));
    if (system.nodes.size() > 1 && system.numa_balancing.value_or(0) > 0)
        findings.push_back({Severity::kNote, kMemory, "NUMA balancing", "on",
                            "the kernel unmaps pages to watch who reads them; weights are already where they are read",
                            "sudo sysctl kernel.numa_balancing=0"});
}

void examine_huge_pages(const SystemFacts& system, std::vector<Finding>& findings) {
    bool reserved = false;
    std::string counts;
    for (const HugePages& pages : system.huge_pages) {
        reserved = reserved || pages.total > 0;
        counts +=
            printed("%s%lld of %lld MiB (%lld free)", counts.empty() ? "" : ", ", static_cast<long long>(pages.total),
                    static_cast<long long>(pages.page_bytes >> 20), static_cast<long long>(pages.free));
    }
    const std::string& defrag = system.thp_defrag;
    findings.push_back(
        judged(system.thp_mode == "never" && !reserved, Severity::kWarning, kMemory, "huge pages",
               "transparent: " + (system.thp_mode.empty() ? "not shown" : system.thp_mode) +
                   (defrag.empty() ? "" : ", defrag: " + defrag),
               "with 4 KiB pages a core reads about 11 % less, and registering memory with CUDA takes longer",
               "echo madvise | sudo tee /sys/kernel/mm/transparent_hugepage/enabled"));
    if (system.thp_mode != "never" && defrag == "never")
        findings.push_back({Severity::kNote, kMemory, "huge pages", "defrag: never",
                            "after days of use few huge pages are left to take",
                            "echo madvise | sudo tee /sys/kernel/mm/transparent_hugepage/defrag"});
    if (!counts.empty())
        findings.push_back(
            {Severity::kOk, kMemory, "reserved pages", reserved ? counts : "none (transparent ones are used)", "", ""});
}

void examine_limits(const HealthFacts& facts, std::vector<Finding>& findings) {
    const SystemFacts& system = facts.system;
    const int64_t ram = system.memory_total.value_or(INT64_MAX);
    const bool cards = !system.cards.empty() || !facts.gpus.found.empty();  // nothing is pinned without
    if (system.memlock_known)
        findings.push_back(judged(
            cards && system.memlock_bytes && *system.memlock_bytes < ram / 2, Severity::kWarning, kMemory,
            "locked memory",
            system.memlock_bytes ? printed("at most %.3f GB (ulimit -l)", gb(*system.memlock_bytes)) : "unlimited",
            "experts that the card reads must stay in place: locking or pinning more than this may be refused",
            "echo '* - memlock unlimited' | sudo tee /etc/security/limits.d/90-memlock.conf and log in anew; "
            "systemd: LimitMEMLOCK=infinity; docker run --ulimit memlock=-1"));
    if (system.cgroup_memory_bytes && *system.cgroup_memory_bytes < ram)
        findings.push_back(
            {Severity::kWarning, kMemory, "cgroup limit", printed("%.1f GB", gb(*system.cgroup_memory_bytes)),
             "weights, pinned buffers and the page cache of the files count against it; over it the process is killed",
             "docker run without --memory; systemd: MemoryMax=infinity; else --memory larger than the model"});
}

bool has_flag(const SystemFacts& system, const char* flag) {
    return std::find(system.cpu_flags.begin(), system.cpu_flags.end(), flag) != system.cpu_flags.end();
}

void examine_isa(const HealthFacts& facts, std::vector<Finding>& findings) {
    std::string missing;
    for (const char* flag : {"avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512_vnni",
                             "avx512_bf16", "avx512_vbmi"})
        if (!has_flag(facts.system, flag)) missing += (missing.empty() ? "" : " ") + std::string(flag);
    const std::string found =
        facts.isa + " kernels" +
        (facts.system.cpu_flags.empty() || missing.empty() ? "" : "; this processor does not show " + missing);
    const std::string virtual_remedy =
        has_flag(facts.system, "hypervisor")
            ? "if the host's processor has them: give the virtual machine its CPU model (qemu: -cpu host)"
            : "";
    if (facts.isa == "scalar")
        findings.push_back({Severity::kWarning, kProcessor, "instructions", found,
                            "without vector instructions experts on the CPU take several times as long",
                            virtual_remedy});
    else if (facts.isa == "avx2")
        findings.push_back(
            {Severity::kNote, kProcessor, "instructions", found,
             "prompts take about twice as long as with AVX-512; generation, bound by memory, much the same",
             virtual_remedy});
    else
        findings.push_back({Severity::kOk, kProcessor, "instructions", found, "", ""});
}

void examine_governor(const SystemFacts& system, std::vector<Finding>& findings) {
    if (system.governors.empty()) {
        findings.push_back({Severity::kOk, kProcessor, "governor",
                            "no frequency control here (virtual machine, or left to firmware)", "", ""});
        return;
    }
    std::string found;
    bool slow = false;
    for (const auto& [name, cpus] : system.governors) {
        found += printed("%s%s on %d CPUs", found.empty() ? "" : ", ", name.c_str(), cpus);
        slow = slow || name != "performance";
    }
    // Drivers that choose the frequency in hardware call "powersave" what is balanced.
    const bool by_hardware = system.frequency_driver == "intel_pstate" || system.frequency_driver == "amd-pstate-epp";
    if (!system.frequency_driver.empty()) found += " (" + system.frequency_driver + ")";
    findings.push_back(
        {!slow         ? Severity::kOk
         : by_hardware ? Severity::kNote
                       : Severity::kWarning,
         kProcessor, "governor", found,
         slow ? "cores that wait for the card between layers fall asleep and wake slowly" : "",
         slow ? "echo performance | sudo tee /sys/devices/system/cpu/cpu*/cpufreq/scaling_governor" : ""});
}

/// First boot parameter that begins so, or "".
std::string parameter(const SystemFacts& system, std::string_view begin) {
    for (const std::string& word : system.boot_parameters)
        if (std::string_view(word).starts_with(begin)) return word;
    return "";
}

struct BootRule {
    const char* begin;
    Severity severity;
    const char* why;
};

constexpr BootRule kBootRules[] = {
    {"numa=off", Severity::kWarning, "all memory looks near: weights are not placed by socket"},
    {"transparent_hugepage=never", Severity::kNote, "huge pages are off from the start (see huge pages)"},
    {"mem=", Severity::kWarning, "memory beyond it is left unused"},
    {"maxcpus=", Severity::kWarning, "cores beyond it are left unused"},
    {"nr_cpus=", Severity::kWarning, "cores beyond it are left unused"},
    {"isolcpus=", Severity::kNote, "workers are bound to cores by number and also take isolated ones"},
    {"pcie_aspm=force", Severity::kNote, "the link to the card sleeps between hand-offs and wakes slowly"},
    {"intel_iommu=on", Severity::kNote, "without iommu=pt every copy to the card is translated"},
    {"iommu=nopt", Severity::kNote, "every copy to the card is translated"},
    {"iommu.passthrough=0", Severity::kNote, "every copy to the card is translated"},
};

void examine_boot(const SystemFacts& system, std::vector<Finding>& findings) {
    size_t before = findings.size();
    for (const BootRule& rule : kBootRules) {
        const std::string word = parameter(system, rule.begin);
        if (word.empty()) continue;
        const bool iommu = std::string_view(rule.begin).find("iommu") != std::string_view::npos;
        if (iommu && (system.cards.empty() || parameter(system, "iommu=pt") == "iommu=pt")) continue;
        findings.push_back(
            {rule.severity, kSystem, "boot parameter", word, rule.why,
             "edit GRUB_CMDLINE_LINUX in /etc/default/grub: " + std::string(iommu ? "add iommu=pt" : "take it out") +
                 ", sudo update-grub && sudo reboot"});
    }
    if (findings.size() == before)
        findings.push_back({Severity::kOk, kSystem, "boot parameters", "none in the way", "", ""});
}

}  // namespace

void examine_memory(const HealthFacts& facts, std::vector<Finding>& findings) {
    examine_ram(facts.system, findings);
    examine_nodes(facts.system, findings);
    examine_huge_pages(facts.system, findings);
    examine_limits(facts, findings);
}

void examine_processor(const HealthFacts& facts, std::vector<Finding>& findings) {
    const SystemFacts& system = facts.system;
    examine_isa(facts, findings);
    examine_governor(system, findings);
    const std::string smt = system.smt.empty() ? "not shown" : system.smt;
    findings.push_back(
        {Severity::kOk, kProcessor, "SMT", smt + (smt == "on" ? " (one worker per core is used)" : ""), "", ""});
    if (system.cgroup_cpus && *system.cgroup_cpus < system.online_cpus)
        findings.push_back(
            {Severity::kWarning, kProcessor, "cgroup limit",
             printed("%.2f of %d CPUs", *system.cgroup_cpus, system.online_cpus),
             "workers over this quota are stopped for tens of milliseconds at a time, in the middle of a layer",
             "give whole cores instead of a quota: docker run --cpuset-cpus 0-15; systemd: AllowedCPUs=0-15, no "
             "CPUQuota; or --threads " +
                 std::to_string(std::max(1, static_cast<int>(*system.cgroup_cpus)))});
}

void examine_system(const HealthFacts& facts, std::vector<Finding>& findings) {
    const SystemFacts& system = facts.system;
    findings.push_back({Severity::kOk, kSystem, "kernel",
                        (system.kernel_release.empty() ? "not shown" : system.kernel_release) +
                            (system.container ? ", in a container" : ""),
                        "", ""});
    if (system.wsl)
        findings.push_back(
            {Severity::kWarning, kSystem, "WSL", "this is Windows' subsystem for Linux",
             "pinned memory is bound to about half of the RAM, and the RAM itself to what Windows grants",
             "in %UserProfile%\\.wslconfig: [wsl2] memory=..., then wsl --shutdown; or boot Linux"});
    if (system.nouveau_loaded && !system.nvidia_driver.empty())
        findings.push_back({Severity::kWarning, kSystem, "nouveau", "loaded beside the NVIDIA driver",
                            "both reach for the same cards",
                            "echo 'blacklist nouveau' | sudo tee /etc/modprobe.d/no-nouveau.conf && sudo "
                            "update-initramfs -u && sudo reboot"});
    examine_boot(system, findings);
}

}  // namespace thermocline::scheduler
