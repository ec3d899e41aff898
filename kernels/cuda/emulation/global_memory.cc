#include "kernels/cuda/emulation/global_memory.h"

#include <algorithm>
#include <atomic>
#include <charconv>
#include <cstdlib>
#include <cstring>
#include <iterator>
#include <map>
#include <mutex>
#include <string_view>

#include "kernels/cuda/emulation/fibers.h"
#include "kernels/cuda/emulation/testing.h"

namespace quantd::cuda_emulated {
namespace {

constexpr size_t kAllocationAlignment = 256;
#ifdef __SANITIZE_ADDRESS__
constexpr size_t kAllocationGuardBytes = 0;
#else
constexpr size_t kAllocationGuardBytes = 256;
#endif
constexpr unsigned char kAllocationGuard = 0xFB, kAllocationPoison = 0xCD, kFreedByte = 0xDD;
// Of an allocation larger than twice this only the ends are poisoned: pages that are never used
// should not become resident.
constexpr size_t kPoisonedEnd = 16 << 20;

size_t LimitOfEnvironment() {
  const char* const text = std::getenv("QUANTD_EMULATION_MEMORY");
  if (text == nullptr) return size_t{4} << 30;
  const std::string_view digits = text;
  size_t bytes = 0;
  const auto [last, error] = std::from_chars(digits.data(), digits.data() + digits.size(), bytes);
  if (error != std::errc() || last != digits.data() + digits.size()) {
    Fatal("QUANTD_EMULATION_MEMORY=%s is not a number of bytes", text);
  }
  return bytes;
}

struct Allocation {
  size_t bytes = 0;
  MemoryKind kind = MemoryKind::kDevice;
  void* base = nullptr;  // what std::free takes
};

struct Memory {
  std::mutex mutex;
  std::map<uintptr_t, Allocation> allocations;  // by first byte
  size_t limit = LimitOfEnvironment();
  size_t used = 0;
  int fail_in = 0;                    // allocations until one fails; 0: none does
  std::atomic<uint64_t> version = 1;  // of `allocations`: ranges remembered by OS threads are void
};
// Never destroyed: buffers of static objects are freed at exit.
Memory& GetMemory() {
  static Memory* const memory = new Memory;
  return *memory;
}

void FillEnds(unsigned char* data, size_t bytes, unsigned char value) {
  if (bytes <= 2 * kPoisonedEnd) {
    std::memset(data, value, bytes);
  } else {
    std::memset(data, value, kPoisonedEnd);
    std::memset(data + bytes - kPoisonedEnd, value, kPoisonedEnd);
  }
}

void CheckGuardsOf(uintptr_t first, const Allocation& allocation) {
  const auto* const data = reinterpret_cast<const unsigned char*>(first);
  for (size_t i = 0; i < kAllocationGuardBytes; ++i) {
    if (data[allocation.bytes + i] != kAllocationGuard) {
      Fatal("byte %zu of an allocation of %zu was written: past its end", allocation.bytes + i,
            allocation.bytes);
    }
    if (data[-1 - static_cast<std::ptrdiff_t>(i)] != kAllocationGuard) {
      Fatal("byte -%zu of an allocation of %zu was written: before its beginning", i + 1,
            allocation.bytes);
    }
  }
}

/// The allocation that `p` points into, or end().
std::map<uintptr_t, Allocation>::const_iterator Find(const Memory& memory, uintptr_t p) {
  auto it = memory.allocations.upper_bound(p);
  if (it == memory.allocations.begin()) return memory.allocations.end();
  --it;
  return p - it->first < std::max<size_t>(it->second.bytes, 1) ? it : memory.allocations.end();
}

}  // namespace

void* AllocateMemory(MemoryKind kind, size_t bytes) {
  Memory& memory = GetMemory();
  const std::lock_guard lock(memory.mutex);
  if (kind == MemoryKind::kDevice) {
    if (memory.fail_in > 0 && --memory.fail_in == 0) return nullptr;
    if (bytes > memory.limit || memory.used > memory.limit - bytes) return nullptr;
  }
  // With AddressSanitizer the size stays exact, so that its red zone begins at the last byte.
  void* base = nullptr;
  if (posix_memalign(&base, kAllocationAlignment,
                     std::max<size_t>(kAllocationGuardBytes + bytes + kAllocationGuardBytes, 1)) !=
      0) {
    return nullptr;
  }
  auto* const data = static_cast<unsigned char*>(base) + kAllocationGuardBytes;
  std::memset(base, kAllocationGuard, kAllocationGuardBytes);
  std::memset(data + bytes, kAllocationGuard, kAllocationGuardBytes);
  FillEnds(data, bytes, kAllocationPoison);
  memory.allocations[reinterpret_cast<uintptr_t>(data)] = {bytes, kind, base};
  if (kind == MemoryKind::kDevice) memory.used += bytes;
  return data;
}

void FreeMemory(MemoryKind kind, void* data) {
  if (data == nullptr) return;
  Memory& memory = GetMemory();
  const std::lock_guard lock(memory.mutex);
  const auto it = memory.allocations.find(reinterpret_cast<uintptr_t>(data));
  if (it == memory.allocations.end() || it->second.kind != kind) {
    Fatal("%p is freed, which is no %s memory or was freed before", data,
          kind == MemoryKind::kDevice ? "device" : "pinned");
  }
  CheckGuardsOf(it->first, it->second);
  if (kind == MemoryKind::kDevice) memory.used -= it->second.bytes;
  FillEnds(static_cast<unsigned char*>(data), it->second.bytes, kFreedByte);
  std::free(it->second.base);
  memory.allocations.erase(it);
  ++memory.version;
}

MemoryKind KindOfRange(const char* what, const void* p, size_t bytes) {
  Memory& memory = GetMemory();
  const std::lock_guard lock(memory.mutex);
  const auto address = reinterpret_cast<uintptr_t>(p);
  const auto it = Find(memory, address);
  if (it == memory.allocations.end()) return MemoryKind::kPageable;
  const size_t offset = address - it->first;
  if (bytes > it->second.bytes - offset) {
    Fatal("%s: bytes %zu to %zu of an allocation of %zu", what, offset, offset + bytes,
          it->second.bytes);
  }
  return it->second.kind;
}

void CheckGlobal(const char* what, const void* p, size_t bytes, size_t alignment,
                 std::source_location site) {
  const auto address = reinterpret_cast<uintptr_t>(p);
  if (address % alignment != 0) {
    Fatal("%s at %s:%u: global address %p is not aligned to %zu bytes", what, site.file_name(),
          site.line(), p, alignment);
  }
  if (bytes == 0) return;

  // Most calls read on where the last one did.
  struct Range {
    uintptr_t first = 0;
    size_t bytes = 0;
  };
  constexpr size_t kRemembered = 4;
  thread_local Range ranges[kRemembered];
  thread_local size_t oldest = 0;
  thread_local uint64_t version = 0;
  Memory& memory = GetMemory();
  if (version != memory.version) {
    version = memory.version;
    std::fill(std::begin(ranges), std::end(ranges), Range{});
  }
  for (const Range& range : ranges) {
    const uintptr_t offset = address - range.first;
    if (offset < range.bytes && bytes <= range.bytes - offset) return;
  }
  const std::lock_guard lock(memory.mutex);
  const auto it = Find(memory, address);
  if (it == memory.allocations.end()) {
    Fatal("%s at %s:%u: %p is not device memory", what, site.file_name(), site.line(), p);
  }
  const size_t offset = address - it->first;
  if (bytes > it->second.bytes - offset) {
    Fatal("%s at %s:%u: bytes %zu to %zu of an allocation of %zu", what, site.file_name(),
          site.line(), offset, offset + bytes, it->second.bytes);
  }
  ranges[oldest++ % kRemembered] = {it->first, it->second.bytes};
}

void CheckGuards() {
  if constexpr (kAllocationGuardBytes != 0) {
    Memory& memory = GetMemory();
    const std::lock_guard lock(memory.mutex);
    for (const auto& [first, allocation] : memory.allocations) CheckGuardsOf(first, allocation);
  }
}

DeviceMemoryUse GetDeviceMemoryUse() {
  Memory& memory = GetMemory();
  const std::lock_guard lock(memory.mutex);
  return {memory.limit, memory.used};
}

void SetDeviceMemory(size_t bytes) {
  Memory& memory = GetMemory();
  const std::lock_guard lock(memory.mutex);
  memory.limit = bytes;
}

void FailAllocation(int nth) {
  Memory& memory = GetMemory();
  const std::lock_guard lock(memory.mutex);
  memory.fail_in = nth;
}

size_t DeviceBytesInUse() { return GetDeviceMemoryUse().used; }

size_t DeviceAllocationsInUse() {
  Memory& memory = GetMemory();
  const std::lock_guard lock(memory.mutex);
  return static_cast<size_t>(
      std::count_if(memory.allocations.begin(), memory.allocations.end(),
                    [](const auto& entry) { return entry.second.kind == MemoryKind::kDevice; }));
}

}  // namespace quantd::cuda_emulated
