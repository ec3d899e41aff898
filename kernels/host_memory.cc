// Large buffers come straight from the kernel: zero without being touched (so unused rows of a
// workspace and an unwritten KV cache take no memory), returned at once when freed, and in 2 MiB
// pages where large enough: streaming weights through 4 KiB pages costs a TLB walk every 4096
// bytes. Small ones come from the heap, where a sanitizer sees what runs over their end.
#include "kernels/host_memory.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstring>
#include <fstream>
#include <new>
#include <optional>
#include <string>

#include "kernels/status.h"

namespace quantd {
namespace {

constexpr std::align_val_t kAlignment{64};
constexpr size_t kMapFrom = size_t{128} << 10;  // where malloc, too, begins to map
constexpr size_t kHugePage = size_t{2} << 20;

void FreeHeap(void* data, size_t) { ::operator delete(data, kAlignment); }
void FreeMapping(void* data, size_t bytes) { munmap(data, bytes); }

/// The number in a file that has nothing else; nothing for "max" and where there is no file.
std::optional<int64_t> NumberIn(const std::filesystem::path& path) {
  std::ifstream file(path);
  int64_t number = 0;
  if (!(file >> number)) return std::nullopt;
  return number;
}

/// The number behind `name` in a file of such lines; 0 when it is not there.
int64_t NumberOf(const std::string& name, const std::filesystem::path& path) {
  std::ifstream file(path);
  for (std::string word; file >> word;) {
    int64_t number = 0;
    if (word == name && file >> number) return number;
  }
  return 0;
}

}  // namespace

HostMemory ReadHostMemory(const std::filesystem::path& proc, const std::filesystem::path& cgroup) {
  constexpr int64_t kKilobyte = 1024;
  HostMemory memory = {NumberOf("MemTotal:", proc / "meminfo") * kKilobyte,
                       NumberOf("MemAvailable:", proc / "meminfo") * kKilobyte};
  const bool v2 = std::filesystem::exists(cgroup / "memory.stat");
  const std::filesystem::path dir = v2 ? cgroup : cgroup / "memory";
  const auto limit = NumberIn(dir / (v2 ? "memory.max" : "memory.limit_in_bytes"));
  // Version 1 says "no limit" by a number near 2^63.
  if (!limit || *limit >= memory.total) return memory;
  const int64_t used =
      NumberIn(dir / (v2 ? "memory.current" : "memory.usage_in_bytes")).value_or(0) -
      NumberOf(v2 ? "inactive_file" : "total_inactive_file", dir / "memory.stat");
  memory.total = *limit;
  memory.available = std::clamp<int64_t>(*limit - used, 0, memory.available);
  return memory;
}

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
