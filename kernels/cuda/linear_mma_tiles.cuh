// What a warp of the kernel in linear_mma.cuh moves: the sizes of a block, and tiles of weights on
// their way from device memory to A fragments. A new codec is a Tile, a Source and an Expand here.
#pragma once

#include <type_traits>

#include "kernels/cuda/linear_mma.h"
#include "kernels/cuda/numeric.cuh"
#include "kernels/cuda/operands.cuh"
#include "kernels/cuda/ptx.cuh"
#include "kernels/cuda/weight_decode.cuh"

namespace quantd::QUANTD_CUDA_NS {

/// Sizes of a block. kTable: 4-bit codes by the table; else 16-bit plain weights.
template <bool kTable, int kTokenTiles>
struct MmaGeometry {
  static constexpr int kRowTiles = kTokenTiles >= 4 ? 2 : 1;  // of a warp
  static constexpr int kWarps = kMmaGroupTiles / kRowTiles;
  static constexpr int kThreads = 32 * kWarps;
  static constexpr int kTokens = 8 * kTokenTiles;
  // Tiles a warp has in flight: 4 x 512 bytes, or 2 x 2 KiB of plain weights. Divides kSliceTiles
  // and kMmaSplitUnit, so that a tile's place in the ring is known at compile time.
  static constexpr int kDepth = kTable && kTokenTiles <= 2 ? 4 : 2;
  // Tiles the loop is unrolled by: with 64 tokens the sums leave registers for one, and moving the
  // ring along costs little beside 64 mma.
  static constexpr int kUnroll = kTokenTiles == 8 ? 1 : kDepth;

  // x is staged in slices of k, two of them in shared memory. A unit is 64 columns of one token; a
  // slice has 128 units. Chunks of 16 bytes are swizzled within a unit.
  static constexpr int kSliceUnits = 128;
  static constexpr int kSliceTiles = kSliceUnits / kTokens;
  static constexpr int kUnitStride = kTable ? 256 : 128;  // bytes; in between lies the table
  static constexpr int kUnitOffset = kTable ? 128 : 0;

  // Shared memory, in bytes from its start.
  static constexpr int kScales = 2 * kSliceUnits * kUnitStride;  // f32 [2][8 row tiles][tiles][16]
  static constexpr int kScaleBuffer = kTable ? kMmaGroupTiles * kSliceTiles * 64 : 0;
  // Scales as stored, before they are decoded: u8, as kScales, and behind them the maps f32
  // [segments][256]; or 16-bit, in the place of both.
  static constexpr int kScaleCodes = kScales + 2 * kScaleBuffer;
  static constexpr int kNestedMaps = kScaleCodes + kScaleBuffer / 2;
  static constexpr int kStateBytes = kTable ? 40 : 0;  // of a thread: where its scales are
  static constexpr int kState = kNestedMaps + (kTable ? WeightView::kMaxSegments * 1024 : 0);
  static_assert(kScaleCodes + kScaleBuffer <= kState || !kTable);
  static constexpr int kFlag = kState + kThreads * kStateBytes;
  static constexpr int kTotals = kFlag + 128;  // f32 [sums of a thread][kThreads], if whole_k
  static constexpr int kBytes = kTotals;
  static constexpr int kBytesWholeK = kTotals + kRowTiles * kTokenTiles * 4 * kThreads * 4;

