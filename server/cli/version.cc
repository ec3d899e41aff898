// quantd version
#include "server/version.h"

#include <fmt/format.h>

#include <cstdio>

#include "server/cli/commands.h"

namespace quantd {

void AddVersion(CLI::App& app, Run* run) {
  app.add_subcommand("version", "Print the version")->callback([run] {
    *run = [] {
      fmt::print("quantd {}\n", kVersion);
      return absl::OkStatus();
    };
  });
}

}  // namespace quantd
