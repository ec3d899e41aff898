// Quantizers of fp8 weights: floats to e4m3 codes with scales, as the libraries compute them.
#pragma once

#include "kernels/quant/format.h"

namespace quantd {

/// e4m3.tile<rows>x<columns>.f32, tiles at the edges smaller: code = e4m3(x * s), s = 448 / the
/// tile's largest magnitude, scale 1 / s (transformers' Fp8Quantize, to the bit). A tile of zeros
/// has scale 1. `powers_of_two` (ue8m0): the scale is rounded up to one, s is its reciprocal.
/// w [n, k] is f32, f16 or bf16 and finite.
QuantizedMatrix QuantizeE4M3Tiles(const TensorView& w, int32_t rows, int32_t columns,
                                  bool powers_of_two);

/// e4m3.row.f32: code = e4m3(x / s), s = the row's largest magnitude / 448, both w and s rounded to
/// `dtype` (torchao's Float8Tensor, to the bit). `whole`: one scale for all rows, repeated. A row
/// of zeros has scale 0 and codes 0.
QuantizedMatrix QuantizeE4M3Rows(const TensorView& w, DType dtype, bool whole);

}  // namespace quantd
