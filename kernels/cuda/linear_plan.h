// PlanLinear: which kernels compute a Linear. The one place where this is decided.
//
// | weight          | activations | rows                | way |
// |-----------------|-------------|---------------------|--------------------------------------------|
// | int8            | int8        | up to 16            | QuantizeInt8, LinearInt8Mma | | int8 |
// int8        | more                | QuantizeInt8, GemmInt8, RescaleInt8: the   | | | | | integer
// sums are exact, so the same bits   | | 4-bit           | 16-bit      | up to 64            |
// LinearMma                                  | | 4-bit, int8     | 16-bit      | more | Dequantize
// and Gemm16, slab by slab        | | 16-bit, x's type| 16-bit      | up to 8             |
// LinearMma                                  | | 16-bit, x's type| 16-bit      | more | Gemm16 | |
// anything        | anything    | any                 | LinearGeneric |
//
// A row whose library is missing, or whose alignment the shape has not, falls to LinearMma and then
// to LinearGeneric. Under Determinism::kBatchInvariant Gemm16 is not used, whose order of additions
// depends on the number of rows.
#pragma once

#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/ops.h"

namespace quantd::QUANTD_CUDA_NS {

enum class LinearWay : uint8_t {
  kGeneric,         // LinearGeneric
  kMma,             // LinearMma
  kGemm,            // Gemm16 on the weight as it lies there
  kDequantizeGemm,  // Dequantize, Gemm16
  kInt8Mma,         // QuantizeInt8, LinearInt8Mma
  kInt8Gemm,        // QuantizeInt8, GemmInt8, RescaleInt8
};

inline constexpr int32_t kMaxMmaRows4 = 64;     // of 4-bit weights
inline constexpr int32_t kMaxMmaRows16 = 8;     // of 16-bit weights
inline constexpr int32_t kMaxInt8MmaRows = 16;  // of int8 weights

struct LinearPolicy {
  bool has_cublaslt = false;
  Determinism determinism = Determinism::kDefault;
};

/// `int8`: the activations are quantized too. x and y have the weight's k and n columns.
LinearWay PlanLinear(const WeightView& w, bool int8, const Matrix& x, const Matrix& y,
                     const LinearPolicy& policy);

}  // namespace quantd::QUANTD_CUDA_NS
