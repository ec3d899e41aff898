// Large buffers come straight from the kernel: zero without being touched (so unused rows of a
// workspace and an unwritten KV cache take no memory), returned at once when freed, and in 2 MiB
// pages where large enough: streaming weights through 4 KiB pages costs a TLB walk every 4096
// bytes. Small ones come from the heap, where a sanitizer sees what runs over their end.
#include "kernels/host_memory.h"

#include <sys/mman.h>

#include <cstring>
#include <new>

#include "kernels/status.h"

namespace quantd {
namespace {

constexpr std::align_val_t kAlignment{64};
constexpr size_t kMapFrom = size_t{128} << 10;  // where malloc, too, begins to map
constexpr size_t kHugePage = size_t{2} << 20;

void FreeHeap(void* data, size_t) { ::operator delete(data, kAlignment); }
void FreeMapping(void* data, size_t bytes) { munmap(data, bytes); }

}  // namespace

absl::StatusOr<Buffer> AllocateHost(size_t bytes, MemoryComponent component,
                                    MemoryAccount& account) {
  if (bytes == 0) return Buffer();
  void* data = nullptr;
  if (bytes < kMapFrom) {
    data = ::operator new(bytes, kAlignment, std::nothrow);
    if (data != nullptr) std::memset(data, 0, bytes);
  } else {
    data = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (data == MAP_FAILED) data = nullptr;
  }
  if (data == nullptr) {
    return ResourceExhausted("no memory for {} bytes of {}", bytes, ToString(component));
  }
  if (bytes >= kHugePage)
    madvise(data, bytes, MADV_HUGEPAGE);  // advice: failure changes speed only
  return Buffer(data, bytes, bytes < kMapFrom ? FreeHeap : FreeMapping, &account, component);
}

}  // namespace quantd
