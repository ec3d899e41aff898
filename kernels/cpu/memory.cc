// Buffers straight from the kernel: zero without being touched (so unused rows of a workspace take
// no memory), returned at once when freed, and in 2 MiB pages where large enough: streaming weights
// through 4 KiB pages costs a TLB walk every 4096 bytes.
#include "kernels/cpu/memory.h"

#include <sys/mman.h>

#include <algorithm>

#include "kernels/status.h"

namespace quantd {
namespace {

constexpr size_t kHugePage = size_t{2} << 20;

void FreeMapping(void* data, size_t bytes) { munmap(data, std::max<size_t>(bytes, 1)); }

}  // namespace

absl::StatusOr<Buffer> AllocateCpu(size_t bytes, MemoryComponent component,
                                   MemoryAccount& account) {
  void* data = mmap(nullptr, std::max<size_t>(bytes, 1), PROT_READ | PROT_WRITE,
                    MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (data == MAP_FAILED) {
    return ResourceExhausted("cpu: no room for {} bytes of {}", bytes, ToString(component));
  }
  if (bytes >= kHugePage)
    madvise(data, bytes, MADV_HUGEPAGE);  // advice: failure changes speed only
  return Buffer(data, bytes, FreeMapping, &account, component);
}

}  // namespace quantd
