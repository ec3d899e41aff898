// Rotary embedding of a row (Su et al., 2021; halves paired as Hugging Face does) and its K, V to
// the cache. f32, product and sum rounded apart, one rounding on store. A few hundred bytes a head:
// bound by the latency of the loads.
// The order of these matters.
// clang-format off
#include "kernels/cpu/highway_targets.h"
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/rope.cc"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>
// clang-format on

#include "kernels/cpu/lanes-inl.h"
#include "kernels/cpu/vector_ops.h"

HWY_BEFORE_NAMESPACE();
namespace quantd {
namespace HWY_NAMESPACE {
#if HWY_TARGET != HWY_SCALAR
namespace {

/// One head: to[i], to[i + half] = rotation of from[i], from[i + half]. from may be to.
template <class From, class To>
void RotateHead(const From* from, int64_t half, const float* cosines, const float* sines, To* to) {
  const D d;
  int64_t i = 0;
  for (; i + kLanes <= half; i += kLanes) {
    const V a = LoadLanes(from + i);
    const V b = LoadLanes(from + half + i);
    const V c = hn::LoadU(d, cosines + i);
    const V s = hn::LoadU(d, sines + i);
    StoreLanes(hn::Sub(hn::Mul(a, c), hn::Mul(b, s)), to + i);
    StoreLanes(hn::Add(hn::Mul(b, c), hn::Mul(a, s)), to + half + i);
  }
  for (; i < half; ++i) {
    const float a = static_cast<float>(from[i]);
    const float b = static_cast<float>(from[half + i]);
    to[i] = static_cast<To>(a * cosines[i] - b * sines[i]);
    to[half + i] = static_cast<To>(b * cosines[i] + a * sines[i]);
  }
}

template <class T, class C>
void StoreRow(const T* k, const T* v, const float* cosines, const KvLayer& cache, int32_t slot) {
  const int64_t head_dim = cache.head_dim;
  const int64_t half = head_dim / 2;
  for (int32_t h = 0; h < cache.num_kv_heads; ++h) {
    const int64_t to = cache.Offset(slot / cache.block_size, h, slot % cache.block_size);
    RotateHead(k + h * head_dim, half, cosines, cosines + half, static_cast<C*>(cache.k) + to);
    ConvertRow(v + h * head_dim, head_dim, static_cast<C*>(cache.v) + to);
  }
}

template <class T>
void RopeRow(T* q, const T* k, const T* v, const float* cosines, const AttentionSpec& spec,
             const KvLayer& cache, int32_t slot) {
  const int64_t head_dim = spec.head_dim;
  for (int32_t h = 0; h < spec.num_heads; ++h) {
    RotateHead(q + h * head_dim, head_dim / 2, cosines, cosines + head_dim / 2, q + h * head_dim);
  }
  switch (cache.dtype) {
    case DType::kF32: return StoreRow<T, float>(k, v, cosines, cache, slot);
    case DType::kF16: return StoreRow<T, F16>(k, v, cosines, cache, slot);
    default: return StoreRow<T, BF16>(k, v, cosines, cache, slot);
  }
}

void RopeAndStore(const TensorView& q, const TensorView& k, const TensorView& v, int64_t row,
                  const float* cos_sin, const AttentionSpec& spec, const AttentionBatch& batch,
                  const KvLayer& cache) {
  const size_t r = static_cast<size_t>(row);
  const float* cosines = cos_sin + static_cast<int64_t>(batch.positions[r]) * spec.head_dim;
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

const RopeKernels& Table() {
  static constexpr RopeKernels kTable = {RopeAndStore};
  return kTable;
}

}  // namespace
#endif  // HWY_TARGET != HWY_SCALAR
}  // namespace HWY_NAMESPACE
}  // namespace quantd
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace quantd {

const RopeKernels& RopeKernelsFor(CpuIsa isa) {
  return isa == CpuIsa::kAvx2 ? N_AVX2::Table() : N_AVX3::Table();
}

}  // namespace quantd
#endif  // HWY_ONCE
