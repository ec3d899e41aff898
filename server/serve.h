// Serve: the life of a server process: open the ports, load, serve, and on SIGTERM or SIGINT drain
// and end.
#pragma once

#include "absl/status/status.h"
#include "server/config.h"

namespace quantd {

/// Returns OK after a signal and an orderly end, else why it could not serve (a port, the model).
/// Must be called before the process has any other thread. A signal while loading ends the process
/// with exit code 0 without returning.
absl::Status Serve(const ServerConfig& config);

}  // namespace quantd
