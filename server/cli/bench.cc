// quantd bench: throughput and latency, of a server or of the engine.
#include "server/cli/bench.h"

namespace quantd {

void AddBench(CLI::App& app, Run* run) {
  CLI::App* bench =
      app.add_subcommand("bench", "Measure throughput and latency of a server, or of the engine");
  bench->require_subcommand(1);
  AddBenchServe(*bench, run);
  AddBenchEngine(*bench, run);
}

}  // namespace quantd
