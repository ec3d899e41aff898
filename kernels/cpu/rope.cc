// Rotary embedding of a row (Su et al., 2021; halves paired as Hugging Face does) and its K, V to
// the cache. f32, product and sum rounded apart, one rounding on store; int8 as kv_codec.h. A few
// hundred bytes a head: bound by the latency of the loads. The order of these matters.
// clang-format off
#include "kernels/cpu/highway_targets.h"
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/rope.cc"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>
// clang-format on

#include <algorithm>

#include "kernels/cpu/lanes-inl.h"
#include "kernels/cpu/vector_ops.h"
#include "kernels/quant/kv_codec.h"

HWY_BEFORE_NAMESPACE();
namespace quantd {
namespace HWY_NAMESPACE {
#if HWY_TARGET != HWY_SCALAR
namespace {

/// Hands the rotation of a head on: lanes(i, V) of elements i .. i + kLanes, one(i, float) of the
/// rest. `from` may be written to by both.
template <class From, class Lanes, class One>
HWY_INLINE void ForRotated(const From* from, int64_t half, const float* cosines, const float* sines,
                           const Lanes& lanes, const One& one) {
  const D d;
  int64_t i = 0;
  for (; i + kLanes <= half; i += kLanes) {
    const V a = LoadLanes(from + i);
    const V b = LoadLanes(from + half + i);
    const V c = hn::LoadU(d, cosines + i);
    const V s = hn::LoadU(d, sines + i);
    lanes(i, hn::Sub(hn::Mul(a, c), hn::Mul(b, s)));
    lanes(half + i, hn::Add(hn::Mul(b, c), hn::Mul(a, s)));
  }
  for (; i < half; ++i) {
    const float a = static_cast<float>(from[i]);
    const float b = static_cast<float>(from[half + i]);
    one(i, a * cosines[i] - b * sines[i]);
    one(half + i, b * cosines[i] + a * sines[i]);
  }
}

/// The same for elements first .. end as they are.
template <class From, class Lanes, class One>
HWY_INLINE void ForPlain(const From* from, int64_t first, int64_t end, const Lanes& lanes,
                         const One& one) {
  int64_t i = first;
  for (; i + kLanes <= end; i += kLanes) lanes(i, LoadLanes(from + i));
  for (; i < end; ++i) one(i, static_cast<float>(from[i]));
}

/// One head: to[i], to[i + half] = rotation of from[i], from[i + half]. from may be to.
template <class From, class To>
void RotateHead(const From* from, int64_t half, const float* cosines, const float* sines, To* to) {
  ForRotated(
      from, half, cosines, sines, [to](int64_t i, V v) HWY_ATTR { StoreLanes(v, to + i); },
      [to](int64_t i, float v) { to[i] = static_cast<To>(v); });
}

/// Stores as int8 what each(lanes, one) hands on, twice the same.
template <class Each>
HWY_INLINE void StoreCodes(const Each& each, int8_t* codes, float* to_scale) {
  const D d;
  const hn::RebindToSigned<D> d32;
  using V32 = hn::Vec<decltype(d32)>;
  V32 most = hn::Zero(d32);
  uint32_t largest = 0;
  each(
      [&](int64_t, V v) HWY_ATTR {  // magnitudes as integers: NaN is above all
        most = hn::Max(most, hn::BitCast(d32, hn::Abs(v)));
      },
      [&](int64_t, float v) { largest = std::max(largest, KvMagnitude(v)); });
  largest = std::max(largest, static_cast<uint32_t>(hn::GetLane(hn::MaxOfLanes(d32, most))));
  const KvScale scale = KvScaleOf(largest);
  *to_scale = scale.scale;
  const V inverse = hn::Set(d, scale.inverse);
  const bool zeros = scale.inverse == 0.0f;
  each(
      [=](int64_t i, V v) HWY_ATTR {
        const hn::Rebind<int8_t, D> d8;
        const V32 rounded = hn::NearestInt(zeros ? hn::Zero(d) : hn::Mul(v, inverse));
        hn::StoreU(hn::DemoteTo(d8, rounded), d8, codes + i);
      },
      [=](int64_t i, float v) { codes[i] = KvCode(v, scale); });
}

template <class T>
void StoreRowAsInt8(const T* k, const T* v, const float* cosines, int64_t half,
                    const KvLayer& cache, int32_t slot) {
  const int64_t head_dim = cache.head_dim;
  for (int32_t h = 0; h < cache.num_kv_heads; ++h) {
    const int64_t to = cache.Row(slot / cache.block_size, h, slot % cache.block_size);
    const T* const key = k + h * head_dim;
    const T* const value = v + h * head_dim;
    StoreCodes(
        [&](const auto& lanes, const auto& one) HWY_ATTR {
          ForRotated(key, half, cosines, cosines + half, lanes, one);
          ForPlain(key, 2 * half, head_dim, lanes, one);
        },
        static_cast<int8_t*>(cache.k) + to * head_dim, cache.k_scales + to);
    StoreCodes([&](const auto& lanes, const auto& one)
                   HWY_ATTR { ForPlain(value, 0, head_dim, lanes, one); },
               static_cast<int8_t*>(cache.v) + to * head_dim, cache.v_scales + to);
  }
}

template <class T, class C>
void StoreRow(const T* k, const T* v, const float* cosines, int64_t half, const KvLayer& cache,
              int32_t slot) {
  const int64_t head_dim = cache.head_dim;
  for (int32_t h = 0; h < cache.num_kv_heads; ++h) {
    const int64_t to = cache.Offset(slot / cache.block_size, h, slot % cache.block_size);
    C* const key = static_cast<C*>(cache.k) + to;
    RotateHead(k + h * head_dim, half, cosines, cosines + half, key);
    ConvertRow(k + h * head_dim + 2 * half, head_dim - 2 * half, key + 2 * half);
    ConvertRow(v + h * head_dim, head_dim, static_cast<C*>(cache.v) + to);
  }
}

template <class T>
void RopeRow(T* q, const T* k, const T* v, const float* cosines, const AttentionSpec& spec,
             const KvLayer& cache, int32_t slot) {
  const int64_t head_dim = spec.head_dim, half = spec.rotated() / 2;
  for (int32_t h = 0; h < spec.num_heads; ++h) {
    RotateHead(q + h * head_dim, half, cosines, cosines + half, q + h * head_dim);
  }
  switch (cache.dtype) {
    case DType::kF32: return StoreRow<T, float>(k, v, cosines, half, cache, slot);
    case DType::kF16: return StoreRow<T, F16>(k, v, cosines, half, cache, slot);
    case DType::kI8: return StoreRowAsInt8(k, v, cosines, half, cache, slot);
    default: return StoreRow<T, BF16>(k, v, cosines, half, cache, slot);
  }
}

void RopeAndStore(const TensorView& q, const TensorView& k, const TensorView& v, int64_t row,
                  const float* cos_sin, const AttentionSpec& spec, const AttentionBatch& batch,
                  const KvLayer& cache) {
  const size_t r = static_cast<size_t>(row);
  const float* cosines = cos_sin + static_cast<int64_t>(batch.positions[r]) * spec.rotated();
  const int32_t slot = batch.slots[r];
  switch (q.dtype) {
    case DType::kF32:
      return RopeRow(q.Row<float>(row), k.Row<float>(row), v.Row<float>(row), cosines, spec, cache,
                     slot);
    case DType::kF16:
      return RopeRow(q.Row<F16>(row), k.Row<F16>(row), v.Row<F16>(row), cosines, spec, cache, slot);
    default:
      return RopeRow(q.Row<BF16>(row), k.Row<BF16>(row), v.Row<BF16>(row), cosines, spec, cache,
                     slot);
  }
}

constexpr RopeKernels kTable = {RopeAndStore};

}  // namespace
#endif  // HWY_TARGET != HWY_SCALAR
}  // namespace HWY_NAMESPACE
}  // namespace quantd
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
QUANTD_EXPORT_TABLE(RopeKernels)
#endif
