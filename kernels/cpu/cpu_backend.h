// `cpu`: the embedded default. Vectorized (run-time dispatch), threaded, fused dequantization.
#pragma once

#include <memory>
#include <optional>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/backend.h"

namespace quantd {

/// Instruction sets with kernels of their own, each including the ones before it.
enum class CpuIsa : uint8_t {
  kAvx2,        // AVX2, FMA, F16C
  kAvx512,      // F, BW, DQ, VL
  kAvx512Vnni,  // int8 dot products
  kAvx512Bf16,  // bf16 dot products
};
std::string_view ToString(CpuIsa isa);
/// What this machine has, best last; empty on a processor without AVX2.
std::vector<CpuIsa> SupportedIsas();

struct CpuBackendOptions {
  int num_threads = 0;        // 0: what affinity and cgroup quota allow
  std::optional<CpuIsa> isa;  // absent: the best of SupportedIsas()
};

/// UNIMPLEMENTED on a processor without AVX2 (use `ref`), INVALID_ARGUMENT for an isa it lacks.
absl::StatusOr<std::unique_ptr<Backend>> CreateCpuBackend(const CpuBackendOptions& options = {});

}  // namespace quantd
