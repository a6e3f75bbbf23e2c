#include "src/base/thread.h"

#include <pthread.h>
#include <sched.h>

namespace thermocline {

void pin_this_thread(int cpu) {
    cpu_set_t set;
    CPU_ZERO(&set);
    if (cpu < 0 || cpu >= CPU_SETSIZE) return;
    CPU_SET(static_cast<size_t>(cpu), &set);
    pthread_setaffinity_np(pthread_self(), sizeof set, &set);
}

}  // namespace thermocline
