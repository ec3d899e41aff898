// quantd health: the exit code of a probe.
#include <cstdio>
#include <memory>
#include <string>

#include "kernels/status.h"
#include "server/cli/channel_flags.h"
#include "server/cli/commands.h"
#include "server/grpc/client.h"

namespace quantd {
namespace {

struct HealthFlags {
  ChannelFlags channel;
  std::string service;
  double timeout_seconds = 2.0;
};

}  // namespace

void AddHealth(CLI::App& app, Run* run) {
  auto flags = std::make_shared<HealthFlags>();
  CLI::App* cmd = app.add_subcommand("health", "Exit with 0 when a server is serving, else with 1");
  AddChannelFlags(*cmd, flags->channel)->required();
  cmd->add_option("--service", flags->service, "A service's name; default: the whole server");
  cmd->add_option("--timeout", flags->timeout_seconds, "Seconds to wait for an answer")
      ->check(CLI::Range(0.001, 1e6))
      ->capture_default_str();
  cmd->callback([flags, run] {
    *run = [flags]() -> absl::Status {
      RETURN_IF_ERROR(ResolveChannel(&flags->channel));
      RETURN_IF_ERROR(
          Client(flags->channel.options).CheckHealth(flags->service, flags->timeout_seconds));
      fmt::print("SERVING\n");
      return absl::OkStatus();
    };
  });
}

}  // namespace quantd
