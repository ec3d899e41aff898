// Memory of the cpu backend: zeroed, 64-byte aligned, in huge pages where that pays. Thread-safe.
#pragma once

#include <cstddef>

#include "absl/status/statusor.h"
#include "kernels/tensor.h"

namespace quantd {

/// A zeroed buffer booked to `component`. RESOURCE_EXHAUSTED naming component and bytes.
absl::StatusOr<Buffer> AllocateCpu(size_t bytes, MemoryComponent component, MemoryAccount& account);

}  // namespace quantd
