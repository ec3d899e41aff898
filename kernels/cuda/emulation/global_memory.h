// Device and pinned memory under emulation: every allocation is known, poisoned, and ends in
// guards.
//
// Without AddressSanitizer 256 guard bytes lie on either side and are checked when the memory is
// freed and when a stream is waited for; with it the allocation is exact and AddressSanitizer does
// better. Thread-safe.
#pragma once

#include <cstddef>
#include <cstdint>
#include <source_location>

namespace quantd::cuda_emulated {

enum class MemoryKind : uint8_t { kPageable, kDevice, kPinned };

/// nullptr when the limit of device memory (DeviceMemoryLimits) leaves no room.
void* AllocateMemory(MemoryKind kind, size_t bytes);
void FreeMemory(MemoryKind kind, void* data);

/// What [p, p + bytes) is. A range that begins in an allocation and does not end there is a bug.
MemoryKind KindOfRange(const char* what, const void* p, size_t bytes);
/// Reports a range outside device and pinned memory, or not `alignment`-aligned, as a bug of the
/// kernel.
void CheckGlobal(const char* what, const void* p, size_t bytes, size_t alignment,
                 std::source_location site);
/// Reports overwritten guards.
void CheckGuards();

struct DeviceMemoryUse {
  size_t total = 0;
  size_t used = 0;
};
DeviceMemoryUse GetDeviceMemoryUse();

}  // namespace quantd::cuda_emulated
