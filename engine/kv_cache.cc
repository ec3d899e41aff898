#include "engine/kv_cache.h"

#include "kernels/status.h"

namespace quantd {
namespace {

// Of one token's K or V in one head.
int64_t ScaleBytes(DType dtype) {
  return dtype == DType::kI8 ? static_cast<int64_t>(sizeof(float)) : 0;
}

}  // namespace

int64_t KvCache::BytesPerToken(const DecoderSpec& spec, DType dtype) {
  return 2 * spec.num_layers * spec.num_kv_heads *
         (spec.head_dim * static_cast<int64_t>(SizeOf(dtype)) + ScaleBytes(dtype));
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
  const int64_t rows = int64_t{num_blocks} * block_size * spec.num_kv_heads;
  const auto allocate = [&](int64_t row_bytes) -> absl::StatusOr<void*> {
    if (row_bytes == 0) return nullptr;
    ASSIGN_OR_RETURN(Buffer buffer, backend.Allocate(static_cast<size_t>(rows * row_bytes),
                                                     MemoryComponent::kKvCache));
    cache->buffers_.push_back(std::move(buffer));
    return cache->buffers_.back().data();
  };
  for (int64_t i = 0; i < spec.num_layers; ++i) {
    KvLayer layer;
    layer.dtype = dtype;
    layer.num_blocks = num_blocks;
    layer.block_size = block_size;
    layer.num_kv_heads = static_cast<int32_t>(spec.num_kv_heads);
    layer.head_dim = static_cast<int32_t>(spec.head_dim);
    const int64_t row_bytes = spec.head_dim * static_cast<int64_t>(SizeOf(dtype));
    ASSIGN_OR_RETURN(layer.k, allocate(row_bytes));
    ASSIGN_OR_RETURN(layer.v, allocate(row_bytes));
    ASSIGN_OR_RETURN(void* const k_scales, allocate(ScaleBytes(dtype)));
    ASSIGN_OR_RETURN(void* const v_scales, allocate(ScaleBytes(dtype)));
    layer.k_scales = static_cast<float*>(k_scales);
    layer.v_scales = static_cast<float*>(v_scales);
    cache->layers_.push_back(layer);
  }
  return cache;
}

}  // namespace quantd
