// Staging: the way of bytes between ordinary host memory and the device, through a ring of pinned
// segments.
//
// Small uploads fill a segment one behind the other and return at once; the host waits only when it
// has come around to a segment whose copies have not run yet. Large ones go in pieces of a segment,
// so that the host fills one while the device reads another. One thread at a time.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/cuda/runtime.h"

namespace quantd::QUANTD_CUDA_NS {

class Staging {
 public:
  /// RESOURCE_EXHAUSTED when the host has no pinned memory left. `stream` must outlive it.
  static absl::StatusOr<std::unique_ptr<Staging>> Create(Stream stream, size_t segment_bytes,
                                                         int num_segments);
  /// The stream is idle.
  ~Staging();

  /// `host` may be reused when it returns; the copy has its place in the stream.
  void Upload(const void* host, size_t bytes, void* device);
  /// Waits for everything submitted before, then has copied.
  void Download(const void* device, size_t bytes, void* host);

 private:
  struct Segment {
    std::byte* data = nullptr;
    Event event = nullptr;  // behind its last copy
  };

  Staging(Stream stream, size_t segment_bytes) : stream_(stream), segment_bytes_(segment_bytes) {}
  /// Marks the current segment and moves to the next, once that is free.
  void Advance();

  const Stream stream_;
  const size_t segment_bytes_;
  std::vector<Segment> segments_;
  size_t current_ = 0;
  size_t used_ = 0;  // bytes of the current segment
};

}  // namespace quantd::QUANTD_CUDA_NS
