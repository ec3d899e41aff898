// Memory of backends that compute on the host: zeroed, 64-byte aligned. Thread-safe.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>

#include "absl/status/statusor.h"
#include "kernels/tensor.h"

namespace quantd {

/// A zeroed buffer booked to `component`. RESOURCE_EXHAUSTED naming component and bytes.
absl::StatusOr<Buffer> AllocateHost(size_t bytes, MemoryComponent component,
                                    MemoryAccount& account);

/// Memory of the machine, or of the container where that allows less.
struct HostMemory {
  int64_t total = 0;      // bytes
  int64_t available = 0;  // without swapping; the page cache can be had
};

/// Of /proc/meminfo and the limit of the cgroup (version 2 or 1). Only the root of the mounted
/// hierarchy is read: inside a container that is the container's own cgroup.
HostMemory ReadHostMemory(const std::filesystem::path& proc = "/proc",
                          const std::filesystem::path& cgroup = "/sys/fs/cgroup");

}  // namespace quantd
