// PlanLinear: which kernels compute a Linear. The one place where this is decided.
//
// | weight              | x           | rows           | way                                |
// |---------------------|-------------|----------------|------------------------------------|
// | int8, a scale a row | int8 codes  | up to 16       | codes, LinearInt8Mma               |
// | int8, a scale a row | int8 codes  | more           | codes, GemmInt8, RescaleInt8: the  |
// |                     |             |                | same bits, sums of integers        |
// | e4m3, a scale a row | e4m3 codes  | more than 16   | codes, GemmFp8, RescaleFp8         |
// | 8-bit, a scale a    | 16-bit      | up to 32       | LinearBytes                        |
// | row or 64 * 2^i     |             |                |                                    |
// | columns             |             |                |                                    |
// | 4-bit, tiled blocks | 16-bit      | up to 64       | LinearMma                          |
// | 16-bit, x's type    | 16-bit      | up to 8        | LinearMma                          |
// | 16-bit, x's type    | 16-bit      | more           | Gemm16                             |
// | any quantized       | 16-bit      | more, or any   | Dequantize and Gemm16, a slab each |
// | anything            | anything    | any            | LinearGeneric                      |
//
// "codes": LLM.int8, and int8 or e4m3 of one scale a row, or of one for all, without zero points
// and without ActivationQuant::reference. e4m3 needs compute capability 8.9. Other quantized
// activations are replaced by what their codes stand for (ReplaceInput) and are then floats.
// `reference` also keeps quantized weights from LinearMma and LinearBytes, which do not round them.
// Columns of one scale may be those of several rows, too (rectangles).
//
// A row whose library is missing, or whose alignment the shape has not, falls to LinearMma or
// LinearBytes and then to LinearGeneric. Under Determinism::kBatchInvariant Gemm16 and GemmFp8 are
// not used, whose order of additions depends on the number of rows.
#pragma once

#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/ops.h"

namespace quantd::QUANTD_CUDA_NS {

enum class LinearWay : uint8_t {
  kGeneric,         // LinearGeneric
  kMma,             // LinearMma
  kBytes,           // LinearBytes
  kGemm,            // Gemm16 on the weight as it lies there
  kDequantizeGemm,  // Dequantize, Gemm16
  kInt8Mma,         // codes, LinearInt8Mma
  kInt8Gemm,        // codes, GemmInt8, RescaleInt8
  kFp8Gemm,         // codes, GemmFp8, RescaleFp8
};

inline constexpr int32_t kMaxMmaRows4 = 64;     // of 4-bit weights
inline constexpr int32_t kMaxMmaRows16 = 8;     // of 16-bit weights
inline constexpr int32_t kMaxInt8MmaRows = 16;  // of int8 weights
// Of LinearBytes, where the other way dequantizes, and where it multiplies e4m3 codes.
inline constexpr int32_t kMaxByteRows = 32, kMaxFp8ByteRows = 16;

struct LinearPolicy {
  bool has_cublaslt = false;
  Determinism determinism = Determinism::kDefault;
  bool has_fp8 = false;  // cuBLASLt and the device multiply e4m3
};

/// x and y have the weight's k and n columns.
LinearWay PlanLinear(const WeightView& w, const ActivationQuant& activation, const Matrix& x,
                     const Matrix& y, const LinearPolicy& policy);

/// True for the ways that take x as it is and quantize it; others take floats in stored columns.
constexpr bool MultipliesCodes(LinearWay way) {
  return way == LinearWay::kInt8Mma || way == LinearWay::kInt8Gemm || way == LinearWay::kFp8Gemm;
}

}  // namespace quantd::QUANTD_CUDA_NS
