// KvCache: the bytes of the paged KV cache, all layers. Who may write where is BlockPool's
// business.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/models/decoder_spec.h"
#include "kernels/backend.h"

namespace quantd {

class KvCache {
 public:
  /// Bytes one token takes over all layers, scales included. `dtype`: a float type, or int8.
  static int64_t BytesPerToken(const DecoderSpec& spec, DType dtype);
  /// `num_blocks` includes the reserved block 0. RESOURCE_EXHAUSTED when the backend has no room.
  static absl::StatusOr<std::unique_ptr<KvCache>> Create(Backend& backend, const DecoderSpec& spec,
                                                         DType dtype, int32_t num_blocks,
                                                         int32_t block_size);

  const KvLayer& layer(int64_t i) const { return layers_[static_cast<size_t>(i)]; }
  int32_t num_blocks() const { return num_blocks_; }
  int32_t block_size() const { return block_size_; }

 private:
  KvCache() = default;
  int32_t num_blocks_ = 0;
  int32_t block_size_ = 0;
  std::vector<Buffer> buffers_;
  std::vector<KvLayer> layers_;
};

}  // namespace quantd
