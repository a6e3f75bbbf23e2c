// Where threads run.
#pragma once

#include <sched.h>
#include <string>

namespace thermocline {

/// Keeps the calling thread on one logical CPU. One that does not exist or is not ours (cgroups) is no error: the
/// thread then runs where the system puts it.
void pin_this_thread(int cpu);

/// What the system's tools call the calling thread; at most 15 characters.
void name_this_thread(const std::string& name);

/// Keeps the thread that makes it on one logical CPU while it lives; then the thread may run where it could before.
/// cpu < 0: nothing happens. Made and destroyed by the same thread.
class Pinned {
public:
    explicit Pinned(int cpu);
    ~Pinned();
    Pinned(const Pinned&) = delete;
    Pinned& operator=(const Pinned&) = delete;

private:
    cpu_set_t before_;
    bool pinned_;
};

}  // namespace thermocline
