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
  std::string tls_ca_file;
  std::string tls_certificate_file;
  std::string tls_key_file;
};

/// `flags` must live as long as `command`. Returns the option of the target, which is not required
/// yet and is of `group`, if there is one.
inline CLI::Option* AddChannelFlags(CLI::App& command, ChannelFlags& flags,
                                    CLI::App* group = nullptr) {
  CLI::Option* target = (group == nullptr ? command : *group)
                            .add_option("--target", flags.options.target,
                                        "host:port of the server, or a name of gRPC's for several: "
                                        "dns:///host:port, ipv4:a:1,b:2");
  command
      .add_option("--api-key", flags.options.api_key,
                  "The server's key for this client; better in the environment, where other users "
                  "do not see it")
      ->envname("QUANTD_API_KEY");
  command.add_flag("--tls", flags.options.tls,
                   "Encrypt, and trust the authorities that this system trusts");
  command.add_option("--tls-ca", flags.tls_ca_file,
                     "Encrypt, and trust the authorities of this PEM file");
  command.add_option("--tls-cert", flags.tls_certificate_file,
                     "The client's certificate (mTLS), PEM");
  command.add_option("--tls-key", flags.tls_key_file, "Its key, PEM");
  command.add_option("--tls-server-name", flags.options.tls_server_name,
                     "The name in the server's certificate, where it is not the target's");
  command.add_option("--service-config", flags.service_config_file,
                     "gRPC's service config, a file of JSON: load balancing, retries");
  return target;
}

/// Reads what the flags name. NOT_FOUND or INVALID_ARGUMENT naming the flag.
absl::Status ResolveChannel(ChannelFlags* flags);

}  // namespace quantd
