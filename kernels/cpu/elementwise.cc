// Gated activation, soft cap, conversion from f32, and arg max of a row. One pass; bf16 moves 6
// bytes an output of the gated activation, whose bound is the exponential (some 20 operations a
// vector). The order of these matters.
// clang-format off
#include "kernels/cpu/highway_targets.h"
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/elementwise.cc"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>
#include <hwy/contrib/math/math-inl.h>
// clang-format on

#include <algorithm>
#include <limits>

#include "kernels/cpu/lanes-inl.h"
#include "kernels/cpu/vector_ops.h"

HWY_BEFORE_NAMESPACE();
namespace quantd {
namespace HWY_NAMESPACE {
#if HWY_TARGET != HWY_SCALAR
namespace {

struct Silu {
  V operator()(V x) const { return x; }
};
/// sqrt(8 / pi) (x + 0.044715 x^3)
struct GeluTanh {
  V operator()(V x) const {
    const D d;
    const V cubic = hn::Mul(hn::Mul(hn::Set(d, 0.07135481627f), x), x);
    return hn::Mul(x, hn::Add(cubic, hn::Set(d, 1.595769122f)));
  }
};

/// gate / (1 + exp(-exponent(gate))) * up. Below -88 the true value is under 1e-36; the bound keeps
/// exp finite.
template <class Exponent>
inline V GatedLanes(V gate, V up) {
  const D d;
  const V e = hn::Exp(d, hn::Min(hn::Neg(Exponent()(gate)), hn::Set(d, 88.0f)));
  return hn::Mul(hn::Div(gate, hn::Add(hn::Set(d, 1.0f), e)), up);
}

template <class Exponent, class T>
void Gated(const T* gate, const T* up, int64_t n, T* out) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    StoreLanes(GatedLanes<Exponent>(LoadLanes(gate + i), LoadLanes(up + i)), out + i);
  }
  if (i < n) {  // the same arithmetic on a padded copy
    T gates[kLanes] = {};
    T ups[kLanes] = {};
    for (int64_t j = i; j < n; ++j) {
      gates[j - i] = gate[j];
      ups[j - i] = up[j];
    }
    StoreLanes(GatedLanes<Exponent>(LoadLanes(gates), LoadLanes(ups)), gates);
    for (int64_t j = i; j < n; ++j) out[j] = gates[j - i];
  }
}

template <class T>
void GatedOf(const T* x, int64_t n, Activation activation, T* out) {
  if (activation == Activation::kGeluTanh) return Gated<GeluTanh>(x, x + n, n, out);
  Gated<Silu>(x, x + n, n, out);
}

void GatedRow(const TensorView& gate_up, int64_t row, Activation activation,
              const TensorView& out) {
  switch (out.dtype) {
    case DType::kF32:
      return GatedOf(gate_up.Row<float>(row), out.cols, activation, out.Row<float>(row));
    case DType::kF16:
      return GatedOf(gate_up.Row<F16>(row), out.cols, activation, out.Row<F16>(row));
    default: return GatedOf(gate_up.Row<BF16>(row), out.cols, activation, out.Row<BF16>(row));
  }
}

void SoftCap(float* x, int64_t count, float cap) {
  const D d;
  const V caps = hn::Set(d, cap);
  const auto lanes = [&](const float* from) HWY_ATTR {
    return hn::Mul(caps, hn::Tanh(D(), hn::Div(LoadLanes(from), caps)));
  };
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) StoreLanes(lanes(x + i), x + i);
  if (i == count) return;
  float rest[kLanes] = {};  // the same arithmetic on a padded copy
  std::copy(x + i, x + count, rest);
  StoreLanes(lanes(rest), rest);
  std::copy(rest, rest + (count - i), x + i);
}

void FromFloats(float* values, int64_t count, float scale, DType dtype, void* out) {
  if (scale != 1.0f) {
    for (int64_t i = 0; i < count; ++i) values[i] *= scale;
  }
  switch (dtype) {
    case DType::kF32: return ConvertRow(values, count, static_cast<float*>(out));
    case DType::kF16: return ConvertRow(values, count, static_cast<F16*>(out));
    default: return ConvertRow(values, count, static_cast<BF16*>(out));
  }
}

int32_t ArgMax(const float* values, int64_t count) {
  const D d;
  constexpr float kNever = -std::numeric_limits<float>::infinity();
  V most = hn::Set(d, kNever);
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    const V v = hn::LoadU(d, values + i);
    most = hn::IfThenElse(hn::Gt(v, most), v, most);  // false for NaN
  }
  float largest = hn::GetLane(hn::MaxOfLanes(d, most));
  for (; i < count; ++i) largest = values[i] > largest ? values[i] : largest;
  if (largest == kNever) return 0;
  largest = std::min(largest, std::numeric_limits<float>::max());  // +inf counts as that
  const V target = hn::Set(d, largest);
  for (i = 0; i + kLanes <= count; i += kLanes) {
    const intptr_t lane = hn::FindFirstTrue(d, hn::Ge(hn::LoadU(d, values + i), target));
    if (lane >= 0) return static_cast<int32_t>(i + lane);
  }
  for (; !(values[i] >= largest); ++i) {
  }
  return static_cast<int32_t>(i);
}

constexpr ElementwiseKernels kTable = {GatedRow, SoftCap, FromFloats, ArgMax};

}  // namespace
#endif  // HWY_TARGET != HWY_SCALAR
}  // namespace HWY_NAMESPACE
}  // namespace quantd
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
QUANTD_EXPORT_TABLE(ElementwiseKernels)
#endif
