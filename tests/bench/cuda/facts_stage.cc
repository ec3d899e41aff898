// facts: what the device is and what it really does: the yardstick of the other stages.
#include "kernels/status.h"
#include "tests/bench/cuda/stages.h"

#ifdef QUANTD_HAS_CUDA
#include "kernels/cuda/device_facts.h"
#endif

namespace quantd::gpu {
namespace {

using nlohmann::json;

absl::StatusOr<json> Measured(const StageOptions& options) {
  if (options.backend != "cuda") {
    return json{{"note", "no device: nothing to measure on backend " + options.backend}};
  }
#ifdef QUANTD_HAS_CUDA
  const cuda::DeviceMeasurements m = cuda::MeasureDevice();
  if (!m.error.empty()) return Unavailable("{}", m.error);
  return json{{"compute_capability", fmt::format("{}.{}", m.major, m.minor)},
              {"multiprocessors", m.multiprocessors},
              {"shared_memory_per_block", m.shared_memory_per_block},
              {"l2_bytes", m.l2_bytes},
              {"memory_bytes", m.memory_bytes},
              {"driver", m.driver},
              {"runtime", m.runtime},
              {"copy_gb_per_s", m.copy_bytes_per_second * 1e-9},
              {"read_gb_per_s", m.read_bytes_per_second * 1e-9},
              {"bf16_mma_tflop_per_s", m.mma_flops_per_second * 1e-12}};
#else
  return Unavailable("this program was built without nvcc");
#endif
}

}  // namespace

absl::StatusOr<Outcome> RunFacts(const StageOptions& options) {
  ASSIGN_OR_RETURN(const auto backend, MakeBackend(options.backend));
  const DeviceInfo info = backend->info();
  ASSIGN_OR_RETURN(ResultFile file, ResultFile::Open(options.out, DeviceName(*backend), "facts",
                                                     options.quick, options.fresh));
  const std::vector<Item> items = {{"backend",
                                    [&]() -> absl::StatusOr<json> {
                                      return json{{"name", std::string(backend->name())},
                                                  {"description", info.description},
                                                  {"isa", info.isa},
                                                  {"total_memory", info.total_memory},
                                                  {"free_memory", info.free_memory}};
                                    }},
                                   {"device", [&] { return Measured(options); }}};
  return RunItems(options, file, items);
}

}  // namespace quantd::gpu
