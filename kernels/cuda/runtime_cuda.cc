// runtime.h over the CUDA runtime, and the two functions behind LAUNCH. The first error of the
// process is kept: after a kernel has failed nothing of the device can be trusted, and later calls
// only repeat the message.
#include <mutex>
#include <set>

#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/launch_log.h"
#include "kernels/cuda/runtime.h"
#include "kernels/status.h"

namespace quantd::cuda {
namespace {

struct ErrorLog {
  std::mutex mutex;
  absl::Status first;                 // OK: nothing has failed yet
  const char* last_kernel = nullptr;  // string literals of LAUNCH
  std::set<const char*> launched;     // since TakeLaunchedKernels
};

ErrorLog& Log() {
  static ErrorLog log;
  return log;
}

// Keeps `error` if it is the first one. Errors of kernels surface at a later call: the message says
// which kernel was launched last, which is the one that failed or a later one.
void Note(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  ErrorLog& log = Log();
  std::lock_guard lock(log.mutex);
  if (!log.first.ok()) return;
  log.first = Unavailable("CUDA: {}: {} ({}); the last kernel launched was {}", what,
                          cudaGetErrorString(error), cudaGetErrorName(error),
                          log.last_kernel == nullptr ? "none" : log.last_kernel);
}

std::string VersionText(int version) {
  return fmt::format("{}.{}", version / 1000, version % 1000 / 10);
}

absl::StatusOr<int> Attribute(cudaDeviceAttr attribute, int ordinal) {
  int value = 0;
  const cudaError_t error = cudaDeviceGetAttribute(&value, attribute, ordinal);
  if (error != cudaSuccess) return Unavailable("CUDA: {}", cudaGetErrorString(error));
  return value;
}

}  // namespace

void AllowSharedMemory(const void* kernel, size_t bytes) {
  Note(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                            static_cast<int>(bytes)),
       "asking for shared memory");
}

void NoteLaunch(const char* kernel) {
  const cudaError_t error = cudaGetLastError();
  {
    ErrorLog& log = Log();
    std::lock_guard lock(log.mutex);
    log.last_kernel = kernel;
    log.launched.insert(kernel);
  }
  Note(error, "launching a kernel");
}

std::vector<std::string> TakeLaunchedKernels() {
  ErrorLog& log = Log();
  std::lock_guard lock(log.mutex);
  const std::set<std::string> names(log.launched.begin(), log.launched.end());
  log.launched.clear();
  return {names.begin(), names.end()};
}

absl::StatusOr<DeviceFacts> OpenDevice(int ordinal) {
  int driver = 0, runtime = 0, count = 0;
  if (cudaDriverGetVersion(&driver) != cudaSuccess || driver == 0) {
    return Unavailable("CUDA: this machine has no NVIDIA driver (libcuda.so.1)");
  }
  cudaRuntimeGetVersion(&runtime);
  const cudaError_t counted = cudaGetDeviceCount(&count);
  if (counted == cudaErrorInsufficientDriver) {
    return Unavailable("CUDA: the NVIDIA driver is for CUDA {}, this program needs CUDA {}",
                       VersionText(driver), VersionText(runtime));
  }
  if (counted == cudaErrorNoDevice || (counted == cudaSuccess && count == 0)) {
    return Unavailable("CUDA: there is a driver, but no NVIDIA GPU that may be used");
  }
  if (counted != cudaSuccess) {
    return Unavailable("CUDA: {} ({})", cudaGetErrorString(counted), cudaGetErrorName(counted));
  }
  if (ordinal < 0 || ordinal >= count) {
    return Unavailable("CUDA: device {} was asked for, there are {}", ordinal, count);
  }
  DeviceFacts facts;
  ASSIGN_OR_RETURN(facts.major, Attribute(cudaDevAttrComputeCapabilityMajor, ordinal));
  ASSIGN_OR_RETURN(facts.minor, Attribute(cudaDevAttrComputeCapabilityMinor, ordinal));
  cudaDeviceProp properties;
  if (const cudaError_t e = cudaGetDeviceProperties(&properties, ordinal); e != cudaSuccess) {
    return Unavailable("CUDA: device {}: {}", ordinal, cudaGetErrorString(e));
  }
  facts.name = properties.name;
  if (facts.major < 8) {
    return Unavailable("CUDA: {} has compute capability {}.{}, needed: 8.0 or later", facts.name,
                       facts.major, facts.minor);
  }
  ASSIGN_OR_RETURN(facts.multiprocessors, Attribute(cudaDevAttrMultiProcessorCount, ordinal));
  ASSIGN_OR_RETURN(const int shared, Attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, ordinal));
  facts.max_shared_memory = shared;
  if (const cudaError_t e = cudaSetDevice(ordinal); e != cudaSuccess) {
    return Unavailable("CUDA: {}: {}", facts.name, cudaGetErrorString(e));
  }
  size_t free = 0, total = 0;
  if (const cudaError_t e = cudaMemGetInfo(&free, &total); e != cudaSuccess) {
    return Unavailable("CUDA: {}: {}", facts.name, cudaGetErrorString(e));
  }
  facts.free_memory = static_cast<int64_t>(free);
  facts.total_memory = static_cast<int64_t>(total);
  return facts;
}

