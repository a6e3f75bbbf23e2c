// The subcommands: each declares its flags on the parser and registers what to run. main.cpp lists them.
#pragma once

#include <CLI/CLI.hpp>

namespace thermocline::app {

void add_run(CLI::App& root);
void add_serve(CLI::App& root);
void add_score(CLI::App& root);
void add_perplexity(CLI::App& root);
void add_inspect(CLI::App& root);
void add_convert(CLI::App& root);
void add_bench(CLI::App& root);
void add_bench_machine(CLI::App& root);
void add_doctor(CLI::App& root);
void add_plan(CLI::App& root);
void add_profile(CLI::App& root);
void add_place(CLI::App& root);

}  // namespace thermocline::app
