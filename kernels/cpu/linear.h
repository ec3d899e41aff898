// Linear of the cpu backend: what linear.cc (threads, activations) and the kernels of one
// instruction set (linear_<isa>.cc) say to each other. Internal to kernels/cpu.
//
// Idea. A micro-kernel owns MR rows of x times NR panels of 16 outputs and walks all of k, decoding
// each weight vector in registers and using it for its MR rows. Work is split over panels only, so
// a weight is read once a call whatever the number of rows. Order. Every output is the sum, over
// pieces of columns in ascending order, of scale * (sum over the piece's columns in ascending
// order), in f32. A piece is a scale block, or a part of one that is long. MR, NR, threads and
// chunks never enter, so a row's result does not depend on its neighbours. Zero points: w = scale *
// code + offset, so a piece adds offset * (sum of its x), a sum that is made once a call. Bytes per
// weight: the format's own (nf4 0.5 + scales). Expected bound: memory bandwidth up to about 4 rows,
// arithmetic beyond.
#pragma once

#include <cstdint>

#include "kernels/cpu/cpu_backend.h"
#include "kernels/cpu/packed_weight.h"
#include "kernels/tensor.h"

namespace quantd {

/// Most rows of x one micro-kernel call takes on any instruction set.
inline constexpr int kMaxRowsPerTile = 8;

/// How a weight is decoded and multiplied. Pairs: bf16 dot products; others: f32.
enum class LinearPath : uint8_t {
  kTable4Pairs,  // 4-bit codes
  kTable4F32,
  kTable2Pairs,  // 2-bit codes
  kTable2F32,
  kE4M3Pairs,
  kE4M3F32,
  kInt8F32,  // int8 and uint8 weights
  kBF16Pairs,
  kBF16F32,
  kF16F32,
  kF32F32,
  kTable4Elements,  // each weight scaled as it is decoded: blocks that cross rows
  kTable2Elements,
  kE4M3Elements,
  kInt8Elements,
  kInt8Int8,  // int8 weights and activations, int32 sums
};

/// How x is laid out for a path: tiles of at most kMaxRowsPerTile rows, k outermost inside a tile.
enum class XLayout : uint8_t {
  kBF16Pairs,  // [k/2][rows] dwords of two bf16
  kF32,        // [k][rows] f32
  kU8Quads,    // [k/4][rows] dwords of four q + 128
  kI16Quads,   // [k/4][rows][2] dwords: q of columns (0, 2), then of columns (1, 3)
};

/// Bytes an element of x takes in a layout.
constexpr int64_t XBytes(XLayout layout) {
  switch (layout) {
    case XLayout::kBF16Pairs: return 2;
    case XLayout::kF32: return 4;
    case XLayout::kU8Quads: return 1;
    case XLayout::kI16Quads: return 2;
  }
  return 0;
}

/// int8 activations, rows in call order. The outliers are LLM.int8's.
struct Int8Activations {
  const float* row_scales = nullptr;   // [m]
  const int32_t* row_zeros = nullptr;  // [m] x = (code - zero) * scale
  const uint64_t* outliers = nullptr;  // bit masks over columns, mask_words a row
  int64_t mask_words = 0;
  bool shared_mask = false;              // one mask for all rows (OutlierScope::kCall)
  const uint8_t* any_outlier = nullptr;  // [m]
};

/// One Linear, ready to be split over panels.
struct LinearCall {
  const CpuPackedWeight* weight = nullptr;
  LinearPath path = LinearPath::kF32F32;
  const float* table = nullptr;  // [16] values of a 4-bit code, or of a 2-bit code four times over
  const uint8_t* x = nullptr;    // packed activations
  const float* sums = nullptr;   // of the columns of x, for zero points: tiles of [pieces][rows]
  int64_t m = 0;
  int64_t rows_per_tile = 1;  // tile t holds rows [t * rows_per_tile, ...)
  int64_t tile_bytes = 0;     // of a full tile
  int64_t pieces = 0;         // of a row
  /// ActivationQuant::reference: weights, or sums of integers times the scale of x, are rounded to
  /// the dtype of x.
  bool rounds_steps = false;
  TensorView x_plain;  // as given, for outliers
  Int8Activations int8;
  const float* bias = nullptr;  // [n]
  TensorView y;
};

/// Columns of a piece of a long scale block, and of plain weights: bounds a chain of additions.
inline constexpr int64_t kScaledPiece = 128;
inline constexpr int64_t kPlainPiece = 64;

/// The kernels of one instruction set.
struct LinearKernels {
  int max_rows_per_tile;
  bool bf16_pairs;      // has bf16 dot products
  XLayout int8_layout;  // what kInt8Int8 reads
  /// y[:, columns of panels [first, last)] of the call. Panels count over all segments.
  void (*run)(const LinearCall& call, int64_t first_panel, int64_t last_panel);
  /// Rows [row, row + rows) of x as one tile of `layout` (a floating-point one), k padded with
  /// zeros.
  void (*pack_floats)(const TensorView& x, int64_t row, int64_t rows, XLayout layout,
                      int64_t padded_k, uint8_t* tile);
  /// Sums of the columns of each piece of rows [row, row + rows) of x, [pieces][rows], for weights
  /// whose scale blocks have `block` columns.
  void (*sum_columns)(const TensorView& x, int64_t row, int64_t rows, int64_t block, float* sums);
};

const LinearKernels& LinearKernelsAvx2();
const LinearKernels& LinearKernelsAvx512();
const LinearKernels& LinearKernelsAvx512Vnni();
const LinearKernels& LinearKernelsAvx512Bf16();

}  // namespace quantd
