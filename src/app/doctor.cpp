// `doctor`: looks at this machine and says what stands in the way and how to mend it. Measures nothing.
#include "cpu/kernels.h"
#include "cuda/cuda.h"
#include "scheduler/health.h"
#include "src/app/commands.h"
#include "src/base/error.h"
#include "src/base/json.h"

#include <algorithm>
#include <cstdio>
#include <memory>
#include <string>
#include <unistd.h>

namespace thermocline::app {

namespace {

using scheduler::Severity;

constexpr int kWarnings = 3;  // exit status

struct DoctorFlags {
    bool json = false;
};

std::string best_tier() {
    std::string best;
    for (int tier = 0; tier < cpu::tier_count(); ++tier)
        if (const cpu::KernelTable* kernels = cpu::tier_kernels(tier)) best = kernels->name;
    return best;
}

void doctor(const DoctorFlags& flags) {
    const auto findings = scheduler::examine(
        {scheduler::read_system_facts("/"), cuda::find_devices(), THERMOCLINE_CUDA_VERSION, best_tier()});
    const std::string text = flags.json ? dump_json(scheduler::findings_json(findings), 2) + "\n"
                                        : scheduler::findings_text(findings, ::isatty(STDOUT_FILENO) != 0);
    std::fwrite(text.data(), 1, text.size(), stdout);
    const auto errors = std::count_if(findings.begin(), findings.end(),
                                      [](const scheduler::Finding& f) { return f.severity == Severity::kError; });
    if (errors > 0)
        fail("doctor: ", errors, errors == 1 ? " error, a part" : " errors, parts", " of this machine cannot be used");
    if (scheduler::worst_of(findings) == Severity::kWarning) throw CLI::RuntimeError(kWarnings);
}

}  // namespace

void add_doctor(CLI::App& root) {
    auto flags = std::make_shared<DoctorFlags>();
    CLI::App& command = *root.add_subcommand(
        "doctor", "checks driver, cards, PCIe, NUMA, huge pages, limits, governor, kernels; says how to mend each");
    command.add_flag("--json", flags->json, "print one JSON document");
    command.footer(
        "Exit status: 0 nothing above a note, 1 an error (a part of the machine cannot be used), 3 warnings only "
        "(everything works, slower than it could).");
    command.callback([flags] { doctor(*flags); });
}

}  // namespace thermocline::app
