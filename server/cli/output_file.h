// Files that a command writes: a fault is told before the work is done, and what reads one never
// sees half of it.
#pragma once

#include <string>

#include "absl/status/status.h"

namespace quantd {

/// Whether `path` could be written: INVALID_ARGUMENT when it is no regular file, UNAVAILABLE with
/// the reason otherwise; both name `flag`.
absl::Status CheckOutputFile(const std::string& flag, const std::string& path);

/// Writes `text` beside `path` and gives it that name when it is whole. UNAVAILABLE naming `flag`.
absl::Status WriteOutputFile(const std::string& flag, const std::string& path,
                             const std::string& text);

}  // namespace quantd
