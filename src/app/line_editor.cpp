#include "src/app/line_editor.h"

#include <cstdlib>
#include <editline/readline.h>
#include <iostream>
#include <unistd.h>

namespace thermocline::app {

std::optional<std::string> read_line(const std::string& prompt) {
    std::string line;
    if (::isatty(STDIN_FILENO) != 1 || ::isatty(STDOUT_FILENO) != 1) {
        if (!std::getline(std::cin, line)) return std::nullopt;
        return line;
    }
    char* typed = ::readline(prompt.c_str());
    if (typed == nullptr) return std::nullopt;
    line = typed;
    std::free(typed);
    if (!line.empty()) ::add_history(line.c_str());
    return line;
}

}  // namespace thermocline::app
