// Memory of backends that compute on the host: zeroed, 64-byte aligned. Thread-safe.
#pragma once

#include <cstddef>

#include "absl/status/statusor.h"
#include "kernels/tensor.h"

namespace quantd {

/// A zeroed buffer booked to `component`. RESOURCE_EXHAUSTED naming component and bytes.
absl::StatusOr<Buffer> AllocateHost(size_t bytes, MemoryComponent component,
                                    MemoryAccount& account);

}  // namespace quantd
