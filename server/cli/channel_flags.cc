#include "server/cli/channel_flags.h"

#include <nlohmann/json.hpp>

#include "kernels/status.h"
#include "server/read_input.h"

namespace quantd {

absl::Status ResolveChannel(ChannelFlags* flags) {
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
