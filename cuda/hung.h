// A card that hangs: its work does not end, and nothing that it may still touch can be freed.
#pragma once

#include "cuda/device.h"
#include "cuda/remedies.h"
#include "src/base/end_process.h"
#include "src/base/error.h"

#include <chrono>
#include <string>

namespace thermocline::cuda {

/// For the work that a stream has left when it is no longer needed.
inline constexpr std::chrono::minutes kEndPatience(1);

/// False if the work of the stream takes longer. Throws Error if the card is lost.
inline bool ends_within(Stream& stream, std::chrono::milliseconds limit) {
    try {
        stream.wait(limit);
        return true;
    } catch (const Error&) {
        return stream.finished();
    }
}

/// Ends the process, saying that the card has not done its work for so long.
[[noreturn]] inline void end_hung(int index, std::chrono::milliseconds waited) {
    end_process("GPU " + std::to_string(index) + " hangs: what was asked of it has not ended for " +
                std::to_string(waited.count()) + " ms. " + kHungRemedy);
}

}  // namespace thermocline::cuda
