// Names of backends to backends.
#include "server/backends.h"

#include "kernels/cpu/cpu_backend.h"
#include "kernels/ref/ref_backend.h"
#include "kernels/status.h"

namespace quantd {

absl::StatusOr<std::unique_ptr<Backend>> CreateBackend(const std::string& name, int threads) {
  if (name == "ref" || (name == "auto" && SupportedIsas().empty())) return CreateRefBackend();
  if (name == "cpu" || name == "auto") {
    CpuBackendOptions options;
    options.num_threads = threads;
    return CreateCpuBackend(options);
  }
  if (name == "cuda")
    return Unimplemented("backend: \"cuda\" is not built in, available: cpu, ref");
  return InvalidArgument("backend: \"{}\" is not one of auto, cpu, ref, cuda", name);
}

}  // namespace quantd
