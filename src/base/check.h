// Programmer errors: CHECK aborts with file, line and the broken condition. Never used on data that a file or a
// client can influence; those throw Error (src/base/error.h).
#pragma once

#include <cstdio>
#include <cstdlib>

namespace thermocline {

[[noreturn]] inline void check_failed(const char* file, int line, const char* condition) {
    std::fprintf(stderr, "%s:%d: CHECK(%s) failed\n", file, line, condition);
    std::abort();
}

}  // namespace thermocline

#define CHECK(condition) \
    ((condition) ? static_cast<void>(0) : ::thermocline::check_failed(__FILE__, __LINE__, #condition))

#ifdef NDEBUG
#define DCHECK(condition) static_cast<void>(0)
#else
#define DCHECK(condition) CHECK(condition)
#endif
