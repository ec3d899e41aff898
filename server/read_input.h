// Reading what a user names: a file or a pipe of the command line, or a file that the server reads
// again while it runs. Pure functions.
#pragma once

#include <string>

#include "absl/status/statusor.h"

namespace quantd {

/// All bytes of `path`. NOT_FOUND "<what>: cannot be read: <why>".
absl::StatusOr<std::string> ReadInput(const std::string& path, const std::string& what);

/// All bytes of `path`, without ever waiting for them: NOT_FOUND as above, INVALID_ARGUMENT for
/// what is no regular file (a symbolic link to one is) or has more than 4 MiB.
absl::StatusOr<std::string> ReadRegularFile(const std::string& path, const std::string& what);

}  // namespace quantd
