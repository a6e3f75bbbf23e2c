// Findings about graphics cards: driver, code for their SM version, link, NUMA node.
#include "cuda/remedies.h"
#include "scheduler/health.h"
#include "scheduler/printed.h"

#include <algorithm>
#include <array>

namespace thermocline::scheduler {

namespace {

constexpr const char* kGroup = "Graphics cards";
constexpr int64_t kFirstBlackwellId = 0x2900;  // PCI device ids of GB1xx and GB2xx begin here
constexpr int kFirstBlackwellDriver = 570;

/// 580 of "580.95.05"; 0 if it is no version.
int major_of(const std::string& version) {
    int major = 0;
    for (const char c : version) {
        if (c < '0' || c > '9' || major > 99999) break;
        major = major * 10 + (c - '0');
    }
    return major;
}

/// The oldest driver branch that runs programs of a CUDA major version; 0: not known.
int oldest_driver(int cuda_major) { return cuda_major == 12 ? 525 : cuda_major == 13 ? 580 : 0; }

/// PCIe generation of a rate; 0: not known.
int generation(double gt_per_s) {
    constexpr std::array<double, 6> kRates = {2.5, 5.0, 8.0, 16.0, 32.0, 64.0};
    for (size_t i = 0; i < kRates.size(); ++i)
        if (gt_per_s > kRates[i] * 0.99 && gt_per_s < kRates[i] * 1.01) return static_cast<int>(i) + 1;
    return 0;
}

std::string link_text(const PciLink& link) {
    std::string text = "generation ";
    const int number = link.gt_per_s ? generation(*link.gt_per_s) : 0;
    text += number > 0 ? std::to_string(number) : "unknown";
    return text + " x" + (link.lanes ? std::to_string(*link.lanes) : "?");
}

/// GB/s in one direction after the line code; 0: not known.
double link_rate(const PciLink& link) {
    if (!link.gt_per_s || !link.lanes) return 0.0;
    const double coded = *link.gt_per_s < 6.0 ? 8.0 / 10.0 : 128.0 / 130.0;
    return *link.gt_per_s * coded * static_cast<double>(*link.lanes) / 8.0;
}

template <typename Number>
std::optional<Number> smaller(const std::optional<Number>& a, const std::optional<Number>& b) {
    return a && b ? std::min(*a, *b) : a ? a : b;
}

void examine_driver(const HealthFacts& facts, std::vector<Finding>& findings) {
    const SystemFacts& system = facts.system;
    const std::string& version = system.nvidia_driver;
    const auto add = [&](Severity severity, std::string found, std::string why, std::string remedy) {
        findings.push_back({severity, kGroup, "driver", std::move(found), std::move(why), std::move(remedy)});
    };
    if (version.empty()) {
        if (system.nouveau_loaded)
            add(Severity::kError, "nouveau holds the card, the NVIDIA driver is not loaded",
                "nouveau has no CUDA, and while it is loaded the NVIDIA driver cannot be",
                "printf 'blacklist nouveau\\noptions nouveau modeset=0\\n' | sudo tee /etc/modprobe.d/no-nouveau.conf "
                "&& "
                "sudo update-initramfs -u && sudo reboot, then install the NVIDIA driver (package nvidia-open)");
        else if (!system.wsl)  // there the driver is that of Windows
            add(Severity::kError, "not loaded", "without it the card cannot be used",
                "sudo apt install nvidia-open (580 or newer, from NVIDIA's repository) && sudo reboot; if it is "
                "installed: sudo modprobe nvidia, sudo dmesg | grep -i nvrm");
        return;
    }
    const std::string flavour = system.nvidia_open_module ? ", open kernel module" : "";
    const std::string built =
        facts.cuda_built_with.empty() ? "" : "; this binary was built with CUDA " + facts.cuda_built_with;
    const std::string found = version + flavour + built;
    const bool blackwell = std::any_of(system.cards.begin(), system.cards.end(),
                                       [](const PciCard& card) { return card.device_id >= kFirstBlackwellId; });
    const int needed = std::max(oldest_driver(major_of(facts.cuda_built_with)), blackwell ? kFirstBlackwellDriver : 0);
    if (const int major = major_of(version); major > 0 && major < needed)
        add(Severity::kError, found, "this binary or this card needs driver " + std::to_string(needed) + " or newer",
            "install a driver of " + std::to_string(needed) + " or newer: sudo apt install nvidia-open && sudo reboot");
    else if (blackwell && !system.nvidia_open_module && facts.gpus.found.empty())
        add(Severity::kError, found + ", proprietary kernel module",
            "Blackwell cards run with the open kernel module only", "sudo apt install nvidia-open && sudo reboot");
    else
        add(Severity::kOk, found, "", "");
}

/// Whether CUDA shows what the bus shows.
void examine_cuda(const HealthFacts& facts, std::vector<Finding>& findings) {
    const auto add = [&](std::string found, std::string why, std::string remedy) {
        findings.push_back({Severity::kError, kGroup, "CUDA", std::move(found), std::move(why), std::move(remedy)});
    };
    if (!facts.gpus.found.empty()) return;
    if (facts.cuda_built_with.empty())
        add(facts.gpus.why_none, "this binary computes on the CPU alone",
            "install the CUDA toolkit 12.9 or newer, then: cmake --preset release && cmake --build --preset release");
    else if (!facts.system.nvidia_driver.empty() && !facts.system.nvidia_device_nodes)
        add("the driver is loaded, but /dev/nvidiactl is missing", "without it CUDA finds no card",
            facts.system.container ? "start the container with: docker run --gpus all ... (NVIDIA Container Toolkit)"
                                   : "sudo nvidia-modprobe -u -c=0");
    else if (!facts.system.nvidia_driver.empty())
        add(facts.gpus.why_none, "a card is on the bus, but CUDA shows none",
            "nvidia-smi; sudo dmesg | grep -i -e nvrm -e xid; after an update of the driver: sudo reboot; unset "
            "CUDA_VISIBLE_DEVICES");
}

void examine_code(const cuda::DeviceInfo& gpu, const std::string& name, std::vector<Finding>& findings) {
    const std::string target = cuda::kernel_target(gpu.compute_major, gpu.compute_minor);
    const std::string found = printed("%.80s, SM %d.%d, %.1f GB", gpu.name.c_str(), gpu.compute_major,
                                      gpu.compute_minor, static_cast<double>(gpu.memory_bytes) * 1e-9);
    if (target.empty())
        findings.push_back({Severity::kError, kGroup, name, found + ": no kernels for it",
                            std::string("this binary carries ") + cuda::kTargets + " only", cuda::kNoCodeRemedy});
    else
        findings.push_back({Severity::kOk, kGroup, name, found + ", runs the " + target + " kernels", "", ""});
}

void examine_link(const PciCard& card, const std::string& name, std::vector<Finding>& findings) {
    const auto add = [&](Severity severity, std::string found, std::string why, std::string remedy) {
        findings.push_back({severity, kGroup, name + " link", std::move(found), std::move(why), std::move(remedy)});
    };
    if (!card.now.lanes && !card.now.gt_per_s) {
        add(Severity::kNote, "not shown (virtual machine?)", "its rate is known only by measuring",
            "thermocline bench-machine");
        return;
    }
    // What card and slot could agree on, and what the card could in the best slot.
    const PciLink best{smaller(card.card_most.gt_per_s, card.slot_most.gt_per_s),
                       smaller(card.card_most.lanes, card.slot_most.lanes)};
    const std::string now = link_text(card.now);
    const std::string rate = printed(" (%.1f GB/s at most)", link_rate(best));
    const std::string why = "missing experts, prompts and hand-offs cross this link";
    if (card.now.lanes && card.card_most.lanes && *card.now.lanes < *card.card_most.lanes)
        add(Severity::kWarning, now + ", the card can x" + std::to_string(*card.card_most.lanes), why,
            "put the card into a x" + std::to_string(*card.card_most.lanes) +
                " slot that shares no lanes (bifurcation, M.2) and seat it anew; without a riser cable");
    else if (card.slot_most.gt_per_s && card.card_most.gt_per_s && *card.slot_most.gt_per_s < *card.card_most.gt_per_s)
        add(Severity::kWarning,
            now + ", the slot can " + link_text(card.slot_most) + ", the card " + link_text(card.card_most) + rate, why,
            "firmware setup: PCIe link speed of the slot to Auto; else another slot or board");
    else if (card.now.gt_per_s && best.gt_per_s && *card.now.gt_per_s < *best.gt_per_s)
        add(Severity::kNote, now + ", up to " + link_text(best) + rate,
            "an idle card lowers its rate, under load it should rise; if it does not, look at riser and firmware",
            "thermocline bench-machine (measures the link under load)");
    else
        add(Severity::kOk, now + rate, "", "");
}

void examine_node(const HealthFacts& facts, const PciCard& card, const std::string& name,
                  std::vector<Finding>& findings) {
    const std::vector<MemoryNode>& nodes = facts.system.nodes;
    if (nodes.size() < 2) return;  // one memory is near to everything
    const auto add = [&](Severity severity, std::string found, std::string why, std::string remedy) {
        findings.push_back(
            {severity, kGroup, name + " NUMA node", std::move(found), std::move(why), std::move(remedy)});
    };
    if (!card.numa_node) {
        add(Severity::kNote, "the firmware does not say", "buffers for the card may lie on the far socket",
            "firmware setup: enable ACPI SRAT / \"NUMA nodes per socket\"; in a virtual machine give the card's node "
            "to it");
        return;
    }
    const auto node =
        std::find_if(nodes.begin(), nodes.end(), [&](const MemoryNode& n) { return n.id == *card.numa_node; });
    const std::string found = "node " + std::to_string(*card.numa_node) + " of " + std::to_string(nodes.size());
    if (node == nodes.end() || node->total_bytes == 0)
        add(Severity::kWarning, found + ", which has no memory", "every copy to the card crosses between sockets",
            "put memory modules into the channels of that socket, or the card into a slot of the other");
    else
        add(Severity::kOk, found, "", "");
}

bool same_address(const std::string& a, const std::string& b) {
    const auto lower = [](char c) { return c >= 'A' && c <= 'F' ? static_cast<char>(c + 32) : c; };
    return std::equal(a.begin(), a.end(), b.begin(), b.end(), [&](char x, char y) { return lower(x) == lower(y); });
}

}  // namespace

void examine_gpus(const HealthFacts& facts, std::vector<Finding>& findings) {
    const SystemFacts& system = facts.system;
    if (system.cards.empty() && facts.gpus.found.empty()) {
        findings.push_back({Severity::kNote, kGroup, "cards", "none of NVIDIA on the PCI bus",
                            "everything is computed on the CPU", ""});
        return;
    }
    examine_driver(facts, findings);
    examine_cuda(facts, findings);
    for (const cuda::DeviceInfo& gpu : facts.gpus.found)
        examine_code(gpu, "GPU " + std::to_string(gpu.index), findings);
    for (const PciCard& card : system.cards) {
        const auto gpu = std::find_if(
            facts.gpus.found.begin(), facts.gpus.found.end(),
            [&](const cuda::DeviceInfo& device) { return same_address(device.pci_address, card.address); });
        const std::string name = gpu != facts.gpus.found.end() ? "GPU " + std::to_string(gpu->index) : card.address;
        if (card.kernel_driver.starts_with("vfio"))
            findings.push_back({Severity::kNote, kGroup, name,
                                "held by " + card.kernel_driver + ", passed to a virtual machine",
                                "this system cannot use it", "run thermocline in that virtual machine"});
        examine_link(card, name, findings);
        examine_node(facts, card, name, findings);
    }
}

}  // namespace thermocline::scheduler
