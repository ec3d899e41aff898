// How a weight lies in device memory: what the packer writes and every kernel reads.
//
// Plain codecs and those of one byte: row-major [n, k], as cuBLASLt takes it; a tensor-core kernel
// lets lane (g, t) load 16 bytes of rows g and g + 8 and permutes k alike in the activations, since
// the order of a sum's terms is ours to choose. 2-bit codes: flat, four a byte, the first lowest.
//
// 4-bit codecs: tiles of 16 rows x 64 columns, 512 bytes, in the order [row tile][k tile], rows
// padded to 16 per segment and columns to 64 with the code of zero. Lane l = 4g + t of a warp owns
// bytes 16 l .. 16 l + 15 of a tile: word s (0..3) holds its A fragment of the mma.m16n8k16 that
// covers columns 16 s .. 16 s + 15, byte i of the word being register a_i: two codes, the lower
// column in the HIGH nibble (bitsandbytes' order). So one 128-bit load a lane feeds four mma, and a
// warp reads 512 bytes in a row.
//
// Scales and zero points are stored in their own types, one a block, in the checkpoint's order (for
// LinearBytes, the generic kernel and Dequantize) or, of 4-bit codes whose blocks lie within a row
// and cover whole k tiles, as LinearMma stages them: BlockOrder::kTiled. A zero point of such a
// block lies beside its scale in one word (`paired`), which costs a byte a block where it is a u8
// and saves the kernel a second array.
#pragma once

#include <cstdint>

#include "kernels/quant/codecs.h"

namespace quantd {

inline constexpr int kTileRows = 16;
inline constexpr int kTileCols = 64;      // of 4-bit codecs
inline constexpr int kTileBytes = 512;    // of 4-bit codecs
inline constexpr int kNestedGroup = 256;  // scales that share a nested statistic

/// How a number is stored.
enum class Stored : uint8_t {
  kNone,
  kU8,
  kF16,
  kBF16,
  kF32,
  kE4M3,    // of scales: divided by WeightSegment::scale_base
  kNested,  // of scales: map[code] * absmax[block / 256] + scale_base, each rounded to f32 (no fma)
};

/// Which elements of a segment share a scale, and where that is; `block`, `block_rows` and
/// `row_blocks` are WeightView's.
enum class BlockOrder : uint8_t {
  kNone,     // plain codecs
  kGrid,     // rectangles of block_rows x block elements, row-major, row_blocks of them in a row
  kFlat,     // runs of `block` elements of the flattened segment, which cross rows
  kStrided,  // flat index modulo the segment's number of blocks
  kTiled,    // 1 x block, block a multiple of kTileCols: [row tile][row_blocks][16 rows]
};

/// The rows of one module in a (fused) weight.
struct WeightSegment {
  int32_t first_row = 0;  // column of y
  int32_t rows = 0;
  int32_t first_tile = 0;  // row tiles of the segments before
  float scale_base = 0.0f;
  int64_t blocks = 0;
  const uint8_t* codes = nullptr;  // of this segment
  const void* scales = nullptr;    // of WeightView::scale
  const void* zeros = nullptr;     // of WeightView::zero; paired: in `scales`
  const float* nested_map = nullptr;
  const float* nested_absmax = nullptr;  // [ceil(blocks / 256)], blocks in flat order
};

/// A weight as a kernel argument: plain data, passed by value.
struct WeightView {
  static constexpr int kMaxSegments = 4;

  Codec codec = Codec::kBF16;
  BlockOrder order = BlockOrder::kNone;
  Stored scale = Stored::kNone;
  Stored zero = Stored::kNone;
  bool added_zero = false;  // to the product; else subtracted from the code
  bool paired = false;  // `scales` holds words: the scale low, the zero point, in its type, high
  float scale_step = 1.0f;  // a stored scale is multiplied with: LLM.int8's SCB
  int32_t block = 0;        // see BlockOrder
  int32_t block_rows = 1;
  int32_t row_blocks = 0;
  int32_t n = 0;          // outputs
  int32_t k = 0;          // inputs
  int32_t padded_k = 0;   // k rounded up to kTileCols for 4-bit codecs, else k
  int32_t row_tiles = 0;  // over all segments
  int32_t num_segments = 0;
  const int32_t* columns = nullptr;  // [k] the input's column of each stored one; null: the same
  WeightSegment segments[kMaxSegments];
};

/// True when every row has one scale, a float, and nothing else: what products of codes are
/// rescaled with.
inline bool HasRowScales(const WeightView& w) {
  const bool is_float =
      w.scale == Stored::kF32 || w.scale == Stored::kF16 || w.scale == Stored::kBF16;
  return is_float && w.order == BlockOrder::kGrid && w.row_blocks == 1 && w.block_rows == 1 &&
         w.zero == Stored::kNone;
}

/// Byte of a segment's codes, and whether in its high nibble, where the 4-bit code of (row, col)
/// is.
struct NibblePlace {
  int64_t byte = 0;
  bool high = false;
};
QUANTD_HOST_DEVICE inline NibblePlace PlaceOfNibble(int64_t row, int64_t col, int64_t padded_k) {
  const int64_t tile = (row / kTileRows) * (padded_k / kTileCols) + col / kTileCols;
  const int r = static_cast<int>(row % kTileRows), c = static_cast<int>(col % kTileCols);
  const int step = c / 16, within = c % 16;
  const int lane = (r % 8) * 4 + (within % 8) / 2;
  const int reg = (r / 8) + (within / 8) * 2;
  return {tile * kTileBytes + lane * 16 + step * 4 + reg, within % 2 == 0};
}

}  // namespace quantd
