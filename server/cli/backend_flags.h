// AddBackendFlags: --backend, --determinism and --threads of the commands that run a model in
// process.
#pragma once

#include <CLI/CLI.hpp>

#include "server/backends.h"

namespace quantd {

inline constexpr char kBackendHelp[] =
    "auto, cuda, cpu or ref; cuda-emulated, for tests, where it is built in";
inline constexpr char kDeterminismHelp[] =
    "default, or batch_invariant: cuda's results do not depend on the batch, for some speed";

/// `flags` must live as long as `command`; `excludes` is an option that makes them senseless.
inline void AddBackendFlags(CLI::App& command, BackendOptions& flags,
                            CLI::Option* excludes = nullptr) {
  CLI::Option* const options[] = {
      command.add_option("--backend", flags.name, kBackendHelp),
      command.add_option("--determinism", flags.determinism, kDeterminismHelp),
      command
          .add_option("--threads", flags.threads,
                      "Threads of the cpu backend; 0: as many as allowed")
          ->check(CLI::Range(0, 1024))};
  if (excludes == nullptr) return;
  for (CLI::Option* option : options) option->excludes(excludes);
}

}  // namespace quantd
