// Quantized activations other than LLM.int8's, a row at a time: kernels/quant/activation.h with
// vectors, the same codes to the bit. Two passes over a row (extremes, codes).
// The order of these matters.
// clang-format off
#include "kernels/cpu/highway_targets.h"
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/replace_rows.cc"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>
// clang-format on

#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/cpu/lanes-inl.h"
#include "kernels/cpu/vector_ops.h"

HWY_BEFORE_NAMESPACE();
namespace quantd {
namespace HWY_NAMESPACE {
#if HWY_TARGET != HWY_SCALAR
namespace {

/// Rounds to T, as RoundToF16 and its like do.
template <class T>
struct RoundTo {
  float operator()(float v) const { return static_cast<float>(static_cast<T>(v)); }
};

template <class T>
inline V RoundLanes(V v) {
  T rounded[kLanes];
  StoreLanes(v, rounded);
  return LoadLanes(rounded);
}
template <>
inline V RoundLanes<float>(V v) {
  return v;
}

/// E4M3Codec::Decode(E4M3Codec::Encode(v)).
inline V RoundToE4M3(V v) {
  const D d;
  const hn::RebindToUnsigned<D> d32;
  const V magnitude = hn::Abs(v);
  // Keeps three bits of fraction. Below 2^-6 the adder rounds to multiples of 2^-9.
  const auto u = hn::BitCast(d32, magnitude);
  const auto lsb = hn::And(hn::ShiftRight<20>(u), hn::Set(d32, 1u));
  const auto up = hn::Add(u, hn::Add(lsb, hn::Set(d32, 0x7ffffu)));
  const V normal = hn::BitCast(d, hn::And(up, hn::Set(d32, 0xfff00000u)));
  const V shift = hn::Set(d, 0x1p14f);
  const V subnormal = hn::Sub(hn::Add(magnitude, shift), shift);
  V rounded = hn::IfThenElse(hn::Lt(magnitude, hn::Set(d, 0x1p-6f)), subnormal, normal);
  const V largest = hn::Set(d, E4M3Codec::kLargest);
  rounded = hn::IfThenElse(hn::Ge(magnitude, largest), largest, rounded);
  return hn::IfThenElse(hn::IsNaN(v), v, hn::CopySign(rounded, v));
}

/// ActivationCode of each lane; the scale is not zero.
template <class T>
inline V CodeLanes(const ActivationQuant& q, const ActivationScale& s, V x) {
  const D d;
  const bool every_step = q.rounding == ActivationQuant::Rounding::kEveryStep;
  if (IsFp8(q.kind)) {
    const V value = hn::Div(x, hn::Set(d, s.scale));
    return RoundToE4M3(every_step ? RoundLanes<T>(value) : value);
  }
  const V zero = hn::Set(d, s.zero_point);
  V code;
  if (every_step && q.kind != ActivationQuant::Kind::kInt8TokenAsym) {
    const V quotient = RoundLanes<T>(hn::Div(x, hn::Set(d, s.scale)));
    code = hn::Round(RoundLanes<T>(hn::Add(quotient, zero)));
  } else {
    const float inverse = every_step ? RoundTo<T>()(1.0f / s.scale) : 1.0f / s.scale;
    const V product = hn::Mul(x, hn::Set(d, inverse));
    code = hn::Add(hn::Round(every_step ? RoundLanes<T>(product) : product), zero);
  }
  const V low = hn::Set(d, -128.0f), high = hn::Set(d, 127.0f);
  // Compared, not clamped: a NaN stays one.
  return hn::IfThenElse(hn::Lt(code, low), low, hn::IfThenElse(hn::Gt(code, high), high, code));
}

/// The scale of `count` elements. A NaN among them does not count: it shows as a NaN code.
template <class T>
ActivationScale ScaleOf(const ActivationQuant& q, const T* x, int64_t count) {
  const D d;
  const bool symmetric = q.kind != ActivationQuant::Kind::kInt8TokenAsym;
  V highs = hn::Zero(d), lows = hn::Zero(d);
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    const V v = LoadLanes(x + i);
    const V high = symmetric ? hn::Abs(v) : v;
    highs = hn::IfThenElse(hn::Gt(high, highs), high, highs);
    lows = hn::IfThenElse(hn::Lt(v, lows), v, lows);
  }
  float high = hn::GetLane(hn::MaxOfLanes(d, highs));
  float low = hn::GetLane(hn::MinOfLanes(d, lows));
  for (; i < count; ++i) {
    const float v = static_cast<float>(x[i]);
    high = std::max(high, symmetric ? std::fabs(v) : v);
    low = std::min(low, v);
  }
  return ActivationScaleOf(q, low, high, RoundTo<T>());
}

template <class T>
void ReplaceGroup(const ActivationQuant& q, const T* x, int64_t count, T* out) {
  const D d;
  const RoundTo<T> round;
  const ActivationScale s = ScaleOf(q, x, count);
  int64_t i = 0;
  if (s.scale != 0.0f) {
    const V zero = hn::Set(d, s.zero_point), scale = hn::Set(d, s.scale);
    for (; i + kLanes <= count; i += kLanes) {
      const V code = CodeLanes<T>(q, s, LoadLanes(x + i));
      StoreLanes(hn::Mul(hn::Sub(code, zero), scale), out + i);
    }
  }
  for (; i < count; ++i) {
    const float code = ActivationCode(q, s, static_cast<float>(x[i]), round);
    out[i] = static_cast<T>(ActivationValue(s, code));
  }
}

template <class T>
void ReplaceRowOf(const ActivationQuant& q, const TensorView& x, int64_t row, void* out) {
  const int64_t size = q.kind == ActivationQuant::Kind::kFp8Group ? q.group : x.cols;
  for (int64_t c = 0; c < x.cols; c += size) {
    ReplaceGroup(q, x.Row<T>(row) + c, std::min(size, x.cols - c), static_cast<T*>(out) + c);
  }
}

void ReplaceRow(const ActivationQuant& q, const TensorView& x, int64_t row, void* out) {
  switch (x.dtype) {
    case DType::kF32: return ReplaceRowOf<float>(q, x, row, out);
    case DType::kF16: return ReplaceRowOf<F16>(q, x, row, out);
    default: return ReplaceRowOf<BF16>(q, x, row, out);
  }
}

template <class T>
ActivationScale CodesOfRow(const ActivationQuant& q, const T* x, int64_t count, int8_t* codes) {
  const D d;
  const hn::Rebind<int8_t, D> d8;
  ActivationScale s = ScaleOf(q, x, count);
  bool any_nan = false;
  int64_t i = 0;
  if (s.scale != 0.0f) {
    for (; i + kLanes <= count; i += kLanes) {
      const V code = CodeLanes<T>(q, s, LoadLanes(x + i));
      const auto bad = hn::IsNaN(code);
      any_nan = any_nan || !hn::AllFalse(d, bad);
      const V good = hn::IfThenZeroElse(bad, code);
      hn::StoreU(hn::DemoteTo(d8, hn::NearestInt(good)), d8, codes + i);
    }
  }
  for (; i < count; ++i) {
    const float code = ActivationCode(q, s, static_cast<float>(x[i]), RoundTo<T>());
    any_nan |= std::isnan(code);
    codes[i] = std::isnan(code) ? int8_t{0} : static_cast<int8_t>(code);
  }
  // int8 has no NaN: the scale shows it in every output, as a NaN in x would.
  if (any_nan) s.scale = std::numeric_limits<float>::quiet_NaN();
  return s;
}

ActivationScale Codes(const ActivationQuant& q, const TensorView& x, int64_t row, int8_t* codes) {
  switch (x.dtype) {
    case DType::kF32: return CodesOfRow(q, x.Row<float>(row), x.cols, codes);
    case DType::kF16: return CodesOfRow(q, x.Row<F16>(row), x.cols, codes);
    default: return CodesOfRow(q, x.Row<BF16>(row), x.cols, codes);
  }
}

constexpr ReplaceKernels kTable = {ReplaceRow, Codes};

}  // namespace
#endif  // HWY_TARGET != HWY_SCALAR
}  // namespace HWY_NAMESPACE
}  // namespace quantd
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
QUANTD_EXPORT_TABLE(ReplaceKernels)
#endif
