// PlanLinear: see linear_plan.h.
#include "kernels/cuda/linear_plan.h"

namespace quantd::QUANTD_CUDA_NS {
namespace {

bool Aligned16(const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; }

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

// True when x and w are both int8 and every sum of products has one scale.
bool SumsInt8(const WeightView& w, const ActivationQuant& activation) {
  using Kind = ActivationQuant::Kind;
  if (w.codec != Codec::kInt8 || !HasRowScales(w) || w.columns != nullptr) return false;
  if (activation.kind == Kind::kInt8Outlier) return true;  // over LLM.int8's weights only
  // A step of SCB / 127 is LLM.int8's alone.
  if (activation.reference || w.scale_step != 1.0f) return false;
  return activation.kind == Kind::kInt8Token ||
         (activation.kind == Kind::kInt8Tensor && activation.zero_point == 0);
}

// The same of e4m3, and what GemmFp8 asks of the weight; the activations are padded when they are
// made.
bool SumsFp8(const WeightView& w, const ActivationQuant& activation) {
  using Kind = ActivationQuant::Kind;
  if (w.codec != Codec::kE4M3 || !HasRowScales(w) || w.columns != nullptr) return false;
  if (activation.reference ||
      (activation.kind != Kind::kFp8Token && activation.kind != Kind::kFp8Tensor)) {
    return false;
  }
  if (w.k % 16 != 0) return false;
  for (int i = 0; i < w.num_segments; ++i) {
    const WeightSegment& s = w.segments[i];
    if (s.rows % 16 != 0 || !Aligned16(s.codes)) return false;
  }
  return true;
}

}  // namespace

LinearWay PlanLinear(const WeightView& w, const ActivationQuant& activation, const Matrix& x,
                     const Matrix& y, const LinearPolicy& policy) {
  const int32_t m = x.rows;
  if (SumsInt8(w, activation)) {
    return m > kMaxInt8MmaRows && policy.has_cublaslt && SuitsGemmInt8(w) ? LinearWay::kInt8Gemm
                                                                          : LinearWay::kInt8Mma;
  }
  const bool invariant = policy.determinism == Determinism::kBatchInvariant;
  const bool bytes = HasLinearBytes(w, x.type) && !activation.reference;
  if (policy.has_fp8 && !invariant && SumsFp8(w, activation) && !(bytes && m <= kMaxFp8ByteRows)) {
    return LinearWay::kFp8Gemm;
  }
  const bool plain = IsPlain(w.codec);
  const bool mma = HasLinearMma(w, x.type) && (plain || !activation.reference);
  // The generic kernel decodes a weight more slowly than a pass over dequantized ones takes.
  const int32_t max_rows = bytes ? kMaxByteRows : !mma ? 0 : plain ? kMaxMmaRows16 : kMaxMmaRows4;
  if (invariant || !policy.has_cublaslt || m <= max_rows || !SuitsGemm16(w, x, y)) {
    return bytes ? LinearWay::kBytes : mma ? LinearWay::kMma : LinearWay::kGeneric;
  }
  return plain ? LinearWay::kGemm : LinearWay::kDequantizeGemm;
}

}  // namespace quantd::QUANTD_CUDA_NS
