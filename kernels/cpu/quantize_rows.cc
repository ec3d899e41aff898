// Activations to int8, a row at a time. Three passes over a row that stays in L1 (through f16,
// largest magnitude, rounding): some microseconds a row of some thousand columns, a few percent of
// its Linear.
// The order of these matters.
// clang-format off
#include "kernels/cpu/highway_targets.h"
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/quantize_rows.cc"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>
// clang-format on

#include <cmath>

#include "kernels/cpu/lanes-inl.h"
#include "kernels/cpu/vector_ops.h"

HWY_BEFORE_NAMESPACE();
namespace quantd {
namespace HWY_NAMESPACE {
#if HWY_TARGET != HWY_SCALAR
namespace {

template <class T>
void RowThroughF16(const T* x, int64_t n, float* out) {
  const D d;
  const hn::Rebind<hwy::float16_t, D> d16;
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    hn::StoreU(hn::PromoteTo(d, hn::DemoteTo(d16, LoadLanes(x + i))), d, out + i);
  }
  for (; i < n; ++i) out[i] = static_cast<float>(F16(static_cast<float>(x[i])));
}

void ThroughF16(const TensorView& x, int64_t row, int64_t padded_k, float* out) {
  switch (x.dtype) {
    case DType::kF32: RowThroughF16(x.Row<float>(row), x.cols, out); break;
    case DType::kF16: RowThroughF16(x.Row<F16>(row), x.cols, out); break;
    default: RowThroughF16(x.Row<BF16>(row), x.cols, out); break;
  }
  for (int64_t c = x.cols; c < padded_k; ++c) out[c] = 0.0f;
}

bool FindOutliers(const float* x, int64_t count, float threshold, uint64_t* mask) {
  const D d;
  const V limit = hn::Set(d, threshold);
  bool any = false;
  int64_t c = 0;
  for (; c + kLanes <= count; c += kLanes) {
    // Not less than, so that a NaN is an outlier: the floating-point path then shows it in the
    // result.
    const auto outlier = hn::Not(hn::Lt(hn::Abs(hn::LoadU(d, x + c)), limit));
    if (hn::AllFalse(d, outlier)) continue;
    uint8_t bits[8] = {};
    hn::StoreMaskBits(d, outlier, bits);
    const uint64_t word = static_cast<uint64_t>(bits[0]) | static_cast<uint64_t>(bits[1]) << 8;
    mask[c / 64] |= word << (c % 64);  // 64 is a multiple of the lanes: never split over two words
    any = true;
  }
  for (; c < count; ++c) {
    if (std::fabs(x[c]) < threshold) continue;
    mask[c / 64] |= uint64_t{1} << (c % 64);
    any = true;
  }
  return any;
}

/// Rounded values of a vector as int8; 0 where `keep` is not set or the value is beyond +-127.
inline void StoreInt8(V x, V inverse, hn::Mask<D> keep, int8_t* q) {
  const D d;
  const hn::Rebind<int8_t, D> d8;
  const V rounded = hn::Round(hn::Mul(x, inverse));
  const auto fits = hn::And(keep, hn::Le(hn::Abs(rounded), hn::Set(d, 127.0f)));
  const auto integers = hn::NearestInt(hn::IfThenElseZero(fits, rounded));
  hn::StoreU(hn::DemoteTo(d8, integers), d8, q);
}

float Quantize(const float* x, int64_t count, float threshold, const uint64_t* zeroed, int8_t* q) {
  const D d;
  constexpr float kAll = HUGE_VALF;
  const V limit = hn::Set(d, threshold > 0.0f ? threshold : kAll);
  const bool none = !(threshold > 0.0f);
  V most = hn::Zero(d);
  float largest = 0.0f;
  bool sane = true;
  int64_t c = 0;
  for (; c + kLanes <= count; c += kLanes) {
    const V a = hn::Abs(hn::LoadU(d, x + c));
    most = hn::Max(most, hn::IfThenElseZero(hn::Lt(a, limit), a));
    if (none) sane = sane && hn::AllTrue(d, hn::Lt(a, limit));
  }
  largest = hn::GetLane(hn::MaxOfLanes(d, most));
  for (int64_t i = c; i < count; ++i) {
    const float a = std::fabs(x[i]);
    if (a < (none ? kAll : threshold)) {
      largest = a > largest ? a : largest;
    } else if (none) {
      sane = false;
    }
  }
  // Without outliers there is no place for what is not finite but the scale: it shows in the
  // result.
  if (!sane) largest = HUGE_VALF;
  const float scale = largest > 0.0f ? 127.0f / largest : 0.0f;
  const V inverse = hn::Set(d, scale);
  for (c = 0; c + kLanes <= count; c += kLanes) {
    const V v = hn::LoadU(d, x + c);
    StoreInt8(v, inverse, hn::Lt(hn::Abs(v), limit), q + c);
  }
  if (c < count) {
    float rest[kLanes] = {};
    int8_t codes[kLanes];
    for (int64_t i = c; i < count; ++i) rest[i - c] = x[i];
    const V v = LoadLanes(rest);
    StoreInt8(v, inverse, hn::Lt(hn::Abs(v), limit), codes);
    for (int64_t i = c; i < count; ++i) q[i] = codes[i - c];
  }
  if (zeroed != nullptr) {
    for (int64_t word = 0; word * 64 < count; ++word) {
      for (uint64_t bits = zeroed[word]; bits != 0; bits &= bits - 1)
        q[word * 64 + __builtin_ctzll(bits)] = 0;
    }
  }
  return largest;
}

constexpr QuantizeKernels kTable = {ThroughF16, FindOutliers, Quantize};

}  // namespace
#endif  // HWY_TARGET != HWY_SCALAR
}  // namespace HWY_NAMESPACE
}  // namespace quantd
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
QUANTD_EXPORT_TABLE(QuantizeKernels)
#endif
