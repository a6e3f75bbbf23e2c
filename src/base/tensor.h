// Shapes of tensors as files declare them. Owns nothing but the numbers.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace thermocline {

using Shape = std::vector<int64_t>;

/// Product of the dimensions; nothing if one is negative or the product leaves int64.
inline std::optional<int64_t> element_count(const Shape& shape) {
    int64_t count = 1;
    for (const int64_t dimension : shape) {
        if (dimension < 0) return std::nullopt;
        if (__builtin_mul_overflow(count, dimension, &count)) return std::nullopt;
    }
    return count;
}

/// "[256, 4096]"
inline std::string to_string(const Shape& shape) {
    std::string text = "[";
    for (size_t i = 0; i < shape.size(); ++i) text += (i ? ", " : "") + std::to_string(shape[i]);
    return text + "]";
}

}  // namespace thermocline
