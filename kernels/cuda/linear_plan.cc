// PlanLinear: see linear_plan.h.
#include "kernels/cuda/linear_plan.h"

namespace quantd::QUANTD_CUDA_NS {
namespace {

bool Aligned16(const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; }

bool Is4Bit(Codec c) { return c == Codec::kNf4 || c == Codec::kFp4; }

bool IsTypeOf(Codec codec, FloatType type) {
  return (codec == Codec::kF16 && type == FloatType::kF16) ||
         (codec == Codec::kBF16 && type == FloatType::kBF16);
}

// What Gemm16 asks of its operands; y's columns are cut at multiples of 8 only.
bool SuitsGemm16(const WeightView& w, const Matrix& x, const Matrix& y) {
  if (x.type == FloatType::kF32 || w.k % 8 != 0 || x.stride % 8 != 0 || y.stride % 8 != 0 ||
      !Aligned16(x.data) || !Aligned16(y.data)) {
    return false;
  }
  if (!IsPlain(w.codec)) return true;  // the scratch is aligned
  if (!IsTypeOf(w.codec, x.type)) return false;
  for (int i = 0; i < w.num_segments; ++i) {
    if (!Aligned16(w.segments[i].codes) || w.segments[i].first_row % 8 != 0) return false;
  }
  return true;
}

// What GemmInt8 asks of weight and sums; the activations are padded when they are made.
bool SuitsGemmInt8(const WeightView& w) {
  if (w.k % 4 != 0 || w.n % 4 != 0) return false;
  for (int i = 0; i < w.num_segments; ++i) {
    const WeightSegment& s = w.segments[i];
    if (s.rows % 4 != 0 || s.first_row % 4 != 0 || !Aligned16(s.codes)) return false;
  }
  return true;
}

}  // namespace

LinearWay PlanLinear(const WeightView& w, bool int8, const Matrix& x, const Matrix& y,
                     const LinearPolicy& policy) {
  const int32_t m = x.rows;
  if (int8) {
    return m > kMaxInt8MmaRows && policy.has_cublaslt && SuitsGemmInt8(w) ? LinearWay::kInt8Gemm
                                                                          : LinearWay::kInt8Mma;
  }
  const bool mma = HasLinearMma(w, x.type);
  const int32_t max_mma_rows = Is4Bit(w.codec) ? kMaxMmaRows4 : kMaxMmaRows16;
  const bool invariant = policy.determinism == Determinism::kBatchInvariant;
  if (invariant || !policy.has_cublaslt || m <= max_mma_rows || !SuitsGemm16(w, x, y)) {
    return mma ? LinearWay::kMma : LinearWay::kGeneric;
  }
  return IsPlain(w.codec) ? LinearWay::kGemm : LinearWay::kDequantizeGemm;
}

}  // namespace quantd::QUANTD_CUDA_NS
