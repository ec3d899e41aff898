#include "server/cli/channel_flags.h"

#include <nlohmann/json.hpp>

#include "kernels/status.h"
#include "server/read_input.h"

namespace quantd {

absl::Status ResolveChannel(ChannelFlags* flags) {
  const auto read = [](const char* flag, const std::string& file,
                       std::string* text) -> absl::Status {
    if (file.empty()) return absl::OkStatus();
    ASSIGN_OR_RETURN(*text, ReadInput(file, fmt::format("{} {}", flag, file)));
    if (text->find("-----BEGIN ") == std::string::npos) {
      return InvalidArgument("{} {}: is no PEM", flag, file);
    }
    return absl::OkStatus();
  };
  ChannelOptions& options = flags->options;
  RETURN_IF_ERROR(read("--tls-ca", flags->tls_ca_file, &options.tls_ca));
  RETURN_IF_ERROR(read("--tls-cert", flags->tls_certificate_file, &options.tls_certificate));
  RETURN_IF_ERROR(read("--tls-key", flags->tls_key_file, &options.tls_key));
  if (options.tls_certificate.empty() != options.tls_key.empty()) {
    return InvalidArgument("--tls-cert and --tls-key: give both");
  }
  const std::string& file = flags->service_config_file;
  if (file.empty()) return absl::OkStatus();
  const std::string flag = "--service-config " + file;
  ASSIGN_OR_RETURN(flags->options.service_config, ReadInput(file, flag));
  // gRPC would say so of every call.
  if (!nlohmann::json::accept(flags->options.service_config)) {
    return InvalidArgument("{}: is no JSON", flag);
  }
  return absl::OkStatus();
}

}  // namespace quantd
