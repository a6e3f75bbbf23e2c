// Runs one request on the engine and prints what comes, token by token: what `run` does with a prompt and with every
// turn of a chat.
#pragma once

#include "src/engine/assemble.h"
#include "src/engine/output.h"

#include <memory>
#include <string>

namespace thermocline::app {

/// Ctrl-C: the first one ends the generation that is running, one while none is running ends the program.
class Interrupt {
public:
    /// True once after a Ctrl-C.
    static bool taken();
    /// While true, Ctrl-C is noted; else it ends the program.
    static void catch_signals(bool on);
};

struct Generated {
    text::ParsedOutput output;
    engine::Result result;
};

/// Streams to stdout: content as it is, reasoning dimmed on a terminal, tool calls as a note. Throws Error if the
/// engine refuses or fails.
Generated generate(engine::Assembly& assembly, engine::Request request, std::unique_ptr<engine::Output> output);

/// "prompt 12 tokens (4 cached), 80.1 tok/s | output 40 tokens, 25.0 tok/s, 9.1 GB/s = 41 % of 22.3 GB/s"
std::string speed_line(const engine::Statistics& statistics, double bandwidth_gb_per_s);

/// "experts: 71 % of the choices on the card; a token reads 12.3 MB there, 4.5 MB in host memory, 0.8 MB over the link,
/// busy 15.2 us; CPU 31.0 us a layer, 4.2 us not hidden"; empty without a card.
std::string expert_line(const engine::ExpertUse& use);

}  // namespace thermocline::app
