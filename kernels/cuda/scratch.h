// DeviceContext and Scratch: what the parts of a CudaBackend share, and the memory its ops work in.
//
// Scratch grows when an op needs more than any op before, never while a graph is captured; graphs
// that point to the old memory are dropped first. When there is no room the op is left out and the
// context remembers why: the step's results mean nothing, the backend goes on.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>

#include "absl/status/status.h"
#include "kernels/cuda/arena.h"
#include "kernels/cuda/ops.h"
#include "kernels/cuda/staging.h"

namespace quantd::QUANTD_CUDA_NS {

inline constexpr size_t kScratchAlignment = 256;
constexpr size_t AlignUp(size_t bytes) {
  return (bytes + kScratchAlignment - 1) / kScratchAlignment * kScratchAlignment;
}

struct DeviceContext {
  Stream stream = nullptr;  // of all work
  Stream side = nullptr;    // of work that may run beside it; always joined again
  Arena* arena = nullptr;
  Staging* staging = nullptr;
  DeviceLimits limits;
  bool capturing = false;               // between BeginCapture and EndCapture
  bool capture_failed = false;          // an op could not be captured
  absl::Status failure;                 // memory an op has lacked since the last ticket
  std::function<void()> before_growth;  // drops the graphs

  /// Remembers the first `status` that is not OK.
  void Note(const absl::Status& status) {
    if (failure.ok()) failure = status;
  }
};

class Scratch {
 public:
  explicit Scratch(DeviceContext& context) : context_(context) {}

  /// At least `bytes` and `counters` zero counters, valid until the next call. False, with the
  /// reason noted, when there is no room or a capture is under way: the op must be left out.
  bool Reserve(size_t bytes, int32_t counters, Workspace* workspace);

 private:
  bool Grow(Buffer& buffer, size_t bytes);

  DeviceContext& context_;
  Buffer data_;
  Buffer counters_;
};

}  // namespace quantd::QUANTD_CUDA_NS
