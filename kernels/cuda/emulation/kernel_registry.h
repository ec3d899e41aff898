// Every kernel instantiation that a LAUNCH in the program names, known before main() runs, and how
// often each was launched.
//
// With the environment variable QUANTD_KERNEL_COVERAGE naming a folder, a process appends at its
// exit the names of the kernels it launched, one a line, to the file launched.<process id> there.
#pragma once

#include <atomic>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace quantd::cuda_emulated {

/// A kernel instantiation: its name ("Dequantize<Codec::kNF4, 64>") and how often its grid has run.
struct KernelRecord {
  explicit KernelRecord(std::string kernel_name) : name(std::move(kernel_name)) {}
  const std::string name;
  std::atomic<uint64_t> launches = 0;
};
/// The one record of that name, never destroyed; `pretty_function` as GCC writes it:
/// "... [with auto Kernel = NAME; ...]".
KernelRecord& RegisterKernel(std::string_view pretty_function);

struct KernelLaunches {
  std::string name;
  uint64_t launches = 0;
};
/// All registered kernels by name; an instantiation made in several files appears once.
std::vector<KernelLaunches> RegisteredKernels();

/// "Kernel<...>" of a __PRETTY_FUNCTION__, without our namespaces and return type.
std::string KernelNameOf(std::string_view pretty_function);

template <auto Kernel>
constexpr std::string_view PrettyNameOfKernel() {
  return __PRETTY_FUNCTION__;
}
template <auto Kernel>
struct Registered {
  static inline KernelRecord& record = RegisterKernel(PrettyNameOfKernel<Kernel>());
};

}  // namespace quantd::cuda_emulated
