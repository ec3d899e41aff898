// quantd: parses the command line and runs one subcommand. Every failure is one line on stderr.
#include <spdlog/spdlog.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <system_error>

#include "engine/weights/broken_mapping.h"
#include "kernels/status.h"
#include "server/cli/commands.h"
#include "server/log.h"
#include "server/version.h"

namespace {

absl::Status CannotPrint() {
  return quantd::Unavailable("the standard output cannot be written: {}", std::strerror(errno));
}

}  // namespace

int main(int argc, char** argv) {
  // Logs go to stderr, results to stdout. Commands that work in process only warn; serve sets its
  // own level.
  quantd::UseTextLog();
  spdlog::set_level(spdlog::level::warn);

  CLI::App app("quantd: an inference server for quantized language models", "quantd");
  app.set_version_flag("--version", fmt::format("quantd {}", quantd::kVersion));
  app.require_subcommand(1);
  quantd::Run run;
  for (const auto add :
       {quantd::AddServe, quantd::AddGenerate, quantd::AddLogits, quantd::AddTokenize,
        quantd::AddInspect, quantd::AddPlan, quantd::AddEval, quantd::AddBench, quantd::AddValidate,
        quantd::AddKeys, quantd::AddHealth, quantd::AddProfiles, quantd::AddVersion}) {
    add(app, &run);
  }
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& e) {
    if (e.get_exit_code() == 0) return app.exit(e);  // --help
    fmt::print(stderr, "quantd: {} (see quantd --help)\n", e.what());
    return 2;
  }
  quantd::ExitOnBrokenMapping();
  absl::Status status;
  try {
    status = run();
    if (status.ok() && std::fflush(stdout) != 0) status = CannotPrint();
  } catch (const std::system_error&) {  // fmt::print's
    status = CannotPrint();
  }
  if (status.ok()) return 0;
  quantd::LogEnd(status);
  return 1;
}
