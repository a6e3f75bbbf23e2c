// The ISA units are compiled for processors that may not be there. A weak symbol (an inline function, a template) that
// such a unit emitted could be the copy that the linker picks for the whole program; so nothing but its table may
// leave a unit.
#include <cstdio>
#include <gtest/gtest.h>
#include <map>
#include <memory>
#include <string>
#include <vector>

namespace thermocline::cpu {
namespace {

/// Defined symbols that other units can see, by object file of the library.
std::map<std::string, std::vector<std::string>> exported_symbols(const std::string& library) {
    std::map<std::string, std::vector<std::string>> symbols;
    const std::unique_ptr<FILE, int (*)(FILE*)> pipe(popen(("nm -C --defined-only '" + library + "'").c_str(), "r"),
                                                     pclose);
    if (!pipe) return symbols;
    std::string object;
    char buffer[4096];
    while (std::fgets(buffer, sizeof buffer, pipe.get())) {
        std::string line = buffer;
        while (!line.empty() && line.back() == '\n') line.pop_back();
        if (line.size() > 3 && line.ends_with(".o:")) {
            object = line.substr(0, line.size() - 1);
            symbols[object];
        } else if (line.size() > 19) {
            // address, blank, type, blank, name; lower-case types are local, except weak and unique ones
            const char type = line[17];
            const bool local = type == 't' || type == 'r' || type == 'd' || type == 'b' || type == 'n';
            if (!local) symbols[object].push_back(line.substr(17));
        }
    }
    return symbols;
}

TEST(IsaSymbols, NothingButTheTableLeavesAnIsaUnit) {
    const std::map<std::string, std::string> tables = {
        {"scalar.cpp.o", "kScalarKernels"},          {"avx2.cpp.o", "kAvx2Kernels"}, {"avx512.cpp.o", "kAvx512Kernels"},
        {"avx512_bf16.cpp.o", "kAvx512Bf16Kernels"}, {"amx.cpp.o", "kAmxKernels"},
    };
    const auto symbols = exported_symbols(CPU_LIBRARY);
    for (const auto& [object, table] : tables) {
        const auto found = symbols.find(object);
        ASSERT_NE(found, symbols.end()) << object << " is not in " << CPU_LIBRARY;
        int own = 0;
        for (const std::string& symbol : found->second) {
            if (symbol.ends_with("thermocline::cpu::" + table)) {
                ++own;
            } else if (symbol.find("asan") == std::string::npos && symbol.find("tsan") == std::string::npos &&
                       symbol.find("ubsan") == std::string::npos) {
                ADD_FAILURE() << object << " exports " << symbol;
            }
        }
        EXPECT_EQ(own, 1) << object;
    }
}

}  // namespace
}  // namespace thermocline::cpu
