// Choosing at run time which type a template rounds to. Host only.
#pragma once

#include "kernels/check.h"
#include "kernels/quant/activation.h"
#include "kernels/tensor.h"

namespace quantd {

/// Calls `body` with the functor of activation.h that rounds to `dtype` (f32, f16 or bf16).
template <typename Body>
void WithRounding(DType dtype, const Body& body) {
  switch (dtype) {
    case DType::kBF16: return body(RoundToBF16());
    case DType::kF16: return body(RoundToF16());
    case DType::kF32: return body(RoundToF32());
    default: break;
  }
  QUANTD_CHECK(false, "{} is not a floating-point type", ToString(dtype));
}

}  // namespace quantd
