// Loading and storing vectors of f32 from the three float types, rounding as
// kernels/quant/float_types.h does. Included by Highway files for each target.
#if defined(QUANTD_LANES_INL_TOGGLE) == defined(HWY_TARGET_TOGGLE)
#ifdef QUANTD_LANES_INL_TOGGLE
#undef QUANTD_LANES_INL_TOGGLE
#else
#define QUANTD_LANES_INL_TOGGLE
#endif

#include <hwy/highway.h>

#include <cstdint>

#include "kernels/quant/float_types.h"

HWY_BEFORE_NAMESPACE();
namespace quantd {
namespace HWY_NAMESPACE {
#if HWY_TARGET != HWY_SCALAR
namespace hn = hwy::HWY_NAMESPACE;

using D = hn::ScalableTag<float>;
using V = hn::Vec<D>;
constexpr int64_t kLanes = static_cast<int64_t>(hn::MaxLanes(D()));

inline V LoadLanes(const float* p) { return hn::LoadU(D(), p); }
inline V LoadLanes(const BF16* p) {
  const hn::Rebind<uint16_t, D> d16;
  const hn::RebindToUnsigned<D> d32;
  return hn::BitCast(D(), hn::ShiftLeft<16>(hn::PromoteTo(
                              d32, hn::LoadU(d16, reinterpret_cast<const uint16_t*>(p)))));
}
inline V LoadLanes(const F16* p) {
  const hn::Rebind<hwy::float16_t, D> d16;
  return hn::PromoteTo(D(), hn::LoadU(d16, reinterpret_cast<const hwy::float16_t*>(p)));
}

inline V LoadLanes(const int8_t* p) {
  const hn::Rebind<int8_t, D> d8;
  const hn::RebindToSigned<D> d32;
  return hn::ConvertTo(D(), hn::PromoteTo(d32, hn::LoadU(d8, p)));
}

inline void StoreLanes(V v, float* p) { hn::StoreU(v, D(), p); }
inline void StoreLanes(V v, BF16* p) {
  const hn::Rebind<uint16_t, D> d16;
  const hn::RebindToUnsigned<D> d32;
  const hn::RebindToSigned<D> di32;
  const auto u = hn::BitCast(d32, v);
  const auto lsb = hn::And(hn::ShiftRight<16>(u), hn::Set(d32, 1u));
  const auto rounded = hn::ShiftRight<16>(hn::Add(u, hn::Add(lsb, hn::Set(d32, 0x7fffu))));
  const auto quiet = hn::Or(hn::ShiftRight<16>(u), hn::Set(d32, 0x40u));
  const auto nan = hn::RebindMask(d32, hn::IsNaN(v));
  const auto bits = hn::BitCast(di32, hn::IfThenElse(nan, quiet, rounded));
  hn::StoreU(hn::DemoteTo(d16, bits), d16, reinterpret_cast<uint16_t*>(p));
}
inline void StoreLanes(V v, F16* p) {
  const hn::Rebind<hwy::float16_t, D> d16;
  hn::StoreU(hn::DemoteTo(d16, v), d16, reinterpret_cast<hwy::float16_t*>(p));
}

/// to[i] = from[i] for i < count, converted.
template <class From, class To>
inline void ConvertRow(const From* from, int64_t count, To* to) {
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) StoreLanes(LoadLanes(from + i), to + i);
  for (; i < count; ++i) to[i] = static_cast<To>(static_cast<float>(from[i]));
}
#endif  // HWY_TARGET != HWY_SCALAR
}  // namespace HWY_NAMESPACE
}  // namespace quantd
HWY_AFTER_NAMESPACE();

#endif  // QUANTD_LANES_INL_TOGGLE
