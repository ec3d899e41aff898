// runtime.h on the CPU: a stream is a queue of closures that run only when the host waits.
//
// An event is a place in a stream's queue. Waiting for one runs that stream so far, and the streams
// it waits for in turn; places lie in the past of the one who waits, so this ends. One lock guards
// all of it, held while kernels run: two OS threads with a backend each take turns.
#include "kernels/cuda/runtime.h"

#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <set>
#include <thread>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "kernels/cuda/emulation/global_memory.h"
#include "kernels/cuda/emulation/shared_memory.h"
#include "kernels/cuda/emulation/testing.h"

namespace quantd::cuda_emulated {
namespace {

using Work = std::function<void()>;

struct GraphContent {
  std::vector<Work> work;
};

/// A capture that is under way.
struct Capture {
  std::shared_ptr<GraphContent> content = std::make_shared<GraphContent>();
  std::thread::id thread;
  bool valid = true;
};

struct StreamState {
  std::deque<Work> queue;
  uint64_t submitted = 0;
  uint64_t begun = 0;  // taken from the queue to run
  std::unique_ptr<Capture> capture;
};

}  // namespace

struct EmulatedStream {
  std::shared_ptr<StreamState> state = std::make_shared<StreamState>();
};

struct EventImpl {
  std::shared_ptr<StreamState> stream;  // null until the first Record
  uint64_t place = 0;                   // work of `stream` before it
  bool captured = false;                // recorded into a graph: says nothing to the host
};

struct GraphImpl {
  std::shared_ptr<GraphContent> content;
};

namespace {

struct Device {
  std::mutex mutex;
  std::set<EmulatedStream*> streams;
  absl::Status first_error;
  int multiprocessors = 4;
  size_t shared_memory = kMaxSharedMemory;  // of a block
};
// Never destroyed: streams of static objects are destroyed at exit.
Device& GetDevice() {
  static Device* const device = new Device;
  return *device;
}

StreamState& StateOf(const Device& device, EmulatedStream* stream) {
  if (!device.streams.contains(stream)) {
    Fatal("%p is no stream: streams come from CreateStream and end with DestroyStream",
          static_cast<void*>(stream));
  }
  return *stream->state;
}

void RecordError(Device& device, const std::string& message) {
  if (device.first_error.ok()) device.first_error = absl::UnavailableError(message);
}

// testing.h: a file says so.
void FailIfOrdered(Device& device) {
  static const char* const path = std::getenv("QUANTD_EMULATION_FAILURE");
  if (path != nullptr && access(path, F_OK) == 0) RecordError(device, "a failure was ordered");
}

void RunUpTo(Device& device, StreamState& stream, uint64_t place) {
  while (stream.begun < place) {
    const Work work = std::move(stream.queue.front());
    stream.queue.pop_front();
    ++stream.begun;
    if (device.first_error.ok()) work();  // after a failure a device does nothing more
  }
}

void Drain(Device& device, StreamState& stream) { RunUpTo(device, stream, stream.submitted); }
void DrainAll(Device& device) {
  for (EmulatedStream* stream : device.streams) Drain(device, *stream->state);
}

void Submit(StreamState& stream, Work work) {
  if (stream.capture != nullptr) {
    stream.capture->content->work.push_back(std::move(work));
  } else {
    stream.queue.push_back(std::move(work));
    ++stream.submitted;
  }
}

// What waits for the device, or allocates, breaks a capture that its OS thread has begun.
void InvalidateCaptures(Device& device) {
  for (EmulatedStream* stream : device.streams) {
    Capture* const capture = stream->state->capture.get();
    if (capture != nullptr && capture->thread == std::this_thread::get_id()) capture->valid = false;
  }
}

}  // namespace

absl::StatusOr<DeviceFacts> OpenDevice(int ordinal) {
  if (ordinal != 0) {
    return absl::UnavailableError("no CUDA device " + std::to_string(ordinal) +
                                  ": the emulation has one, device 0");
  }
  Device& device = GetDevice();
  const std::lock_guard lock(device.mutex);
  const DeviceMemoryUse memory = GetDeviceMemoryUse();
  DeviceFacts facts;
  facts.name = "emulated CUDA device";
  facts.major = 9;
  facts.minor = 0;
  facts.multiprocessors = device.multiprocessors;
  facts.total_memory = static_cast<int64_t>(memory.total);
  facts.free_memory = static_cast<int64_t>(memory.total - std::min(memory.total, memory.used));
  facts.max_shared_memory = static_cast<int64_t>(device.shared_memory);
  return facts;
}

void* DeviceAllocate(size_t bytes) {
  Device& device = GetDevice();
  const std::lock_guard lock(device.mutex);
  InvalidateCaptures(device);
  return AllocateMemory(MemoryKind::kDevice, bytes);
}

void DeviceFree(void* data) {
  Device& device = GetDevice();
  const std::lock_guard lock(device.mutex);
  InvalidateCaptures(device);
  DrainAll(device);
  FreeMemory(MemoryKind::kDevice, data);
}

void* PinnedAllocate(size_t bytes) { return AllocateMemory(MemoryKind::kPinned, bytes); }

void PinnedFree(void* data) {
  Device& device = GetDevice();
  const std::lock_guard lock(device.mutex);
  DrainAll(device);
  FreeMemory(MemoryKind::kPinned, data);
}

Stream CreateStream() {
  Device& device = GetDevice();
  const std::lock_guard lock(device.mutex);
  return *device.streams.insert(new EmulatedStream).first;
}

void DestroyStream(Stream stream) {
  if (stream == nullptr) return;
  Device& device = GetDevice();
  const std::lock_guard lock(device.mutex);
  Drain(device, StateOf(device, stream));
  device.streams.erase(stream);
  delete stream;
}

void Enqueue(EmulatedStream* stream, Work work) {
  Device& device = GetDevice();
  const std::lock_guard lock(device.mutex);
  Submit(StateOf(device, stream), std::move(work));
}

void EnqueueGrid(EmulatedStream* stream, KernelRecord& kernel, dim3 grid, dim3 block,
                 size_t shared_bytes, Work thread_body) {
  Device& device = GetDevice();
  const std::lock_guard lock(device.mutex);
  FailIfOrdered(device);
  StreamState& state = StateOf(device, stream);
  const auto outside = [](unsigned n, unsigned limit) { return n == 0 || n > limit; };
  if (outside(grid.x, 0x7FFFFFFF) || outside(grid.y, 65535) || outside(grid.z, 65535) ||
      outside(block.x, 1024) || outside(block.y, 1024) || outside(block.z, 64) ||
      uint64_t{block.x} * block.y * block.z > 1024 || shared_bytes > device.shared_memory) {
    const auto text = [](dim3 d) {
      return "(" + std::to_string(d.x) + ", " + std::to_string(d.y) + ", " + std::to_string(d.z) +
             ")";
    };
    RecordError(device, kernel.name + ": invalid configuration: grid " + text(grid) + ", block " +
                            text(block) + ", " + std::to_string(shared_bytes) +
                            " bytes of shared memory");
    return;
  }
  Submit(state, [&kernel, grid, block, shared_bytes, body = std::move(thread_body)] {
    ++kernel.launches;
    RunGrid(kernel.name.c_str(), grid, block, shared_bytes, body);
  });
}

void CopyAsync(void* to, const void* from, size_t bytes, Stream stream) {
  if (bytes == 0) return;
  const MemoryKind to_kind = KindOfRange("CopyAsync", to, bytes);
  const MemoryKind from_kind = KindOfRange("CopyAsync", from, bytes);
  if (to_kind != MemoryKind::kDevice && from_kind != MemoryKind::kDevice) {
    Fatal("CopyAsync of %zu bytes from %p to %p: neither is device memory", bytes, from, to);
  }
  Device& device = GetDevice();
  const std::lock_guard lock(device.mutex);
  StreamState& state = StateOf(device, stream);
  const bool pageable = to_kind == MemoryKind::kPageable || from_kind == MemoryKind::kPageable;
  if (pageable && state.capture != nullptr) {
    state.capture->valid = false;
    return;
  }
  Submit(state, [=] { std::memcpy(to, from, bytes); });
  // CUDA copies pageable memory before the call returns.
  if (pageable) Drain(device, state);
}

void FillAsync(void* to, int byte, size_t bytes, Stream stream) {
  if (bytes == 0) return;
  if (KindOfRange("FillAsync", to, bytes) == MemoryKind::kPageable) {
    Fatal("FillAsync of %zu bytes at %p, which is not device memory", bytes, to);
  }
  Device& device = GetDevice();
  const std::lock_guard lock(device.mutex);
  Submit(StateOf(device, stream), [=] { std::memset(to, byte, bytes); });
}

absl::Status Synchronize(Stream stream) {
  Device& device = GetDevice();
  const std::lock_guard lock(device.mutex);
  InvalidateCaptures(device);
  Drain(device, StateOf(device, stream));
  CheckGuards();
  return device.first_error;
}

Event CreateEvent() { return new EventImpl; }
void DestroyEvent(Event event) { delete event; }

void Record(Event event, Stream stream) {
  Device& device = GetDevice();
  const std::lock_guard lock(device.mutex);
  StreamState& state = StateOf(device, stream);
  event->stream = stream->state;
  event->place = state.submitted;
  event->captured = state.capture != nullptr;
}

absl::Status Wait(Event event) {
  Device& device = GetDevice();
  const std::lock_guard lock(device.mutex);
  InvalidateCaptures(device);
  if (event->captured) {
    RecordError(device, "Wait for an event that was recorded into a graph");
  } else if (event->stream != nullptr) {
    RunUpTo(device, *event->stream, event->place);
    CheckGuards();
  }
  return device.first_error;
}

void WaitOn(Stream stream, Event event) {
  Device& device = GetDevice();
  const std::lock_guard lock(device.mutex);
  StreamState& state = StateOf(device, stream);
  if (event->stream == nullptr) return;
  if (event->captured || state.capture != nullptr) {
    // Within a captured stream order is kept anyway; a capture here is of one stream alone.
    const bool same = event->captured && event->stream.get() == &state && state.capture != nullptr;
    if (!same) {
      if (event->stream->capture != nullptr) event->stream->capture->valid = false;
      if (state.capture != nullptr) state.capture->valid = false;
    }
    return;
  }
  Submit(state, [&device, other = event->stream, place = event->place] {
    RunUpTo(device, *other, place);
  });
}

void BeginCapture(Stream stream) {
  Device& device = GetDevice();
  const std::lock_guard lock(device.mutex);
  StreamState& state = StateOf(device, stream);
  if (state.capture != nullptr) Fatal("BeginCapture of a stream that is being captured");
  state.capture = std::make_unique<Capture>();
  state.capture->thread = std::this_thread::get_id();
}

Graph EndCapture(Stream stream) {
  Device& device = GetDevice();
  const std::lock_guard lock(device.mutex);
  const std::unique_ptr<Capture> capture = std::move(StateOf(device, stream).capture);
  if (capture == nullptr) Fatal("EndCapture of a stream that is not being captured");
  return capture->valid ? new GraphImpl{capture->content} : nullptr;
}

void LaunchGraph(Graph graph, Stream stream) {
  Device& device = GetDevice();
  const std::lock_guard lock(device.mutex);
  FailIfOrdered(device);
  Submit(StateOf(device, stream), [content = graph->content] {
    for (const Work& work : content->work) work();
  });
}

void DestroyGraph(Graph graph) { delete graph; }

absl::Status FirstError() {
  Device& device = GetDevice();
  const std::lock_guard lock(device.mutex);
  return device.first_error;
}

void SetMultiprocessors(int count) {
  Device& device = GetDevice();
  const std::lock_guard lock(device.mutex);
  device.multiprocessors = count;
}

void SetSharedMemory(size_t bytes) {
  Device& device = GetDevice();
  const std::lock_guard lock(device.mutex);
  device.shared_memory = std::min(bytes, kMaxSharedMemory);
}

void InjectDeviceFailure(const std::string& message) {
  Device& device = GetDevice();
  const std::lock_guard lock(device.mutex);
  RecordError(device, message);
}

void ClearDeviceFailures() {
  Device& device = GetDevice();
  const std::lock_guard lock(device.mutex);
  device.first_error = absl::OkStatus();
}

}  // namespace quantd::cuda_emulated
