// Whether the job of some workers goes on. One that does not, because a thread hangs in the kernel or its core is gone,
// would keep its caller waiting for ever: nothing that the thread may still touch can be taken from under it, so the
// job cannot be called off.
#pragma once

#include "cpu/workers.h"
#include "src/base/end_process.h"
#include "src/base/stall_watch.h"

#include <chrono>
#include <functional>
#include <string>

namespace thermocline::cpu {

class WorkerWatch {
public:
    /// Calls `on_stuck` with a sentence, once, when no worker has gone on for `patience` (0: never) though a job is
    /// under way.
    WorkerWatch(const Workers& workers, std::chrono::milliseconds patience,
                std::function<void(const std::string&)> on_stuck = end_process);

private:
    StallWatch watch_;
};

}  // namespace thermocline::cpu
