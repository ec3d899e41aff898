#include "engine/kv_cache.h"

#include "kernels/status.h"

namespace quantd {

int64_t KvCache::BytesPerToken(const DecoderSpec& spec, DType dtype) {
  return 2 * spec.num_layers * spec.num_kv_heads * spec.head_dim *
         static_cast<int64_t>(SizeOf(dtype));
}

absl::StatusOr<std::unique_ptr<KvCache>> KvCache::Create(Backend& backend, const DecoderSpec& spec,
                                                         DType dtype, int32_t num_blocks,
                                                         int32_t block_size) {
  // Block 0 is reserved, so a usable cache has two. Slots are int32.
  if (num_blocks < 2 || block_size < 1 || int64_t{num_blocks} * block_size > INT32_MAX) {
    return InvalidArgument(
        "a KV cache of {} blocks of {} tokens; at least 2 blocks of 1, below 2^31 tokens",
        num_blocks, block_size);
  }
  std::unique_ptr<KvCache> cache(new KvCache());
  cache->num_blocks_ = num_blocks;
  cache->block_size_ = block_size;
  const size_t half =
      static_cast<size_t>(int64_t{num_blocks} * block_size * spec.num_kv_heads * spec.head_dim) *
      SizeOf(dtype);
  for (int64_t i = 0; i < spec.num_layers; ++i) {
    ASSIGN_OR_RETURN(Buffer k, backend.Allocate(half, MemoryComponent::kKvCache));
    ASSIGN_OR_RETURN(Buffer v, backend.Allocate(half, MemoryComponent::kKvCache));
    cache->layers_.push_back({dtype, k.data(), v.data(), num_blocks, block_size,
                              static_cast<int32_t>(spec.num_kv_heads),
                              static_cast<int32_t>(spec.head_dim)});
    cache->buffers_.push_back(std::move(k));
    cache->buffers_.push_back(std::move(v));
  }
  return cache;
}

}  // namespace quantd
