// quantd: parses the command line and runs one subcommand. Every failure is one line on stderr.
#include <spdlog/sinks/stdout_color_sinks.h>
#include <spdlog/spdlog.h>

#include <string>

#include "engine/text/utf8.h"
#include "engine/weights/broken_mapping.h"
#include "kernels/status.h"
#include "server/cli/commands.h"

namespace {

constexpr size_t kMostOfFront = 6000;  // some twenty faults, which a model folder can have at once
constexpr size_t kMostOfEnd = 500;

// A message as one line of bounded length. It may quote what stands in a stranger's file: tensor
// names with line ends or a terminal's commands in them, bytes that are no UTF-8, strings of 100
// MB. The cut is in the middle, as the file is named in front and the fault often at the end.
std::string OneLine(std::string message) {
  if (message.size() > kMostOfFront + kMostOfEnd) {
    message.replace(kMostOfFront, message.size() - kMostOfFront - kMostOfEnd, " [...] ");
  }
  std::string valid;
  quantd::AppendLossyUtf8(message, /*last=*/true, &valid);
  std::string line;
  for (const char c : valid) {
    const auto byte = static_cast<unsigned char>(c);
    byte < 0x20 || byte == 0x7f ? line += fmt::format("\\x{:02x}", byte) : line += c;
  }
  return line;
}

}  // namespace

int main(int argc, char** argv) {
  // Logs go to stderr, results to stdout. Commands that work in process only warn; serve sets its
  // own level.
  spdlog::set_default_logger(spdlog::stderr_color_mt("quantd"));
  spdlog::set_pattern("%Y-%m-%dT%H:%M:%S.%e %^%l%$ %v");
  spdlog::set_level(spdlog::level::warn);

  CLI::App app("quantd: an inference server for quantized language models", "quantd");
  app.require_subcommand(1);
  quantd::Run run;
  for (const auto add : {quantd::AddServe, quantd::AddGenerate, quantd::AddLogits,
                         quantd::AddTokenize, quantd::AddInspect, quantd::AddPlan, quantd::AddEval,
                         quantd::AddHealth, quantd::AddProfiles, quantd::AddVersion}) {
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
  const absl::Status status = run();
  if (status.ok()) return 0;
  fmt::print(stderr, "quantd: {}\n", OneLine(quantd::Message(status)));
  return 1;
}
