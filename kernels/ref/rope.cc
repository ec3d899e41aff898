// ref's rotary embedding (Su et al., 2021; halves paired as Hugging Face does) and KV store. f32,
// one rounding on store: q to its own dtype, k and v to the cache's; int8 as kv_codec.h defines it.
#include <algorithm>
#include <vector>

#include "kernels/quant/kv_codec.h"
#include "kernels/ref/elements.h"
#include "kernels/ref/ops.h"

namespace quantd::ref {
namespace {

/// Stores `values` [head_dim] as row `row` of a half of the cache.
void StoreCached(const std::vector<float>& values, DType dtype, int64_t row, void* half,
                 float* scales) {
  const int64_t first = row * static_cast<int64_t>(values.size());
  if (dtype != DType::kI8) {
    for (size_t i = 0; i < values.size(); ++i) {
      StoreElement(dtype, half, first + static_cast<int64_t>(i), values[i]);
    }
    return;
  }
  uint32_t largest = 0;
  for (const float x : values) largest = std::max(largest, KvMagnitude(x));
  const KvScale scale = KvScaleOf(largest);
  scales[row] = scale.scale;
  int8_t* const codes = static_cast<int8_t*>(half) + first;
  for (size_t i = 0; i < values.size(); ++i) codes[i] = KvCode(values[i], scale);
}

}  // namespace

void RopeAndStoreKv(const TensorView& q, const TensorView& k, const TensorView& v,
                    const float* cos_sin, const AttentionSpec& spec, const AttentionBatch& batch,
                    const KvLayer& cache) {
  const int64_t d = spec.head_dim, rotated = spec.rotated(), half = rotated / 2;
  std::vector<float> values(static_cast<size_t>(d));
  for (int64_t r = 0; r < q.rows; ++r) {
    const size_t row = static_cast<size_t>(r);
    const float* cosines = cos_sin + batch.positions[row] * rotated;
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
      const int64_t to = cache.Row(block, h, slot);
      for (int64_t i = 0; i < half; ++i) {
        const float a = Load(k, r, h * d + i), b = Load(k, r, h * d + half + i);
        values[static_cast<size_t>(i)] = a * cosines[i] - b * sines[i];
        values[static_cast<size_t>(half + i)] = b * cosines[i] + a * sines[i];
      }
      for (int64_t i = rotated; i < d; ++i) values[static_cast<size_t>(i)] = Load(k, r, h * d + i);
      StoreCached(values, cache.dtype, to, cache.k, cache.k_scales);
      for (int64_t i = 0; i < d; ++i) values[static_cast<size_t>(i)] = Load(v, r, h * d + i);
      StoreCached(values, cache.dtype, to, cache.v, cache.v_scales);
    }
  }
}

}  // namespace quantd::ref
