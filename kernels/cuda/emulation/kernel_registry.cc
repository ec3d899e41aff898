#include "kernels/cuda/emulation/kernel_registry.h"

#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <map>
#include <mutex>

namespace quantd::cuda_emulated {
namespace {

struct Registry {
  std::mutex mutex;
  std::map<std::string, KernelRecord> records;
};
// Never destroyed: kernels register from other files' initializers and are listed at exit.
Registry& GetRegistry() {
  static Registry* const registry = new Registry;
  return *registry;
}

void RemoveAll(std::string& text, std::string_view what) {
  for (size_t at = 0; (at = text.find(what, at)) != std::string::npos;) text.erase(at, what.size());
}

void WriteCoverage() {
  const char* const folder = std::getenv("QUANTD_KERNEL_COVERAGE");
  if (folder == nullptr || *folder == '\0') return;
  const std::string path = std::string(folder) + "/launched." + std::to_string(getpid());
  std::FILE* const file = std::fopen(path.c_str(), "a");
  if (file == nullptr) {
    std::fprintf(stderr, "cuda emulation: QUANTD_KERNEL_COVERAGE: cannot write %s\n", path.c_str());
    return;
  }
  for (const KernelLaunches& kernel : RegisteredKernels()) {
    if (kernel.launches != 0) std::fprintf(file, "%s\n", kernel.name.c_str());
  }
  std::fclose(file);
}

}  // namespace

std::string KernelNameOf(std::string_view pretty_function) {
  constexpr std::string_view kMarker = "Kernel = ";
  const size_t at = pretty_function.find(kMarker);
  std::string name(at == std::string_view::npos ? pretty_function
                                                : pretty_function.substr(at + kMarker.size()));
  // "[with auto Kernel = NAME; std::string_view = ...]": to the first ';' or the last ']'.
  const size_t end = name.find(';');
  name.resize(end != std::string::npos ? end : name.rfind(']'));
  for (std::string_view space :
       {"quantd::cuda_emulated::", "quantd::", "{anonymous}::", "(anonymous namespace)::"}) {
    RemoveAll(name, space);
  }
  return name;
}

KernelRecord& RegisterKernel(std::string_view pretty_function) {
  Registry& registry = GetRegistry();
  const std::lock_guard lock(registry.mutex);
  if (registry.records.empty()) std::atexit(WriteCoverage);
  const std::string name = KernelNameOf(pretty_function);
  return registry.records.try_emplace(name, name).first->second;
}

std::vector<KernelLaunches> RegisteredKernels() {
  Registry& registry = GetRegistry();
  const std::lock_guard lock(registry.mutex);
  std::vector<KernelLaunches> kernels;
  for (const auto& [name, record] : registry.records) kernels.push_back({name, record.launches});
  return kernels;
}

}  // namespace quantd::cuda_emulated
