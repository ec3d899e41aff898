// CreateBackend: a backend by the name a user gives.
//
// cuda-emulated runs the kernels of cuda on the CPU, thread by thread: for tests, and only in
// builds that have it.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/plan/memory_plan.h"
#include "kernels/backend.h"

namespace quantd {

struct BackendOptions {
  std::string name = "auto";            // auto | cuda | cpu | ref | cuda-emulated
  int threads = 0;                      // of cpu; 0: what affinity and cgroup quota allow
  std::string determinism = "default";  // of cuda: default | batch_invariant
};

/// "auto" is cuda where this build has it and the machine a device for it, else cpu where its
/// instruction sets are there, else ref; the log says why. UNIMPLEMENTED for what this build does
/// not have, and for cpu on a processor it cannot use; UNAVAILABLE for cuda without a driver or
/// device; INVALID_ARGUMENT for other names of backend or determinism.
absl::StatusOr<std::unique_ptr<Backend>> CreateBackend(const BackendOptions& options);

/// Threads for work on the host: as many as `options` say, else as are allowed.
int HostThreads(const BackendOptions& options);

/// What the planner has to know of it: its memory that is free now, its layout, its threads.
PlanDevice PlanDeviceOf(const Backend& backend, const BackendOptions& options);

/// The device that the planner plans for: the backend of `options` with what it has free now, or,
/// where `memory_bytes` is positive, one with so much: a GPU, which need not be here, unless the
/// options name another backend than auto and cuda. Errors of CreateBackend.
absl::StatusOr<PlanDevice> PlanDeviceFor(const BackendOptions& options, int64_t memory_bytes);

/// Bytes per second that this machine's GPU reads from its memory, measured within some tenths of a
/// second; 0 where this build has no cuda, or the GPU 1 GiB free. Only for machines that have one.
double MeasureGpuBandwidth();

/// The backends of this build, fastest first, that an ordinary user may name.
std::vector<std::string> BackendNames();

/// What a GPU says is taken beside what the backend has booked: the driver's context, kernels that
/// it has loaded, graphs, and what other processes hold there. 0 for backends in the host's memory,
/// of which the process's share cannot be told so.
int64_t DriverBytes(const Backend& backend);

}  // namespace quantd
