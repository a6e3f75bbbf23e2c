// `bench-machine`: measures this machine and writes its file (configs/machines).
#include "cuda/cuda.h"
#include "scheduler/machine_file.h"
#include "scheduler/machine_speed.h"
#include "scheduler/topology.h"
#include "src/app/commands.h"
#include "src/app/progress.h"
#include "src/app/settings.h"
#include "src/base/error.h"
#include "src/base/file.h"
#include "src/base/json.h"

#include <cstdio>
#include <filesystem>
#include <fstream>
#include <memory>
#include <string>
#include <unistd.h>

namespace thermocline::app {

namespace {

struct MachineFlags {
    std::string output;
    std::string gpus = "all";
    bool json = false;
};

/// configs/machines/HOST.json of the checkout.
std::string default_output() {
    const std::filesystem::path readme = bundled("configs/README.md");
    if (readme.empty()) fail("configs is not above this binary: say with -o FILE where to write");
    const std::filesystem::path folder = readme.parent_path() / "machines";
    std::error_code refused;  // shows when the file is opened
    std::filesystem::create_directory(folder, refused);
    char host[256] = {};
    if (::gethostname(host, sizeof host - 1) != 0) fail("this machine has no name: say with -o FILE where to write");
    return (folder / (std::string(host) + ".json")).string();
}

void print_group(const std::string& name, const scheduler::GroupSpeed& group) {
    std::printf("%-8s read", name.c_str());
    for (const double rate : group.read_gb_per_s) std::printf(" %.1f", rate);
    std::printf(" GB/s%s, write %.1f, copy %.1f GB/s, barrier %.2f us\n",
                group.read_gb_per_s.size() > 1 ? " (1, 2, ... cores)" : "", group.write_gb_per_s, group.copy_gb_per_s,
                group.barrier_us);
}

void print_link(const char* when, const cuda::LinkSpeed& link) {
    std::printf("  link%s: %.1f GB/s to the card, %.1f from it, %.1f both at once\n", when, link.to_device,
                link.to_host, link.both);
}

void print(const scheduler::GpuSpeed& gpu) {
    std::printf("GPU %d    %s, SM %d.%d, %lld MiB at %.1f GB/s read, %s\n", gpu.device.index, gpu.device.name.c_str(),
                gpu.device.compute_major, gpu.device.compute_minor,
                static_cast<long long>(gpu.device.memory_bytes >> 20), gpu.memory_read, gpu.device.pci_address.c_str());
    for (const cuda::HandoffSpeed& handoff : gpu.handoffs)
        if (handoff.us > 0)
            std::printf("  hand-off to the CPU and back by %s: %.2f us\n", cuda::name_of(handoff.way), handoff.us);
        else
            std::printf("  no hand-off by %s: %s\n", cuda::name_of(handoff.way), handoff.why_not.c_str());
    print_link("", gpu.link);
    print_link(" while the CPU reads", gpu.busy_link);
    std::printf("  the CPU reads %.1f GB/s meanwhile\n", gpu.busy_cpu_read);
}

void print(const scheduler::Machine& machine, const scheduler::MachineSpeed& speed, const std::string& why_no_gpu) {
    std::printf("%s, %d cores\n", machine.cpu_model.c_str(), machine.cores());
    for (const scheduler::Cache& cache : machine.caches)
        std::printf("L%-7d %lld KiB, shared by %d cores\n", cache.level, static_cast<long long>(cache.bytes >> 10),
                    cache.cores);
    for (size_t i = 0; i < machine.nodes.size(); ++i) {
        const std::string name = "node " + std::to_string(machine.nodes[i].id);
        if (speed.nodes[i].cores > 0)
            print_group(name, speed.nodes[i]);
        else
            std::printf("%-8s memory without cores\n", name.c_str());
    }
    print_group("all", speed.all);
    for (const scheduler::TierPeak& peak : speed.peaks)
        std::printf("%-12s %-5s %8.1f Gop/s on one core, %8.1f on all\n", peak.isa.c_str(),
                    scheduler::unit_name(peak.unit), peak.one_core, peak.all_cores);
    for (const scheduler::GpuSpeed& gpu : speed.gpus) print(gpu);
    if (speed.gpus.empty()) std::printf("no GPU: %s\n", why_no_gpu.c_str());
}

/// The first N, all or none of the cards.
cuda::Devices wanted_gpus(const std::string& wanted) {
    if (wanted == "none") return {{}, "--gpus none"};
    cuda::Devices devices = cuda::find_devices();
    if (wanted == "all") return devices;
    const size_t count = std::stoul(wanted);
    if (count > devices.found.size())
        fail("--gpus is ", count, ", but this machine shows ", devices.found.size(),
             devices.found.empty() ? ": " + devices.why_none : "");
    devices.found.resize(count);
    return devices;
}

void bench_machine(const MachineFlags& flags) {
    const cuda::Devices gpus = wanted_gpus(flags.gpus);
    const std::string path = flags.output.empty() ? default_output() : flags.output;
    std::ofstream file(path, std::ios::app);  // before seconds are spent; what is there stays until then
    if (!file) fail(printable(path), ": cannot write");
    file.close();
    const scheduler::Machine machine = scheduler::detect_machine();
    Progress progress("bench-machine:", scheduler::measurement_count(machine, gpus.found), "measurements");
    const auto speed = scheduler::measure_machine(machine, gpus.found, [&](int64_t done) { progress.update(done); });
    const Json json = scheduler::machine_json(scheduler::measured_description(machine, speed));
    write_text(path, dump_json(json, 2) + "\n");
    if (flags.json)
        std::printf("%s\n", dump_json(json).c_str());
    else
        print(machine, speed, gpus.why_none);
}

}  // namespace

void add_bench_machine(CLI::App& root) {
    auto flags = std::make_shared<MachineFlags>();
    CLI::App& command =
        *root.add_subcommand("bench-machine", "measures this machine: memory, arithmetic, barriers, graphics cards");
    command.add_option("-o,--output", flags->output, "machine file to write; default: configs/machines/HOST.json");
    command.add_option("--gpus", flags->gpus, "graphics cards to measure: all, none, or how many")
        ->check(CLI::IsMember({"all", "none"}) | CLI::Range(1, 64))
        ->capture_default_str();
    command.add_flag("--json", flags->json, "print the machine file instead of a table");
    command.callback([flags] { bench_machine(*flags); });
}

}  // namespace thermocline::app
