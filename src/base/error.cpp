#include "src/base/error.h"

#include <cstdio>

namespace thermocline {

std::string printable(std::string_view text, size_t limit) {
    std::string out;
    for (size_t i = 0; i < text.size() && i < limit; ++i) {
        const auto byte = static_cast<unsigned char>(text[i]);
        if (byte < 0x20 || byte == 0x7f) {
            char escaped[8];
            std::snprintf(escaped, sizeof escaped, "\\x%02x", byte);
            out += escaped;
        } else {
            out += text[i];
        }
    }
    if (text.size() > limit) out += "...";
    return out;
}

}  // namespace thermocline
