// The subcommands of `quantd`, one file each. An Add function declares its options on the app and,
// when its subcommand is the one given, leaves what to do in `*run`. Exit codes: 0 for OK, 1 for
// any other status; wrong usage is main's (2).
#pragma once

#include <CLI/CLI.hpp>
#include <functional>

#include "absl/status/status.h"

namespace quantd {

using Run = std::function<absl::Status()>;

void AddServe(CLI::App& app, Run* run);
void AddGenerate(CLI::App& app, Run* run);
void AddLogits(CLI::App& app, Run* run);
void AddTokenize(CLI::App& app, Run* run);
void AddInspect(CLI::App& app, Run* run);
void AddPlan(CLI::App& app, Run* run);
void AddEval(CLI::App& app, Run* run);
void AddBench(CLI::App& app, Run* run);
void AddValidate(CLI::App& app, Run* run);
void AddKeys(CLI::App& app, Run* run);
void AddHealth(CLI::App& app, Run* run);
void AddProfiles(CLI::App& app, Run* run);
void AddVersion(CLI::App& app, Run* run);

}  // namespace quantd
