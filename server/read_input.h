// Reading what a user names on the command line: a file or a pipe. Pure function.
#pragma once

#include <string>

#include "absl/status/statusor.h"

namespace quantd {

/// All bytes of `path`. NOT_FOUND "<what>: cannot be read: <why>".
absl::StatusOr<std::string> ReadInput(const std::string& path, const std::string& what);

}  // namespace quantd
