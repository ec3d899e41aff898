// The benchmarks of `quantd bench`, one file each. As commands.h's, of a subcommand.
#pragma once

#include "server/cli/commands.h"

namespace quantd {

void AddBenchServe(CLI::App& bench, Run* run);
void AddBenchEngine(CLI::App& bench, Run* run);

}  // namespace quantd
