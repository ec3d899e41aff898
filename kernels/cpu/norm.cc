// RMS norm of a row. Two passes over the row, which stays in L1; 2 bytes read and written an
// element in bf16; bound by launch cost at decode, by L2 bandwidth at prefill. Sums in f32 over the
// vector's lanes and two accumulators, then across lanes: an order fixed by the instruction set and
// the row's length.
// The order of these matters.
// clang-format off
#include "kernels/cpu/highway_targets.h"
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/norm.cc"
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
void NormRow(const T* x, int64_t n, const float* weight, float eps, T* out) {
  const D d;
  V sum0 = hn::Zero(d);
  V sum1 = hn::Zero(d);
  int64_t i = 0;
  for (; i + 2 * kLanes <= n; i += 2 * kLanes) {
    const V a = LoadLanes(x + i);
    const V b = LoadLanes(x + i + kLanes);
    sum0 = hn::MulAdd(a, a, sum0);
    sum1 = hn::MulAdd(b, b, sum1);
  }
  float sum = hn::GetLane(hn::SumOfLanes(d, hn::Add(sum0, sum1)));
  for (; i < n; ++i) {
    const float v = static_cast<float>(x[i]);
    sum += v * v;
  }
  const float inverse = 1.0f / std::sqrt(sum / static_cast<float>(n) + eps);
  const V inverses = hn::Set(d, inverse);
  for (i = 0; i + kLanes <= n; i += kLanes) {
    StoreLanes(hn::Mul(hn::Mul(LoadLanes(x + i), inverses), hn::LoadU(d, weight + i)), out + i);
  }
  for (; i < n; ++i) out[i] = static_cast<T>(static_cast<float>(x[i]) * inverse * weight[i]);
}

template <class T>
void AddTo(T* residual, const T* x, int64_t n) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    StoreLanes(hn::Add(LoadLanes(residual + i), LoadLanes(x + i)), residual + i);
  }
  for (; i < n; ++i) {
    residual[i] = static_cast<T>(static_cast<float>(residual[i]) + static_cast<float>(x[i]));
  }
}

void RmsNormRow(const TensorView& x, int64_t row, const float* weight, float eps,
                const TensorView& out) {
  switch (x.dtype) {
    case DType::kF32: return NormRow(x.Row<float>(row), x.cols, weight, eps, out.Row<float>(row));
    case DType::kF16: return NormRow(x.Row<F16>(row), x.cols, weight, eps, out.Row<F16>(row));
    default: return NormRow(x.Row<BF16>(row), x.cols, weight, eps, out.Row<BF16>(row));
  }
}

void AddRow(const TensorView& residual, const TensorView& x, int64_t row) {
  switch (x.dtype) {
    case DType::kF32: return AddTo(residual.Row<float>(row), x.Row<float>(row), x.cols);
    case DType::kF16: return AddTo(residual.Row<F16>(row), x.Row<F16>(row), x.cols);
    default: return AddTo(residual.Row<BF16>(row), x.Row<BF16>(row), x.cols);
  }
}

constexpr NormKernels kTable = {RmsNormRow, AddRow};

}  // namespace
#endif  // HWY_TARGET != HWY_SCALAR
}  // namespace HWY_NAMESPACE
}  // namespace quantd
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
QUANTD_EXPORT_TABLE(NormKernels)
#endif
