#include "tests/bench/cuda/launch_names.h"

#include <map>
#include <set>

#ifdef QUANTD_HAS_CUDA
#include "kernels/cuda/launch_log.h"
#endif
#ifdef QUANTD_HAS_CUDA_EMULATION
#include "kernels/cuda/emulation/kernel_registry.h"
#endif

namespace quantd::gpu {

std::string BaseName(const std::string& kernel) {
  const size_t begin = kernel.find_first_not_of("( ");
  if (begin == std::string::npos) return "";
  return kernel.substr(begin, kernel.find_first_of("<) ", begin) - begin);
}

std::vector<std::string> EmulatedKernels() {
  std::vector<std::string> names;
#ifdef QUANTD_HAS_CUDA_EMULATION
  for (const auto& kernel : cuda_emulated::RegisteredKernels()) names.push_back(kernel.name);
#endif
  return names;
}

std::vector<std::string> LaunchedSince() {
  std::set<std::string> names;
#ifdef QUANTD_HAS_CUDA
  for (const std::string& name : cuda::TakeLaunchedKernels()) names.insert(BaseName(name));
#endif
#ifdef QUANTD_HAS_CUDA_EMULATION
  static std::map<std::string, uint64_t> seen;
  for (const auto& kernel : cuda_emulated::RegisteredKernels()) {
    uint64_t& before = seen[kernel.name];
    if (kernel.launches > before) names.insert(BaseName(kernel.name));
    before = kernel.launches;
  }
#endif
  return {names.begin(), names.end()};
}

}  // namespace quantd::gpu
