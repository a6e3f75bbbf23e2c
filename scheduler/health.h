// What `doctor` thinks of a machine: findings as a pure function of facts, each with what was found, why it matters
// and the remedy as a command or setting that a person can paste. The thresholds are planning values of
// shared/design/hybrid-engine.md; nothing is measured here (`bench-machine` does).
#pragma once

#include "cuda/cuda.h"
#include "scheduler/system_facts.h"
#include "src/base/json.h"

#include <cstdint>
#include <string>
#include <vector>

namespace thermocline::scheduler {

enum class Severity : uint8_t {
    kOk,
    kNote,     ///< worth knowing, nothing to mend or a matter of taste
    kWarning,  ///< works, slower or with less memory than this machine could
    kError,    ///< a part of this machine cannot be used as it is
};

struct Finding {
    Severity severity;
    std::string group, check;  // "Memory", "huge pages"
    std::string found;
    std::string why;     // "" when all is well
    std::string remedy;  // "" when there is none
};

struct HealthFacts {
    SystemFacts system;
    cuda::Devices gpus;
    std::string cuda_built_with;  // version of nvcc, "13.0.88"; "": built without CUDA
    std::string isa;              // best tier that runs here
};

/// Grouped, in the order in which they are shown.
std::vector<Finding> examine(const HealthFacts& facts);

/// kOk of none.
Severity worst_of(const std::vector<Finding>& findings);

/// "ok", "note", "warning", "error".
const char* severity_name(Severity severity);

/// For people: by group, a line each, why and remedy below. `colour`: with escape sequences of terminals.
std::string findings_text(const std::vector<Finding>& findings, bool colour);
/// {"worst": SEVERITY, "findings": [{"severity", "group", "check", "found", "why", "remedy"}]}
Json findings_json(const std::vector<Finding>& findings);

/// The parts of examine(), appending to `findings`.
void examine_gpus(const HealthFacts& facts, std::vector<Finding>& findings);
void examine_memory(const HealthFacts& facts, std::vector<Finding>& findings);
void examine_processor(const HealthFacts& facts, std::vector<Finding>& findings);
void examine_system(const HealthFacts& facts, std::vector<Finding>& findings);

}  // namespace thermocline::scheduler
