// quantd profiles: the profiles there are, and what one of them really says.
#include <cstdio>
#include <memory>
#include <string>

#include "engine/weights/profile.h"
#include "kernels/status.h"
#include "server/cli/commands.h"

namespace quantd {
namespace {

absl::Status RunProfiles(const std::string& name) {
  if (!name.empty()) {
    ASSIGN_OR_RETURN(const QuantProfile profile, LoadProfile(name));
    fmt::print("{}# hash: {}\n", profile.ToYaml(), profile.Hash());
    return absl::OkStatus();
  }
  for (const std::string& known : BuiltInProfiles()) {
    ASSIGN_OR_RETURN(const QuantProfile profile, LoadProfile(known));
    fmt::print("{:<20} {}\n", known, profile.description);
  }
  return absl::OkStatus();
}

}  // namespace

void AddProfiles(CLI::App& app, Run* run) {
  auto name = std::make_shared<std::string>();
  CLI::App* cmd =
      app.add_subcommand("profiles", "List the built-in profiles, or print one with every default");
  cmd->add_option("profile,--show", *name, "A profile's name or a YAML file");
  cmd->callback([name, run] { *run = [name] { return RunProfiles(*name); }; });
}

}  // namespace quantd
