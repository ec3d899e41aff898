// Staging: see staging.h.
#include "kernels/cuda/staging.h"

#include <algorithm>
#include <cstring>

#include "kernels/status.h"

namespace quantd::QUANTD_CUDA_NS {
namespace {

constexpr size_t kAlignment = 256;  // of a copy's source

}  // namespace

absl::StatusOr<std::unique_ptr<Staging>> Staging::Create(Stream stream, size_t segment_bytes,
                                                         int num_segments) {
  std::unique_ptr<Staging> staging(new Staging(stream, segment_bytes));
  for (int i = 0; i < num_segments; ++i) {
    auto* data = static_cast<std::byte*>(PinnedAllocate(segment_bytes));
    if (data == nullptr) {
      return ResourceExhausted("no pinned host memory for {} bytes of transfers",
                               segment_bytes * static_cast<size_t>(num_segments));
    }
    staging->segments_.push_back({data, CreateEvent()});
  }
  return staging;
}

Staging::~Staging() {
  for (const Segment& segment : segments_) {
    DestroyEvent(segment.event);
    PinnedFree(segment.data);
  }
}

void Staging::Advance() {
  Record(segments_[current_].event, stream_);
  current_ = (current_ + 1) % segments_.size();
  used_ = 0;
  // An error stays in the runtime, where the next wait of the backend finds it.
  Wait(segments_[current_].event).IgnoreError();
}

void Staging::Upload(const void* host, size_t bytes, void* device) {
  const auto* from = static_cast<const std::byte*>(host);
  auto* to = static_cast<std::byte*>(device);
  while (bytes > 0) {
    // A short upload is not cut: it would cost two copies.
    if (used_ == segment_bytes_ || (used_ > 0 && used_ + bytes > segment_bytes_)) Advance();
    const size_t piece = std::min(bytes, segment_bytes_ - used_);
    std::byte* const pinned = segments_[current_].data + used_;
    std::memcpy(pinned, from, piece);
    CopyAsync(to, pinned, piece, stream_);
    used_ = std::min((used_ + piece + kAlignment - 1) / kAlignment * kAlignment, segment_bytes_);
    from += piece;
    to += piece;
    bytes -= piece;
  }
}

void Staging::Download(const void* device, size_t bytes, void* host) {
  const auto* from = static_cast<const std::byte*>(device);
  auto* to = static_cast<std::byte*>(host);
  struct Piece {
    const Segment* segment = nullptr;
    std::byte* to = nullptr;
    size_t bytes = 0;
  };
  Piece before;
  const auto finish = [](const Piece& piece) {
    if (piece.bytes == 0) return;
    Wait(piece.segment->event).IgnoreError();
    std::memcpy(piece.to, piece.segment->data, piece.bytes);
  };
  while (bytes > 0) {
    Advance();
    const Segment& segment = segments_[current_];
    const Piece piece = {&segment, to, std::min(bytes, segment_bytes_)};
    CopyAsync(segment.data, from, piece.bytes, stream_);
    Record(segment.event, stream_);
    finish(before);  // while this one is on its way
    before = piece;
    from += piece.bytes;
    to += piece.bytes;
    bytes -= piece.bytes;
  }
  finish(before);
}

}  // namespace quantd::QUANTD_CUDA_NS
