// How a weight lies in device memory: what the packer writes and every kernel reads.
//
// Plain codecs and int8: row-major [n, k], as cuBLASLt takes it; a tensor-core kernel lets lane
// (g, t) load 16 bytes of rows g and g + 8 and permutes k alike in the activations, since the order
// of a sum's terms is ours to choose.
//
// 4-bit codecs: tiles of 16 rows x 64 columns, 512 bytes, in the order [row tile][k tile], rows
// padded to 16 per segment and columns to 64 with the code of zero. Lane l = 4g + t of a warp owns
// bytes 16 l .. 16 l + 15 of a tile: word s (0..3) holds its A fragment of the mma.m16n8k16 that
// covers columns 16 s .. 16 s + 15, byte i of the word being register a_i: two codes, the lower
// column in the HIGH nibble (bitsandbytes' order). So one 128-bit load a lane feeds four mma, and a
// warp reads 512 bytes in a row.
//
// Scales of 4-bit blocks: `tiled_scales` when a block lies within a row and covers whole k tiles
// (k % block == 0 and block % 64 == 0): [row tile][k / block][16 rows] floats (or u8 codes if
// nested). Otherwise flat order, as the checkpoint has them, for the generic kernel.
#pragma once

#include <cstdint>

#include "kernels/quant/codecs.h"

namespace quantd {

inline constexpr int kTileRows = 16;
inline constexpr int kTileCols = 64;      // of 4-bit codecs
inline constexpr int kTileBytes = 512;    // of 4-bit codecs
inline constexpr int kNestedGroup = 256;  // scales that share a nested statistic

/// The rows of one module in a (fused) weight.
struct WeightSegment {
  int32_t first_row = 0;  // column of y
  int32_t rows = 0;
  int32_t first_tile = 0;  // row tiles of the segments before
  float nested_offset = 0.0f;
  const uint8_t* codes = nullptr;         // of this segment
  const float* scales = nullptr;          // f32 scales, or SCB of int8 rows
  const uint8_t* nested_codes = nullptr;  // scale = map[code] * absmax[flat block / 256] + offset,
  const float* nested_map = nullptr;      // multiplied, then added, each rounded to f32 (no fma)
  const float* nested_absmax = nullptr;   // [ceil(flat blocks of the segment / 256)]
};

/// A weight as a kernel argument: plain data, passed by value.
struct WeightView {
  static constexpr int kMaxSegments = 4;

  Codec codec = Codec::kBF16;
  bool nested = false;
  bool tiled_scales = false;
  int32_t block = 0;      // elements of a flat block; 0 for plain and int8
  int32_t n = 0;          // outputs
  int32_t k = 0;          // inputs
  int32_t padded_k = 0;   // k rounded up to kTileCols for 4-bit codecs, else k
  int32_t row_tiles = 0;  // over all segments
  int32_t num_segments = 0;
  WeightSegment segments[kMaxSegments];
};

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
