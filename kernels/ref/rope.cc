// ref's rotary embedding (Su et al., 2021; halves paired as Hugging Face does) and KV store. f32,
// one rounding on store: q to its own dtype, k and v to the cache's.
#include "kernels/ref/elements.h"
#include "kernels/ref/ops.h"

namespace quantd::ref {

void RopeAndStoreKv(const TensorView& q, const TensorView& k, const TensorView& v,
                    const float* cos_sin, const AttentionSpec& spec, const AttentionBatch& batch,
                    const KvLayer& cache) {
  const int64_t d = spec.head_dim, half = d / 2;
  for (int64_t r = 0; r < q.rows; ++r) {
    const size_t row = static_cast<size_t>(r);
    const float* cosines = cos_sin + batch.positions[row] * d;
    const float* sines = cosines + half;
    const int64_t block = batch.slots[row] / cache.block_size;
    const int64_t slot = batch.slots[row] % cache.block_size;

    for (int64_t h = 0; h < spec.num_heads; ++h) {
      for (int64_t i = 0; i < half; ++i) {
        const float a = Load(q, r, h * d + i), b = Load(q, r, h * d + half + i);
        Store(q, r, h * d + i, a * cosines[i] - b * sines[i]);
        Store(q, r, h * d + half + i, b * cosines[i] + a * sines[i]);
      }
    }
    for (int64_t h = 0; h < spec.num_kv_heads; ++h) {
      const int64_t to = cache.Offset(block, h, slot);
      for (int64_t i = 0; i < half; ++i) {
        const float a = Load(k, r, h * d + i), b = Load(k, r, h * d + half + i);
        StoreElement(cache.dtype, cache.k, to + i, a * cosines[i] - b * sines[i]);
        StoreElement(cache.dtype, cache.k, to + half + i, b * cosines[i] + a * sines[i]);
      }
      for (int64_t i = 0; i < d; ++i) {
        StoreElement(cache.dtype, cache.v, to + i, Load(v, r, h * d + i));
      }
    }
  }
}

}  // namespace quantd::ref