void* DeviceAllocate(size_t bytes) {
  void* data = nullptr;
  const cudaError_t error = cudaMalloc(&data, bytes);
  if (error == cudaSuccess) return data;
  cudaGetLastError();  // no room is no failure of the device
  if (error != cudaErrorMemoryAllocation) Note(error, "allocating device memory");
  return nullptr;
}

void DeviceFree(void* data) { Note(cudaFree(data), "freeing device memory"); }

void* PinnedAllocate(size_t bytes) {
  void* data = nullptr;
  const cudaError_t error = cudaHostAlloc(&data, bytes, cudaHostAllocDefault);
  if (error == cudaSuccess) return data;
  cudaGetLastError();
  if (error != cudaErrorMemoryAllocation) Note(error, "allocating pinned memory");
  return nullptr;
}

void PinnedFree(void* data) { Note(cudaFreeHost(data), "freeing pinned memory"); }

Stream CreateStream() {
  cudaStream_t stream = nullptr;
  Note(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "making a stream");
  return stream;
}

void DestroyStream(Stream stream) { Note(cudaStreamDestroy(stream), "ending a stream"); }

void CopyAsync(void* to, const void* from, size_t bytes, Stream stream) {
  Note(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, stream), "copying");
}

void FillAsync(void* to, int byte, size_t bytes, Stream stream) {
  Note(cudaMemsetAsync(to, byte, bytes, stream), "filling memory");
}

absl::Status Synchronize(Stream stream) {
  Note(cudaStreamSynchronize(stream), "waiting for the device");
  return FirstError();
}

// An event of CUDA never recorded counts as complete, as runtime.h asks.
struct EventImpl {
  cudaEvent_t event = nullptr;
};

Event CreateEvent() {
  auto* event = new EventImpl();
  Note(cudaEventCreateWithFlags(&event->event, cudaEventDisableTiming), "making an event");
  return event;
}

void DestroyEvent(Event event) {
  Note(cudaEventDestroy(event->event), "ending an event");
  delete event;
}

void Record(Event event, Stream stream) {
  Note(cudaEventRecord(event->event, stream), "recording an event");
}

absl::Status Wait(Event event) {
  Note(cudaEventSynchronize(event->event), "waiting for the device");
  return FirstError();
}

void WaitOn(Stream stream, Event event) {
  Note(cudaStreamWaitEvent(stream, event->event, 0), "ordering streams");
}

struct GraphImpl {
  cudaGraphExec_t executable = nullptr;
};

void BeginCapture(Stream stream) {
  Note(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "beginning a graph");
}

Graph EndCapture(Stream stream) {
  cudaGraph_t graph = nullptr;
  if (cudaStreamEndCapture(stream, &graph) != cudaSuccess || graph == nullptr) {
    cudaGetLastError();  // what cannot be captured is run as it is
    return nullptr;
  }
  cudaGraphExec_t executable = nullptr;
  const cudaError_t error = cudaGraphInstantiate(&executable, graph, 0);
  cudaGraphDestroy(graph);
  if (error != cudaSuccess) {
    cudaGetLastError();
    return nullptr;
  }
  return new GraphImpl{executable};
}

void LaunchGraph(Graph graph, Stream stream) {
  Note(cudaGraphLaunch(graph->executable, stream), "launching a graph");
}

void DestroyGraph(Graph graph) {
  Note(cudaGraphExecDestroy(graph->executable), "ending a graph");
  delete graph;
}

absl::Status FirstError() {
  ErrorLog& log = Log();
  std::lock_guard lock(log.mutex);
  return log.first;
}

}  // namespace quantd::cuda