  /// Chunk of 16 bytes of `token`'s unit where its columns 8 chunk .. 8 chunk + 7 lie. ldmatrix
  /// reads one chunk of eight tokens, a 128-bit load of plain fragments four chunks of two tokens.
  static __device__ __forceinline__ int Swizzle(int token, int chunk) {
    return chunk ^ (kTable ? token & 7 : (token & 1) << 2);
  }
};

/// What a warp knows of one of its row tiles.
struct MmaRowTile {
  WeightSegment segment;
  int32_t row = 0;  // first, within the segment
  bool active = false;
};

/// Row tiles are numbered over all segments; beyond the last a warp repeats it and stores nothing.
__device__ __forceinline__ MmaRowTile RowTileAt(const WeightView& w, int tile) {
  MmaRowTile r;
  r.active = tile < w.row_tiles;
  if (!r.active) tile = w.row_tiles - 1;
  r.segment = SegmentOfTile(w, tile);
  r.row = (tile - r.segment.first_tile) * kTileRows;
  return r;
}

/// A tile of 4-bit codes in registers: word s is the A fragment of columns 16 s .. 16 s + 15, as
/// codes.
struct TableTile {
  uint4 codes;
};

/// Walks the tiles of a row tile, for this lane.
struct TableSource {
  const uint8_t* at;
  __device__ __forceinline__ TableSource(const WeightView& w, const MmaRowTile& tile, int k_tile,
                                         int lane)
      : at(tile.segment.codes +
           (static_cast<int64_t>(tile.row / kTileRows) * (w.padded_k / kTileCols) + k_tile) *
               kTileBytes +
           lane * 16) {}
  __device__ __forceinline__ void Load(int ahead, TableTile& tile) const {
    tile.codes = LoadStreaming(at + ahead * kTileBytes);
  }
  __device__ __forceinline__ void Advance(int tiles) { at += tiles * kTileBytes; }
};

/// The four A fragments of a tile. `table`: its shared address; lane_offset: 4 lane.
__device__ __forceinline__ void Expand(const TableTile& tile, uint32_t table, uint32_t lane_offset,
                                       uint32_t (&a)[4][4]) {
  const uint32_t words[4] = {tile.codes.x, tile.codes.y, tile.codes.z, tile.codes.w};
#pragma unroll
  for (int s = 0; s < 4; ++s) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      // Bits 0..7 from the lane, 8..15 the byte of codes: entry * 256 + lane * 4.
      a[s][i] = LoadShared(
          table + __byte_perm(words[s], lane_offset, static_cast<uint32_t>(0x7604 | (i << 4))));
    }
  }
}

/// A tile of plain weights: 16 bytes of rows g and g + 8 in each half of the 64 columns.
struct PlainTile {
  uint4 rows[2][2];  // [half][row]
};

struct PlainSource {
  const uint8_t* low;
  const uint8_t* high;
  int32_t columns;  // left in the row from this lane's first of the tile
  __device__ __forceinline__ PlainSource(const WeightView& w, const MmaRowTile& tile, int k_tile,
                                         int lane) {
    const int32_t last = tile.segment.rows - 1;
    const int32_t row = tile.row + lane / 4;
    const int64_t stride = 2 * static_cast<int64_t>(w.k);
    const int column = k_tile * kTileCols + 8 * (lane % 4);
    low = tile.segment.codes + (row < last ? row : last) * stride + 2 * column;
    high = tile.segment.codes + (row + 8 < last ? row + 8 : last) * stride + 2 * column;
    columns = w.k - column;
  }
  __device__ __forceinline__ void Load(int ahead, PlainTile& tile) const {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int column = ahead * kTileCols + 32 * half;
      tile.rows[half][0] = tile.rows[half][1] = make_uint4(0, 0, 0, 0);
      if (column < columns) {  // k is a multiple of 8: all 16 bytes or none
        tile.rows[half][0] = LoadStreaming(low + 2 * column);
        tile.rows[half][1] = LoadStreaming(high + 2 * column);
      }
    }
  }
  __device__ __forceinline__ void Advance(int tiles) {
    low += 2 * tiles * kTileCols;
    high += 2 * tiles * kTileCols;
    columns -= tiles * kTileCols;
  }
};

__device__ __forceinline__ void Expand(const PlainTile& tile, uint32_t, uint32_t,
                                       uint32_t (&a)[4][4]) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const uint4 low = tile.rows[half][0], high = tile.rows[half][1];
    const uint32_t first[4] = {low.x, high.x, low.y, high.y};
    const uint32_t second[4] = {low.z, high.z, low.w, high.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      a[2 * half][i] = first[i];
      a[2 * half + 1][i] = second[i];
    }
  }
}

}  // namespace quantd::QUANTD_CUDA_NS
