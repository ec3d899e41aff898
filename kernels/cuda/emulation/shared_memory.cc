#include "kernels/cuda/emulation/shared_memory.h"

#include "kernels/cuda/emulation/fibers.h"

namespace quantd::cuda_emulated {
namespace {

// Static __shared__ variables lie in the OS thread's thread-local storage: on x86-64 below the
// thread pointer, and no farther than this.
constexpr uintptr_t kThreadLocalReach = 1 << 20;

uintptr_t StaticOrigin() {
  return reinterpret_cast<uintptr_t>(__builtin_thread_pointer()) - kThreadLocalReach;
}

void CheckAlignment(const char* what, const void* p, size_t alignment, std::source_location site) {
  if (reinterpret_cast<uintptr_t>(p) % alignment != 0) {
    Fatal("%s at %s:%u: shared address %p is not aligned to %zu bytes", what, site.file_name(),
          site.line(), p, alignment);
  }
}

}  // namespace

uint32_t CheckedSharedAddress(const char* what, const void* p, size_t bytes, size_t alignment,
                              std::source_location site) {
  const auto address = reinterpret_cast<uintptr_t>(p);
  const auto dynamic = reinterpret_cast<uintptr_t>(t_block.shared);
  uint32_t result = 0;
  if (address >= dynamic && address - dynamic <= kMaxSharedMemory) {
    const size_t offset = address - dynamic;
    if (offset + bytes > t_block.shared_bytes) {
      Fatal("%s at %s:%u: bytes %zu to %zu of %zu of dynamic shared memory", what, site.file_name(),
            site.line(), offset, offset + bytes, t_block.shared_bytes);
    }
    result = kDynamicBase + static_cast<uint32_t>(offset);
  } else if (address - StaticOrigin() < kThreadLocalReach) {
    result = kStaticBase + static_cast<uint32_t>(address - StaticOrigin());
  } else {
    Fatal("%s at %s:%u: %p is not shared memory", what, site.file_name(), site.line(), p);
  }
  CheckAlignment(what, p, alignment, site);
  return result;
}

void* CheckedSharedPointer(const char* what, uint32_t address, size_t bytes, size_t alignment,
                           std::source_location site) {
  void* p = nullptr;
  if (address >= kStaticBase) {
    p = reinterpret_cast<void*>(StaticOrigin() + (address - kStaticBase));
    if (address - kStaticBase + bytes > kThreadLocalReach) {
      Fatal("%s at %s:%u: 0x%x is no shared address", what, site.file_name(), site.line(), address);
    }
  } else {
    const uint32_t offset = address - kDynamicBase;
    if (address < kDynamicBase || offset + bytes > t_block.shared_bytes) {
      Fatal("%s at %s:%u: shared address 0x%x is outside the %zu bytes of dynamic shared memory",
            what, site.file_name(), site.line(), address, t_block.shared_bytes);
    }
    p = t_block.shared + offset;
  }
  CheckAlignment(what, p, alignment, site);
  return p;
}

}  // namespace quantd::cuda_emulated
