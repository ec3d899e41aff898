// Causal attention of one row over the paged cache, for the query heads that share a KV head.
//
// Idea: online softmax (Milakov and Gimelshein, 2018) over tiles of kTile keys that start at
// position 0, so that a row's result depends on its position only, never on how its sequence was
// cut into steps; with a window, the tiles before it are passed over and keys of the first masked.
// A tile's K and V are converted to f32 once and used by all query heads of the
// group; the scales of an int8 cache go to scores and weights, once a key. Mapping: one call is one
// (row, KV head); the backend splits calls over threads. Bytes: K and V once a call, from L1/L2 for
// the rows of one prompt. Bound: at decode memory, at prefill the dot products. The order of these
// matters.
// clang-format off
#include "kernels/cpu/highway_targets.h"
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/attention.cc"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>
#include <hwy/contrib/math/math-inl.h>
// clang-format on

#include <algorithm>
#include <limits>
#include <type_traits>

#include "kernels/cpu/lanes-inl.h"
#include "kernels/cpu/vector_ops.h"

HWY_BEFORE_NAMESPACE();
namespace quantd {
namespace HWY_NAMESPACE {
#if HWY_TARGET != HWY_SCALAR
namespace {

constexpr int64_t kTile = 32;  // keys; a tile of K or V of 128 floats is 16 KiB, half of L1

constexpr int64_t PaddedDim(int64_t head_dim) { return (head_dim + kLanes - 1) / kLanes * kLanes; }

int64_t ScratchFloats(const AttentionSpec& spec) {
  const int64_t group = spec.num_heads / spec.num_kv_heads;
  // q and output sums of the group, a tile of K or V, its scales, scores, and two statistics a
  // head.
  return (2 * group + kTile) * PaddedDim(spec.head_dim) + kTile + group * (kTile + 2);
}

/// Keys first .. first + count of a sequence's cache half as f32 rows [count][dim]; of int8 the
/// codes, and `half_scales` of the keys to `scales` [count].
template <class C>
void LoadTile(const C* half, const float* half_scales, const KvLayer& cache, const int32_t* table,
              int64_t kv_head, int64_t first, int64_t count, int64_t dim, float* tile,
              float* scales) {
  for (int64_t t = 0; t < count; ++t) {
    const int64_t position = first + t;
    const int64_t row =
        cache.Row(table[position / cache.block_size], kv_head, position % cache.block_size);
    ConvertRow(half + row * cache.head_dim, cache.head_dim, tile + t * dim);
    if (half_scales != nullptr) scales[t] = half_scales[row];
  }
}

/// values[t] *= scales[t] for all of a tile; what is behind its keys does not matter.
inline void MultiplyTile(const float* scales, float* values) {
  const D d;
  for (int64_t t = 0; t < kTile; t += kLanes) {
    hn::StoreU(hn::Mul(hn::LoadU(d, values + t), hn::LoadU(d, scales + t)), d, values + t);
  }
}

/// scores[t] = q . tile[t] * scale for t < count.
inline void Scores(const float* q, const float* tile, int64_t dim, int64_t count, float scale,
                   float* scores) {
  const D d;
  int64_t t = 0;
  for (; t + 4 <= count; t += 4) {
    const float* k = tile + t * dim;
    V s0 = hn::Zero(d), s1 = hn::Zero(d), s2 = hn::Zero(d), s3 = hn::Zero(d);
    for (int64_t i = 0; i < dim; i += kLanes) {
      const V qi = hn::LoadU(d, q + i);
      s0 = hn::MulAdd(qi, hn::LoadU(d, k + i), s0);
      s1 = hn::MulAdd(qi, hn::LoadU(d, k + dim + i), s1);
      s2 = hn::MulAdd(qi, hn::LoadU(d, k + 2 * dim + i), s2);
      s3 = hn::MulAdd(qi, hn::LoadU(d, k + 3 * dim + i), s3);
    }
    scores[t] = hn::GetLane(hn::SumOfLanes(d, s0)) * scale;
    scores[t + 1] = hn::GetLane(hn::SumOfLanes(d, s1)) * scale;
    scores[t + 2] = hn::GetLane(hn::SumOfLanes(d, s2)) * scale;
    scores[t + 3] = hn::GetLane(hn::SumOfLanes(d, s3)) * scale;
  }
  for (; t < count; ++t) {
    V s = hn::Zero(d);
    for (int64_t i = 0; i < dim; i += kLanes) {
      s = hn::MulAdd(hn::LoadU(d, q + i), hn::LoadU(d, tile + t * dim + i), s);
    }
    scores[t] = hn::GetLane(hn::SumOfLanes(d, s)) * scale;
  }
}

/// values[t] = cap * tanh(values[t] / cap) for all of a tile.
inline void SoftCapTile(float cap, float* values) {
  const D d;
  const V caps = hn::Set(d, cap);
  for (int64_t t = 0; t < kTile; t += kLanes) {
    const V ratio = hn::Div(hn::LoadU(d, values + t), caps);
    hn::StoreU(hn::Mul(caps, hn::Tanh(d, ratio)), d, values + t);
  }
}

/// Folds a tile's scores into the running maximum and sum; scores become weights. Returns the
/// factor for what was summed before.
inline float FoldScores(float* scores, int64_t count, float* largest, float* total) {
  const D d;
  for (int64_t t = count; t < kTile; ++t) scores[t] = -std::numeric_limits<float>::infinity();
  V most = hn::Set(d, *largest);
  for (int64_t t = 0; t < kTile; t += kLanes) most = hn::Max(most, hn::LoadU(d, scores + t));
  const float now = hn::GetLane(hn::MaxOfLanes(d, most));
  const V shift = hn::Set(d, now);
  V sum = hn::Zero(d);
  for (int64_t t = 0; t < kTile; t += kLanes) {
    const V weight = hn::Exp(d, hn::Sub(hn::LoadU(d, scores + t), shift));
    hn::StoreU(weight, d, scores + t);
    sum = hn::Add(sum, weight);
  }
  const float factor = hn::GetLane(hn::Exp(d, hn::Set(d, *largest - now)));
  *largest = now;
  *total = *total * factor + hn::GetLane(hn::SumOfLanes(d, sum));
  return factor;
}

/// sums = sums * factor + sum over t of weights[t] * tile[t].
inline void Accumulate(const float* weights, const float* tile, int64_t dim, int64_t count,
                       float factor, float* sums) {
  const D d;
  const V factors = hn::Set(d, factor);
  int64_t i = 0;
  for (; i + 4 * kLanes <= dim; i += 4 * kLanes) {
    V s0 = hn::Mul(hn::LoadU(d, sums + i), factors);
    V s1 = hn::Mul(hn::LoadU(d, sums + i + kLanes), factors);
    V s2 = hn::Mul(hn::LoadU(d, sums + i + 2 * kLanes), factors);
    V s3 = hn::Mul(hn::LoadU(d, sums + i + 3 * kLanes), factors);
    for (int64_t t = 0; t < count; ++t) {
      const V w = hn::Set(d, weights[t]);
      const float* v = tile + t * dim + i;
      s0 = hn::MulAdd(w, hn::LoadU(d, v), s0);
      s1 = hn::MulAdd(w, hn::LoadU(d, v + kLanes), s1);
      s2 = hn::MulAdd(w, hn::LoadU(d, v + 2 * kLanes), s2);
      s3 = hn::MulAdd(w, hn::LoadU(d, v + 3 * kLanes), s3);
    }
    hn::StoreU(s0, d, sums + i);
    hn::StoreU(s1, d, sums + i + kLanes);
    hn::StoreU(s2, d, sums + i + 2 * kLanes);
    hn::StoreU(s3, d, sums + i + 3 * kLanes);
  }
  for (; i < dim; i += kLanes) {
    V s = hn::Mul(hn::LoadU(d, sums + i), factors);
    for (int64_t t = 0; t < count; ++t) {
      s = hn::MulAdd(hn::Set(d, weights[t]), hn::LoadU(d, tile + t * dim + i), s);
    }
    hn::StoreU(s, d, sums + i);
  }
}

template <class T, class C>
void AttendHeads(const T* q, const AttentionSpec& spec, const KvLayer& cache, const int32_t* table,
                 int64_t context, int64_t kv_head, T* out, float* scratch) {
  const int64_t head_dim = spec.head_dim;
  const int64_t dim = PaddedDim(head_dim);
  const int64_t group = spec.num_heads / spec.num_kv_heads;
  float* queries = scratch;             // [group][dim]
  float* sums = queries + group * dim;  // [group][dim]
  float* tile = sums + group * dim;     // [kTile][dim]
  float* scales = tile + kTile * dim;   // [kTile] of int8 keys or values
  float* scores = scales + kTile;       // [group][kTile]
  float* largest = scores + group * kTile;
  float* totals = largest + group;
  std::fill(scratch, scratch + ScratchFloats(spec), 0.0f);  // padding must be zero
  std::fill(largest, largest + group, -std::numeric_limits<float>::infinity());
  for (int64_t g = 0; g < group; ++g) ConvertRow(q + g * head_dim, head_dim, queries + g * dim);

  constexpr bool kScaled = std::is_same_v<C, int8_t>;  // once a key: scores, and weights of V
  const int64_t seen = spec.window > 0 ? std::max<int64_t>(0, context - spec.window) : 0;
  for (int64_t first = seen / kTile * kTile; first < context; first += kTile) {
    const int64_t count = std::min(kTile, context - first);
    const int64_t hidden = std::max<int64_t>(0, seen - first);  // keys before the window
    LoadTile(static_cast<const C*>(cache.k), cache.k_scales, cache, table, kv_head, first, count,
             dim, tile, scales);
    for (int64_t g = 0; g < group; ++g) {
      Scores(queries + g * dim, tile, dim, count, spec.scale, scores + g * kTile);
      if (kScaled) MultiplyTile(scales, scores + g * kTile);
      if (spec.softcap > 0.0f) SoftCapTile(spec.softcap, scores + g * kTile);
      std::fill_n(scores + g * kTile, hidden, -std::numeric_limits<float>::infinity());
    }
    LoadTile(static_cast<const C*>(cache.v), cache.v_scales, cache, table, kv_head, first, count,
             dim, tile, scales);
    for (int64_t g = 0; g < group; ++g) {
      const float factor = FoldScores(scores + g * kTile, count, largest + g, totals + g);
      if (kScaled) MultiplyTile(scales, scores + g * kTile);
      Accumulate(scores + g * kTile, tile, dim, count, factor, sums + g * dim);
    }
  }
  for (int64_t g = 0; g < group; ++g) {
    const V inverse = hn::Set(D(), 1.0f / totals[g]);
    float* sum = sums + g * dim;
    for (int64_t i = 0; i < dim; i += kLanes)
      StoreLanes(hn::Mul(LoadLanes(sum + i), inverse), sum + i);
    ConvertRow(sum, head_dim, out + g * head_dim);
  }
}

template <class T>
void AttendRow(const TensorView& q, const AttentionSpec& spec, const AttentionBatch& batch,
               const KvLayer& cache, int64_t row, int64_t kv_head, const TensorView& out,
               float* scratch) {
  const size_t r = static_cast<size_t>(row);
  const int64_t context = batch.positions[r] + 1;
  const int32_t* table =
      batch.block_tables.data() + static_cast<int64_t>(batch.seq_of_row[r]) * batch.max_blocks;
  const int64_t first = kv_head * (spec.num_heads / spec.num_kv_heads) * spec.head_dim;
  const T* from = q.Row<T>(row) + first;
  T* to = out.Row<T>(row) + first;
  switch (cache.dtype) {
    case DType::kF32:
      return AttendHeads<T, float>(from, spec, cache, table, context, kv_head, to, scratch);
    case DType::kF16:
      return AttendHeads<T, F16>(from, spec, cache, table, context, kv_head, to, scratch);
    case DType::kI8:
      return AttendHeads<T, int8_t>(from, spec, cache, table, context, kv_head, to, scratch);
    default: return AttendHeads<T, BF16>(from, spec, cache, table, context, kv_head, to, scratch);
  }
}

void Attend(const TensorView& q, const AttentionSpec& spec, const AttentionBatch& batch,
            const KvLayer& cache, int64_t row, int64_t kv_head, const TensorView& out,
            float* scratch) {
  switch (q.dtype) {
    case DType::kF32: return AttendRow<float>(q, spec, batch, cache, row, kv_head, out, scratch);
    case DType::kF16: return AttendRow<F16>(q, spec, batch, cache, row, kv_head, out, scratch);
    default: return AttendRow<BF16>(q, spec, batch, cache, row, kv_head, out, scratch);
  }
}

constexpr AttentionKernels kTable = {ScratchFloats, Attend};

}  // namespace
#endif  // HWY_TARGET != HWY_SCALAR
}  // namespace HWY_NAMESPACE
}  // namespace quantd
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
QUANTD_EXPORT_TABLE(AttentionKernels)
#endif
