// Which kernel table this process uses. Asked once, at start.
#include "cpu/isa/tables.h"
#include "cpu/kernels.h"
#include "src/base/error.h"

#include <cpuid.h>
#include <cstdlib>
#include <iterator>
#include <string>
#include <string_view>
#include <sys/syscall.h>
#include <unistd.h>

namespace thermocline::cpu {
namespace {

bool always() { return true; }

/// clang's __builtin_cpu_supports does not know it.
bool has_f16c() {
    unsigned a = 0, b = 0, c = 0, d = 0;
    return __get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C);
}

bool has_avx2() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c(); }

bool has_avx512() {
    return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512vnni");
}

bool has_avx512_bf16() {
    return has_avx512() && __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512vbmi");
}

/// Tiles are large: Linux saves them for processes that asked once.
bool has_amx() {
    constexpr int kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
    constexpr unsigned kBf16 = 1u << 22, kTile = 1u << 24, kInt8 = 1u << 25;
    unsigned a = 0, b = 0, c = 0, d = 0;
    return has_avx512_bf16() && __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d & kBf16) && (d & kTile) && (d & kInt8) &&
           ::syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}

struct Tier {
    const KernelTable* table;
    bool (*runs_here)();
};

// Best last.
constexpr Tier kTiers[] = {
    {&kScalarKernels, always},     {&kAvx2Kernels, has_avx2},
    {&kAvx512Kernels, has_avx512}, {&kAvx512Bf16Kernels, has_avx512_bf16},
    {&kAmxKernels, has_amx},
};

}  // namespace

int tier_count() { return static_cast<int>(std::size(kTiers)); }

const KernelTable* tier_kernels(int tier) { return kTiers[tier].runs_here() ? kTiers[tier].table : nullptr; }

const KernelTable* find_kernels(const char* isa) {
    for (const Tier& tier : kTiers) {
        if (std::string_view(tier.table->name) == isa) return tier.runs_here() ? tier.table : nullptr;
    }
    return nullptr;
}

const KernelTable& select_kernels(const char* isa) {
    std::string name = isa;
    if (name == "auto") {
        const char* wanted = std::getenv("THERMOCLINE_ISA");
        if (wanted && *wanted) name = wanted;
    }
    const KernelTable* best = nullptr;
    std::string known;
    for (const Tier& tier : kTiers) {
        known += std::string(known.empty() ? "" : ", ") + tier.table->name;
        if (!tier.runs_here()) continue;
        best = tier.table;
        if (name == tier.table->name) return *tier.table;
    }
    if (name == "auto") return *best;
    for (const Tier& tier : kTiers) {
        if (name == tier.table->name)
            fail("--isa ", name, ": this processor does not have it, the best here is ", best->name);
    }
    fail("--isa ", printable(name), ": unknown, expected auto, ", known);
}

}  // namespace thermocline::cpu
