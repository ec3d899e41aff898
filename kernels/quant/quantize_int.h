// Quantizers of integer weights, as torchao computes them. w [n, k] is f32, f16 or bf16 and finite;
// it is rounded to `dtype` first, the model's, in which torchao computes; `round` below is to it.
#pragma once

#include "kernels/quant/format.h"

namespace quantd {

/// int8.row.f32: s = round(absmax / 127.5), at least 2^-23; code = rint(x * (1 / s)) in f32,
/// clamped to [-128, 127] (Int8Tensor, to the bit). `whole`: one scale for all rows, repeated.
QuantizedMatrix QuantizeInt8SymmetricRows(const TensorView& w, DType dtype, bool whole);

/// IntxUnpackedToInt8Tensor: codes of `bits` (2 to 8) over groups of columns.
struct IntGroups {
  int bits = 4;
  int32_t group = 32;  // 0: a row
  bool symmetric = true;

  /// int4 up to 4 bits, else int8, with scales of `dtype`; asymmetric: uint4 or uint8 with zero_u8,
  /// which are codes and zero points plus 8 or 128.
  QuantFormat Format(DType dtype) const;
};

/// To the bit. Symmetric: s = round(absmax / ((2^bits - 1) / 2)); else s = round(round(high - low)
/// / (2^bits - 1)) with 0 between low and high, zero = least - rint(round(low / s)). Code =
/// rint(round(x * round(1 / s))) + zero, clamped to the bits.
QuantizedMatrix QuantizeIntGroups(const TensorView& w, DType dtype, const IntGroups& how);

/// Int4Tensor: int4.group<group> with scales and added offsets of `dtype` (f16's offsets in f32).
QuantFormat Int4OffsetFormat(DType dtype, int32_t group);
/// s = (high - low, at least 1e-6) / 15; offset low + 8 s; code = rint((x - low) / s) in [0, 15],
/// minus 8; all in f32, then s and the offset are rounded to `dtype`.
QuantizedMatrix QuantizeInt4Offset(const TensorView& w, DType dtype, int32_t group);

}  // namespace quantd
