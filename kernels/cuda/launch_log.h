// The kernels a program launched on the device: how tests and benchmarks tell which kernel an op
// took. The emulated device has kernel_registry.h. Safe to include without CUDA.
#pragma once

#include <string>
#include <vector>

namespace quantd::cuda {

/// What LAUNCH named since the last call of this, sorted, each once: "Kernel", "(Kernel<T, 4>)", as
/// the source writes it.
std::vector<std::string> TakeLaunchedKernels();

}  // namespace quantd::cuda
