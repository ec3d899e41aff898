// Names of backends to backends.
#include "server/backends.h"

#include <spdlog/spdlog.h>

#include <absl/strings/numbers.h>
#include <absl/strings/strip.h>

#include <algorithm>

#include "kernels/cpu/cpu_backend.h"
#include "kernels/cpu/thread_pool.h"
#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/device_facts.h"
#include "kernels/ref/ref_backend.h"
#include "kernels/status.h"

namespace quantd {
namespace {

bool IsBatchInvariant(const BackendOptions& options) {
  return options.determinism == "batch_invariant";
}

absl::StatusOr<CudaBackendOptions> CudaOptions(const BackendOptions& options) {
  CudaBackendOptions cuda;
  if (IsBatchInvariant(options)) {
    cuda.determinism = Determinism::kBatchInvariant;
  } else if (options.determinism != "default") {
    return InvalidArgument("determinism: \"{}\" is not one of default, batch_invariant",
                           options.determinism);
  }
  return cuda;
}

absl::StatusOr<std::unique_ptr<Backend>> CreateCuda(
    [[maybe_unused]] const CudaBackendOptions& options) {
#ifdef QUANTD_HAS_CUDA
  auto backend = cuda::CreateBackend(options);
  if (!backend.ok()) return Annotate(backend.status(), "backend: \"cuda\"");
  return backend;
#else
  return Unimplemented("backend: \"cuda\" is not built in, available: cpu, ref");
#endif
}

absl::StatusOr<std::unique_ptr<Backend>> CreateEmulated(
    [[maybe_unused]] const CudaBackendOptions& options) {
#ifdef QUANTD_HAS_CUDA_EMULATION
  return cuda_emulated::CreateBackend(options);
#else
  return Unimplemented("backend: \"cuda-emulated\" is not built in; it is for tests");
#endif
}

absl::StatusOr<std::unique_ptr<Backend>> CreateCpu(const BackendOptions& options) {
  CpuBackendOptions cpu;
  cpu.num_threads = options.threads;
  return CreateCpuBackend(cpu);
}

absl::StatusOr<std::unique_ptr<Backend>> CreateBest(const BackendOptions& options,
                                                    const CudaBackendOptions& cuda_options) {
  auto cuda = CreateCuda(cuda_options);
  if (cuda.ok()) {
    spdlog::info("backend auto: cuda, {}", (*cuda)->info().description);
    return cuda;
  }
  const bool cpu = !SupportedIsas().empty();
  spdlog::info("backend auto: {}, because {}", cpu ? "cpu" : "ref", Message(cuda.status()));
  if (cpu) return CreateCpu(options);
  return CreateRefBackend();
}

}  // namespace

std::vector<std::string> BackendNames() {
#ifdef QUANTD_HAS_CUDA
  return {"cuda", "cpu", "ref"};
#else
  return {"cpu", "ref"};
#endif
}

int HostThreads(const BackendOptions& options) {
  return options.threads > 0 ? options.threads : AvailableThreads();
}

PlanDevice PlanDeviceOf(const Backend& backend, const BackendOptions& options) {
  const DeviceInfo info = backend.info();
  PlanDevice device;
  device.memory_bytes = info.free_memory;
  device.isa = info.isa;
  if (backend.name() == "ref") {
    device.backend = PlanBackend::kRef;
  } else if (backend.name() == "cpu") {
    device.backend = PlanBackend::kCpu;
    device.threads = HostThreads(options);
  } else {
    device.backend = PlanBackend::kCuda;
    const int64_t mebibyte = int64_t{1} << 20;
    device.slab_bytes = backend.name() == "cuda"
                            ? std::clamp(info.total_memory / 256, 32 * mebibyte, 256 * mebibyte)
                            : mebibyte / 16;
    int capability = 0;  // of "sm_90", ten times it
    const bool has_fp8 =
        absl::SimpleAtoi(absl::StripPrefix(info.isa, "sm_"), &capability) && capability >= 89;
    device.multiplies_fp8 = has_fp8 && !IsBatchInvariant(options);
  }
  return device;
}

absl::StatusOr<PlanDevice> PlanDeviceFor(const BackendOptions& options, int64_t memory_bytes) {
  PlanDevice device;
  if (memory_bytes > 0 && (options.name == "auto" || options.name == "cuda")) {
    device.backend = PlanBackend::kCuda;
    device.multiplies_fp8 = !IsBatchInvariant(options);
  } else {
    ASSIGN_OR_RETURN(const auto backend, CreateBackend(options));
    device = PlanDeviceOf(*backend, options);
  }
  if (memory_bytes > 0) device.memory_bytes = memory_bytes;
  return device;
}

double MeasureGpuBandwidth() {
#ifdef QUANTD_HAS_CUDA
  return cuda::MeasureReadBandwidth();
#else
  return 0;
#endif
}

absl::StatusOr<std::unique_ptr<Backend>> CreateBackend(const BackendOptions& options) {
  ASSIGN_OR_RETURN(const CudaBackendOptions cuda, CudaOptions(options));
  if (options.name == "auto") return CreateBest(options, cuda);
  if (options.name == "cuda") return CreateCuda(cuda);
  if (options.name == "cpu") return CreateCpu(options);
  if (options.name == "ref") return CreateRefBackend();
  if (options.name == "cuda-emulated") return CreateEmulated(cuda);
  return InvalidArgument("backend: \"{}\" is not one of auto, cuda, cpu, ref, cuda-emulated",
                         options.name);
}

int64_t DriverBytes(const Backend& backend) {
  if (backend.name() != "cuda") return 0;
  const DeviceInfo info = backend.info();
  return std::max<int64_t>(0, info.total_memory - info.free_memory - backend.memory().Total());
}

}  // namespace quantd
