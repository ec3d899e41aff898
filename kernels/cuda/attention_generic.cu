// Paged causal attention for every head size and every mix of types, in f32 on CUDA cores.
//
// Idea: online softmax over tiles of 128 keys from position 0, so that a row's bits depend on its
// own
//   position, K, V and table only.
// int8: a score takes the scale of its key, a weight that of its value.
// Mapping: a block is one (row, head); for scores a thread takes a key of the tile, for sums of V a
//   column. The state of a column belongs to its thread.
// Bytes: K and V of the context once per query head, not per kv head; L2 holds what heads share.
// Bound: latency and L2; a fallback.
#include <type_traits>

#include "kernels/cuda/attention.cuh"
#include "kernels/cuda/elements.cuh"
#include "kernels/cuda/numeric.cuh"

namespace quantd::QUANTD_CUDA_NS {
namespace {

constexpr int kKeys = 128;  // a tile, and the threads of a block

template <typename Q, typename C>
__global__ void __launch_bounds__(kKeys) AttentionRow(const AttentionArgs a, int head_dim) {
  DYN_SMEM(float, q);                   // [head_dim]
  float* const o = q + head_dim;        // [head_dim]
  float* const weights = o + head_dim;  // [kKeys]
  constexpr bool kInt8 = std::is_same_v<C, int8_t>;
  float* const shares = kInt8 ? weights + kKeys : weights;  // [kKeys] weights times scales of V
  const int thread = static_cast<int>(threadIdx.x);
  const int row = static_cast<int>(blockIdx.x), head = static_cast<int>(blockIdx.y);
  const int position = a.positions[row];
  const int32_t* const table =
      a.block_tables + static_cast<int64_t>(a.seq_of_row[row]) * a.max_blocks;
  const auto cache_row = [&](int key) {
    const int block = key / a.block_size;
    return (static_cast<int64_t>(table[block]) * a.num_kv_heads + head / a.group) * a.block_size +
           (key - block * a.block_size);
  };
  const int64_t head_offset = static_cast<int64_t>(head) * head_dim;
  const Q* const from = static_cast<const Q*>(a.q) + row * a.q_stride + head_offset;
  for (int d = thread; d < head_dim; d += kKeys) {
    q[d] = ToFloat(from[d]);
    o[d] = 0.0f;
  }
  __syncthreads();

  float m = -INFINITY, l = 0.0f;
  const int first_key = FirstKey(a, position);
  for (int first = first_key / kKeys * kKeys; first <= position; first += kKeys) {
    const int count = min(kKeys, position + 1 - first);
    float score = -INFINITY;
    if (thread < count && first + thread >= first_key) {
      const int64_t at = cache_row(first + thread);
      const C* const k = static_cast<const C*>(a.k) + at * head_dim;
      float dot = 0.0f;
      for (int d = 0; d < head_dim; ++d) dot = fmaf(q[d], ToFloat(k[d]), dot);
      if constexpr (kInt8) dot *= a.k_scales[at];
      if (a.cap_log2 != 0.0f) dot = CappedScore(dot * a.cap_log2);
      score = dot * a.scale_log2;
    }
    weights[thread] = score;
    __syncthreads();
    float largest = m;
    for (int i = 0; i < count; ++i) largest = fmaxf(largest, weights[i]);
    __syncthreads();
    const float weight = Exp2(score - largest);
    weights[thread] = weight;
    if constexpr (kInt8) {
      if (thread < count) shares[thread] = weight * a.v_scales[cache_row(first + thread)];
    }
    __syncthreads();
    const float keep = Exp2(m - largest);
    m = largest;
    float sum = 0.0f;
    for (int i = 0; i < count; ++i) sum += weights[i];
    l = fmaf(l, keep, sum);
    for (int d = thread; d < head_dim; d += kKeys) {
      float value = o[d] * keep;
      for (int i = 0; i < count; ++i) {
        const C* const v = static_cast<const C*>(a.v) + cache_row(first + i) * head_dim;
        value = fmaf(shares[i], ToFloat(v[d]), value);
      }
      o[d] = value;
    }
    __syncthreads();
  }

  const float scale = 1.0f / l;
  Q* const out = static_cast<Q*>(a.out) + row * a.out_stride + head_offset;
  for (int d = thread; d < head_dim; d += kKeys) out[d] = FromFloat<Q>(o[d] * scale);
}

}  // namespace

void AttentionGeneric(const AttentionArgs& a, FloatType type, FloatType cache_type, int head_dim,
                      Stream stream) {
  const dim3 grid(static_cast<unsigned>(a.rows), static_cast<unsigned>(a.num_heads));
  const size_t shared = (2 * static_cast<size_t>(head_dim) + kKeys) * sizeof(float);
  WithType(type, [&](auto q) {
    using Q = typename decltype(q)::Type;
    if (a.k_scales != nullptr) {
      LAUNCH((AttentionRow<Q, int8_t>), grid, dim3(kKeys), shared + kKeys * sizeof(float), stream,
             a, head_dim);
      return;
    }
    WithType(cache_type, [&](auto c) {
      using C = typename decltype(c)::Type;
      LAUNCH((AttentionRow<Q, C>), grid, dim3(kKeys), shared, stream, a, head_dim);
    });
  });
}

}  // namespace quantd::QUANTD_CUDA_NS
