// Gated activation, conversion from f32, and arg max of a row. One pass; bf16 moves 6 bytes an
// output of the gated activation, whose bound is the exponential (some 20 operations a vector).
// The order of these matters.
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

/// gate / (1 + exp(-gate)) * up. Below -88 the true value is under 1e-36; the bound keeps exp
/// finite.
inline V GatedSiluLanes(V gate, V up) {
  const D d;
  const V e = hn::Exp(d, hn::Min(hn::Neg(gate), hn::Set(d, 88.0f)));
  return hn::Mul(hn::Div(gate, hn::Add(hn::Set(d, 1.0f), e)), up);
}

template <class T>
void GatedSilu(const T* gate, const T* up, int64_t n, T* out) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    StoreLanes(GatedSiluLanes(LoadLanes(gate + i), LoadLanes(up + i)), out + i);
  }
  if (i < n) {  // the same arithmetic on a padded copy
    T gates[kLanes] = {};
    T ups[kLanes] = {};
    for (int64_t j = i; j < n; ++j) {
      gates[j - i] = gate[j];
      ups[j - i] = up[j];
    }
    StoreLanes(GatedSiluLanes(LoadLanes(gates), LoadLanes(ups)), gates);
    for (int64_t j = i; j < n; ++j) out[j] = gates[j - i];
  }
}

void GatedSiluRow(const TensorView& gate_up, int64_t row, const TensorView& out) {
  const int64_t n = out.cols;
  switch (out.dtype) {
    case DType::kF32: {
      const float* x = gate_up.Row<float>(row);
      return GatedSilu(x, x + n, n, out.Row<float>(row));
    }
    case DType::kF16: {
      const F16* x = gate_up.Row<F16>(row);
      return GatedSilu(x, x + n, n, out.Row<F16>(row));
    }
    default: {
      const BF16* x = gate_up.Row<BF16>(row);
      return GatedSilu(x, x + n, n, out.Row<BF16>(row));
    }
  }
}

void FromFloats(const float* values, int64_t count, DType dtype, void* out) {
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

constexpr ElementwiseKernels kTable = {GatedSiluRow, FromFloats, ArgMax};

}  // namespace
#endif  // HWY_TARGET != HWY_SCALAR
}  // namespace HWY_NAMESPACE
}  // namespace quantd
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
QUANTD_EXPORT_TABLE(ElementwiseKernels)
#endif
