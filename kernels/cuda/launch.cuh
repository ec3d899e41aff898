// LAUNCH and DYN_SMEM for nvcc; emulation/device.h has their twins.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>

namespace quantd::cuda {

/// Lets `kernel` use `bytes` of dynamic shared memory (more than 48 KiB needs asking; once per
/// kernel and size). Errors surface at the launch.
void AllowSharedMemory(const void* kernel, size_t bytes);
/// Remembers cudaGetLastError() of a launch; runtime.h's FirstError() reports the first one.
void NoteLaunch(const char* kernel);

}  // namespace quantd::cuda

#define LAUNCH(kernel, grid, block, shared_bytes, stream, ...)                         \
  do {                                                                                 \
    auto* const launch_kernel_ = kernel;                                               \
    const size_t launch_shared_ = (shared_bytes);                                      \
    if (launch_shared_ > 48 * 1024) {                                                  \
      ::quantd::cuda::AllowSharedMemory(reinterpret_cast<const void*>(launch_kernel_), \
                                        launch_shared_);                               \
    }                                                                                  \
    launch_kernel_<<<(grid), (block), launch_shared_, (stream)>>>(__VA_ARGS__);        \
    ::quantd::cuda::NoteLaunch(#kernel);                                               \
  } while (false)

#define DYN_SMEM(type, name)                                   \
  extern __shared__ __align__(1024) unsigned char dyn_smem_[]; \
  type* const name = reinterpret_cast<type*>(dyn_smem_)
