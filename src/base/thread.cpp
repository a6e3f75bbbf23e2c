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

void name_this_thread(const std::string& name) { pthread_setname_np(pthread_self(), name.c_str()); }

Pinned::Pinned(int cpu) : pinned_(cpu >= 0 && pthread_getaffinity_np(pthread_self(), sizeof before_, &before_) == 0) {
    if (pinned_) pin_this_thread(cpu);
}

Pinned::~Pinned() {
    if (pinned_) pthread_setaffinity_np(pthread_self(), sizeof before_, &before_);
}

}  // namespace thermocline
