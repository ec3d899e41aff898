// Linear of the cpu backend: what linear.cc (threads, activations) and the kernels of one
// instruction set (linear_<isa>.cc) say to each other. Internal to kernels/cpu.
//
// Idea. A micro-kernel owns MR rows of x times NR panels of 16 outputs and walks all of k, decoding
// each weight vector in registers and using it for its MR rows. Work is split over panels only, so
// a weight is read once a call whatever the number of rows. Order. Every output is the sum, over
// blocks of columns in ascending order, of scale * (sum over the block's columns in ascending
// order), in f32. MR, NR, threads and chunks never enter, so a row's result does not depend on its
// neighbours. Bytes per weight: the format's own (nf4 0.5 + scales). Expected bound: memory
// bandwidth up to about 4 rows, arithmetic beyond.
#pragma once

#include <cstdint>

#include "kernels/cpu/cpu_backend.h"
#include "kernels/cpu/packed_weight.h"
#include "kernels/tensor.h"

namespace quantd {

/// Most rows of x one micro-kernel call takes on any instruction set.
inline constexpr int kMaxRowsPerTile = 8;

enum class LinearPath : uint8_t {
  kTable4Pairs,  // 4-bit codes to bf16 pairs, bf16 dot products
  kTable4F32,    // 4-bit codes to f32
  kTable4Flat,   // 4-bit codes whose scale blocks cross rows, f32
  kBF16Pairs,    // bf16 dot products
  kBF16F32,
  kF16F32,
  kF32F32,
  kInt8F32,   // int8 weights, floating-point activations
  kInt8Int8,  // int8 weights and activations, int32 sums
};
inline constexpr int kNumLinearPaths = 9;

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

/// LLM.int8's view of the activations, rows in call order.
struct Int8Activations {
  const float* row_scales = nullptr;   // [m] largest magnitude of the row's non-outliers
  const uint64_t* outliers = nullptr;  // bit masks over columns, mask_words a row
  int64_t mask_words = 0;
  bool shared_mask = false;              // one mask for all rows (OutlierScope::kCall)
  const uint8_t* any_outlier = nullptr;  // [m]
};

/// One Linear, ready to be split over panels.
struct LinearCall {
  const CpuPackedWeight* weight = nullptr;
  LinearPath path = LinearPath::kF32F32;
  const float* table = nullptr;  // [16] values of a 4-bit codec
  const uint8_t* x = nullptr;    // packed activations
  int64_t m = 0;
  int64_t rows_per_tile = 1;  // tile t holds rows [t * rows_per_tile, ...)
  int64_t tile_bytes = 0;     // of a full tile
  TensorView x_plain;         // as given, for outliers
  Int8Activations int8;
  const float* bias = nullptr;  // [n]
  TensorView y;
};

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
};

const LinearKernels& LinearKernelsAvx2();
const LinearKernels& LinearKernelsAvx512();
const LinearKernels& LinearKernelsAvx512Vnni();
const LinearKernels& LinearKernelsAvx512Bf16();

}  // namespace quantd
