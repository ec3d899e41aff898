// The handler may interrupt anything, so it only reads atomics and calls write and _exit. A slot is
// found by its begin, which is written last and cleared first.
#include "engine/weights/broken_mapping.h"

#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cstdint>
#include <mutex>
#include <string_view>

namespace quantd {
namespace {

constexpr size_t kMaxMappings = 1024;  // a file beyond that has no name in the message
constexpr size_t kMaxPath = 248;       // the end of a longer path is kept

struct Mapping {
  std::atomic<uintptr_t> begin;  // 0: free
  std::atomic<uintptr_t> end;
  char path[kMaxPath];
};

// Zero without being touched; never destroyed, for it must outlive every static MappedFile.
constinit std::array<Mapping, kMaxMappings> mappings{};
constinit std::mutex mappings_mutex;  // of the writers

void Write(std::string_view text) {
  // Nothing is left to be done about a message that cannot be written.
  [[maybe_unused]] const ssize_t written = write(STDERR_FILENO, text.data(), text.size());
}

void OnBusError(int signal, siginfo_t* info, void*) {
  const auto address = reinterpret_cast<uintptr_t>(info->si_addr);
  if (info->si_code > 0) {  // of the kernel, not of a kill()
    for (const Mapping& mapping : mappings) {
      const uintptr_t begin = mapping.begin.load(std::memory_order_acquire);
      if (begin == 0 || address < begin || address >= mapping.end.load(std::memory_order_relaxed)) {
        continue;
      }
      Write("quantd: ");
      Write(mapping.path);
      Write(
          ": cannot be read any more: the file was cut, or its disk failed, while it was loaded\n");
      _exit(1);
    }
  }
  struct sigaction by_default {};
  by_default.sa_handler = SIG_DFL;
  sigaction(signal, &by_default, nullptr);
  raise(signal);  // delivered once this returns
}

}  // namespace

void AddMapping(const void* begin, size_t bytes, const std::string& path) {
  std::lock_guard lock(mappings_mutex);
  for (Mapping& mapping : mappings) {
    if (mapping.begin.load(std::memory_order_relaxed) != 0) continue;
    const std::string end = path.substr(path.size() - std::min(path.size(), kMaxPath - 1));
    std::copy(end.begin(), end.end(), mapping.path);
    mapping.path[end.size()] = '\0';
    const auto first = reinterpret_cast<uintptr_t>(begin);
    mapping.end.store(first + bytes, std::memory_order_relaxed);
    mapping.begin.store(first, std::memory_order_release);
    return;
  }
}

void RemoveMapping(const void* begin) {
  std::lock_guard lock(mappings_mutex);
  for (Mapping& mapping : mappings) {
    if (mapping.begin.load(std::memory_order_relaxed) == reinterpret_cast<uintptr_t>(begin)) {
      mapping.begin.store(0, std::memory_order_relaxed);
    }
  }
}

void ExitOnBrokenMapping() {
  struct sigaction action {};
  action.sa_sigaction = OnBusError;
  action.sa_flags = SA_SIGINFO;
  sigaction(SIGBUS, &action, nullptr);
}

}  // namespace quantd
