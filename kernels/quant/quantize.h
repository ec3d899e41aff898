// Block quantizers: floats to QuantizedMatrix, as templates over the codecs. The arithmetic is
// bitsandbytes 0.50's on a CPU, to the byte (codes, block scales, SCB); nested scales equal it in
// dequantized value.
#pragma once

#include "absl/status/statusor.h"
#include "kernels/quant/format.h"

namespace quantd {

/// Copies w [n, k] (f32, f16 or bf16) to a plain matrix of `to`, rounding once.
QuantizedMatrix PlainMatrix(const TensorView& w, DType to);

/// 4-bit codes over flat blocks of `block` elements: absmax scales (f32), s = x * (1 / absmax),
/// clamped to
/// [-1, 1], nearest code with ties to the lower value; a trailing partial block divides instead of
/// multiplying. `codec` is kNf4 or kFp4.
QuantizedMatrix QuantizeBlock4(const TensorView& w, Codec codec, int32_t block);

/// Double quantization: replaces the f32 scales of `matrix` by 8-bit codes of (scale - mean) over
/// blocks of 256 with the dynamic map.
void NestScales(QuantizedMatrix& matrix);

/// bitsandbytes' dynamic 8-bit map: 256 f32, ascending.
const std::vector<float>& DynamicMap();

/// LLM.int8 weights: w through f16, SCB[n] = max |w16[n, :]|, codes rint(w16 * (127 * (1 / SCB))):
/// torch divides a number by a tensor as reciprocal times number, which differs at ties.
QuantizedMatrix QuantizeInt8Rows(const TensorView& w);

}  // namespace quantd
