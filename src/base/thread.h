// Where threads run.
#pragma once

namespace thermocline {

/// Keeps the calling thread on one logical CPU. One that does not exist or is not ours (cgroups) is no error: the
/// thread then runs where the system puts it.
void pin_this_thread(int cpu);

}  // namespace thermocline
