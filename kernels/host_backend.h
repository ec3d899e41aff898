// HostBackend: what backends that compute on the host share: its memory.
#pragma once

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
  static DeviceInfo HostInfo(std::string description, std::string isa) {
    const HostMemory memory = ReadHostMemory();
    return {.description = std::move(description),
            .isa = std::move(isa),
            .total_memory = memory.total,
            .free_memory = memory.available};
  }
};

}  // namespace quantd
