// AddChannelFlags: how the commands that ask a server reach it.
#pragma once

#include <CLI/CLI.hpp>
#include <string>

#include "absl/status/status.h"
#include "server/grpc/client.h"

namespace quantd {

/// What the flags say, until ResolveChannel has read the files that they name.
struct ChannelFlags {
  ChannelOptions options;
  std::string service_config_file;
};

/// `flags` must live as long as `command`.
inline void AddChannelFlags(CLI::App& command, ChannelFlags& flags) {
  command
      .add_option("--target", flags.options.target,
                  "host:port of the server, or a name of gRPC's for several: dns:///host:port, "
                  "ipv4:a:1,b:2")
      ->required();
  command.add_option("--service-config", flags.service_config_file,
                     "gRPC's service config, a file of JSON: load balancing, retries");
}

/// Reads what the flags name. NOT_FOUND or INVALID_ARGUMENT naming the flag.
absl::Status ResolveChannel(ChannelFlags* flags);

}  // namespace quantd
