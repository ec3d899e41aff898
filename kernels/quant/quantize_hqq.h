// Half-quadratic quantization: floats to codes with a float scale and zero point per group.
#pragma once

#include "absl/status/statusor.h"
#include "kernels/quant/format.h"

namespace quantd {

/// hqq's weight_quant_params.
struct HqqParams {
  int bits = 4;             // 1 to 8
  int32_t group_size = 64;  // divides n * k
  int axis = 1;             // 1: runs of the flattened matrix; 0: strided over it
  bool optimize = true;     // run the solver, else take the extremes of a group
  bool round_zero = true;   // of the first guess
};

/// Codes of 3 bits are held as 4-bit ones, of 5 to 7 as 8-bit ones. Scales and zero points are of
/// `dtype` (f32, f16 or bf16).
QuantFormat HqqFormat(const HqqParams& params, DType dtype);

/// hqq 0.2.8's Quantizer.quantize on a CPU, in f32: zero points minimize the l0.7 norm of the
/// error of a group, by up to 20 half-quadratic steps that end, for the whole matrix, when its mean
/// error does not shrink. Sums of a group are in the order of torch with AVX2; powers and sums
/// over the matrix may differ in the last bit, so a code at a tie may too. `w` [n, k] is f32, f16
/// or bf16 and finite. INVALID_ARGUMENT when a scale or zero point does not fit `dtype`.
absl::StatusOr<QuantizedMatrix> QuantizeHqq(const TensorView& w, const HqqParams& params,
                                            DType dtype);

}  // namespace quantd
