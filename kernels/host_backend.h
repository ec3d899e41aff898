// HostBackend: what backends that compute on the host share: its memory.
#pragma once

#include <sys/sysinfo.h>

#include <cstring>
#include <string>
#include <utility>

#include "kernels/backend.h"
#include "kernels/host_memory.h"

namespace quantd {

class HostBackend : public Backend {
 public:
  absl::StatusOr<Buffer> Allocate(size_t bytes, MemoryComponent component) override {
    return AllocateHost(bytes, component, memory());
  }
  void Upload(const void* host, size_t bytes, void* device) override {
    if (bytes > 0) std::memcpy(device, host, bytes);
  }
  void Download(const void* device, size_t bytes, void* host) override {
    if (bytes > 0) std::memcpy(host, device, bytes);
  }

 protected:
  /// With the memory of the whole machine.
  static DeviceInfo HostInfo(std::string description, std::string isa) {
    struct sysinfo system {};
    sysinfo(&system);
    const int64_t unit = system.mem_unit;
    return {.description = std::move(description),
            .isa = std::move(isa),
            .total_memory = static_cast<int64_t>(system.totalram) * unit,
            .free_memory = static_cast<int64_t>(system.freeram + system.bufferram) * unit};
  }
};

}  // namespace quantd
