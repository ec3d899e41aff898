// `cuda`: quantd's reason to be. The same class exists twice: cuda::CreateBackend on a GPU, and
// cuda_emulated::CreateBackend, which runs the same kernels on the CPU, thread by thread, for
// tests.
//
// Safe to include without CUDA; cuda::CreateBackend is linked only where nvcc was
// (QUANTD_HAS_CUDA).
#pragma once

#include <cstdint>
#include <memory>

#include "absl/status/statusor.h"
#include "kernels/backend.h"

namespace quantd {

enum class Determinism : uint8_t {
  kDefault,         // fastest kernel for each shape: a result may depend on how much is batched
  kBatchInvariant,  // one order of additions along k, whatever else is in the batch
};

struct CudaBackendOptions {
  int device = 0;
  Determinism determinism = Determinism::kDefault;
  bool graphs = true;        // Backend::Run captures and replays
  int64_t memory_limit = 0;  // bytes taken from the device at most; 0: all that are free
};

namespace cuda {
/// UNAVAILABLE without a driver, a device, or one of compute capability 8.0 or later.
absl::StatusOr<std::unique_ptr<Backend>> CreateBackend(const CudaBackendOptions& options = {});
}  // namespace cuda

namespace cuda_emulated {
absl::StatusOr<std::unique_ptr<Backend>> CreateBackend(const CudaBackendOptions& options = {});
}  // namespace cuda_emulated

}  // namespace quantd
