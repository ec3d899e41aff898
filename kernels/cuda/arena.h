// Arena: all device memory of one backend. Taken from the device in slabs, handed out first fit,
// neighbours joined again when freed, booked by component.
//
// Everything it hands out is used on one stream, so memory may be given out again as soon as it is
// freed: what still runs comes first in the stream, then the zeroing, then the new owner's work.
// One thread at a time.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/cuda/runtime.h"
#include "kernels/memory_account.h"
#include "kernels/tensor.h"

namespace quantd::QUANTD_CUDA_NS {

struct ArenaOptions {
  // Bytes taken from the device at once for small requests; larger requests get a slab of their
  // own, and so does every request when this is 0.
  size_t slab_bytes = size_t{128} << 20;
  int64_t limit = 0;  // bytes of slabs at most; 0: as many as the device has
  int device = 0;     // whose free memory messages tell
};

class Arena final : public MemoryOwner {
 public:
  static constexpr size_t kAlignment = 256;

  /// `stream` zeroes what is handed out; it and `account` must outlive the arena and its buffers.
  Arena(Stream stream, MemoryAccount* account, const ArenaOptions& options);
  /// All buffers are gone and the stream is idle.
  ~Arena();

  /// Zeroed when the stream gets there. RESOURCE_EXHAUSTED saying what asked for how much, what is
  /// free and what every component has taken; nothing has changed then. 0 bytes: an empty buffer.
  absl::StatusOr<Buffer> Allocate(size_t bytes, MemoryComponent component);
  /// Of Buffer: `data` came from Allocate.
  void Free(void* data, size_t bytes) override;

  int64_t slab_bytes() const { return taken_; }  // taken from the device now
  int64_t num_slabs() const { return static_cast<int64_t>(slabs_.size()); }

 private:
  struct Slab {
    std::byte* data = nullptr;
    size_t bytes = 0;
    size_t used = 0;
    std::map<size_t, size_t> holes;  // offset to bytes; never two that touch
  };

  size_t Rounded(size_t bytes) const;
  // The place of `bytes` in a slab there is, or nullptr.
  std::byte* FindHole(size_t bytes);
  // A new slab with room for `bytes`; false when the device or the limit has none.
  bool AddSlab(size_t bytes);
  bool TryAddSlab(size_t bytes);
  void ReleaseEmptySlabs();
  absl::Status NoRoom(size_t bytes, MemoryComponent component) const;

  const Stream stream_;
  MemoryAccount* const account_;
  const ArenaOptions options_;
  int64_t taken_ = 0;
  std::vector<std::unique_ptr<Slab>> slabs_;  // in the order they were taken
};

}  // namespace quantd::QUANTD_CUDA_NS
