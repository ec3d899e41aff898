// CreateBackend: a backend by the name a user gives.
#pragma once

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "kernels/backend.h"

namespace quantd {

/// `name`: "auto" (cpu where its instruction sets are there, else ref), "cpu" or "ref". `threads`
/// is for cpu, 0: what affinity and cgroup quota allow. UNIMPLEMENTED for "cuda", which this build
/// does not have, and for cpu on a processor it cannot use; INVALID_ARGUMENT for other names.
absl::StatusOr<std::unique_ptr<Backend>> CreateBackend(const std::string& name, int threads);

}  // namespace quantd
