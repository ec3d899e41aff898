// The calls of the CUDA runtime that quantd makes, and no others: memory, streams, events, graphs.
//
// runtime_cuda.cc forwards them to the CUDA runtime (linked statically; without a driver OpenDevice
// says so). emulation/runtime_emulated.cc is their twin: a stream is a queue whose work runs only
// when the host waits for it, so that a host buffer reused too early, or a result read too early,
// is a wrong result on a machine without a GPU too.
//
// Threads: any, one at a time per stream.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "absl/status/statusor.h"
#include "kernels/cuda/target.h"

namespace quantd::QUANTD_CUDA_NS {

struct DeviceFacts {
  std::string name;  // "NVIDIA H100 80GB HBM3"
  int major = 0;     // compute capability
  int minor = 0;
  int multiprocessors = 0;
  int64_t total_memory = 0;       // bytes
  int64_t free_memory = 0;        // bytes, now
  int64_t max_shared_memory = 0;  // bytes a block may ask for
};

/// Makes `ordinal` the device of this process. UNAVAILABLE when there is no driver, no device or
/// one the binary has no code for (below compute capability 8.0), saying which.
absl::StatusOr<DeviceFacts> OpenDevice(int ordinal = 0);

/// Device memory, 256-byte aligned, not zeroed; nullptr when there is no room. Freed after all work
/// that uses it has finished.
void* DeviceAllocate(size_t bytes);
void DeviceFree(void* data);
/// Page-locked host memory; nullptr when there is no room.
void* PinnedAllocate(size_t bytes);
void PinnedFree(void* data);

Stream CreateStream();
void DestroyStream(Stream stream);
/// Copies between host (pinned) and device memory in either direction, or within the device.
void CopyAsync(void* to, const void* from, size_t bytes, Stream stream);
void FillAsync(void* to, int byte, size_t bytes, Stream stream);
/// Waits for everything submitted to `stream`. UNAVAILABLE with CUDA's message once anything
/// failed.
absl::Status Synchronize(Stream stream);

struct EventImpl;
using Event = EventImpl*;
Event CreateEvent();
void DestroyEvent(Event event);
/// Marks the end of what `stream` holds now.
void Record(Event event, Stream stream);
/// The host waits for the latest Record; at once when there was none. Errors as Synchronize.
absl::Status Wait(Event event);
/// Work submitted to `stream` from now on waits for the latest Record.
void WaitOn(Stream stream, Event event);

struct GraphImpl;
using Graph = GraphImpl*;
/// Between the two, work submitted to `stream` is recorded instead of run. EndCapture gives an
/// executable graph, or nullptr when something in between cannot be captured.
void BeginCapture(Stream stream);
Graph EndCapture(Stream stream);
void LaunchGraph(Graph graph, Stream stream);
void DestroyGraph(Graph graph);

/// The first error of any call or launch since the process started; OK when there was none.
absl::Status FirstError();

}  // namespace quantd::QUANTD_CUDA_NS
