// thermocline: one binary, one subcommand each (shared/design/cli.md). Exit status: 0 done, 1 the run failed (one line
// on stderr), 2 wrong usage; 3 `doctor` has warnings.
#include "src/app/commands.h"
#include "src/app/settings.h"
#include "src/base/error.h"

#include <algorithm>
#include <cstdio>
#include <new>
#include <string>
#include <vector>

namespace {

constexpr int kFailed = 1, kUsage = 2;

int report(const std::string& reason) {
    std::fprintf(stderr, "thermocline: %s\n", reason.c_str());
    return kFailed;
}

}  // namespace

int main(int argc, char** argv) {
    using namespace thermocline;
    CLI::App root("Serves mixture-of-experts language models on one workstation.", "thermocline");
    root.require_subcommand(1);
    root.set_version_flag("--version", "thermocline 0.1.0");
    root.option_defaults()->multi_option_policy(CLI::MultiOptionPolicy::TakeLast);
    app::add_run(root);
    app::add_serve(root);
    app::add_score(root);
    app::add_perplexity(root);
    app::add_inspect(root);
    app::add_convert(root);
    app::add_bench(root);
    app::add_bench_machine(root);
    app::add_doctor(root);
    app::add_plan(root);
    app::add_profile(root);
    app::add_place(root);
    try {
        auto arguments = app::with_config_file({argv + 1, argv + argc});
        std::reverse(arguments.begin(), arguments.end());  // CLI11 takes its arguments from the back
        root.parse(std::move(arguments));
    } catch (const CLI::RuntimeError& status) {
        return status.get_exit_code();
    } catch (const CLI::ParseError& error) {
        const int status = root.exit(error);
        return status == 0 ? 0 : kUsage;
    } catch (const Error& error) {
        return report(error.what());
    } catch (const std::bad_alloc&) {
        return report("out of memory");
    }
    return 0;
}
