// Dequantize: quantized weights -> row-major bf16, f16 or f32, for cuBLASLt.
//
// 4-bit codes. Idea: a tile is read in fragment order (512 bytes, 16 a lane), expanded to pairs,
// and turned to rows through shared memory, so that both sides move 16 bytes a lane. Mapping: a
// warp owns one tile of 16 rows x 64 columns, a block four tiles in a row; grid x k tiles, y row
// tiles. The table is read from shared memory 16-fold: lanes meet in banks, but two loads of a pair
// hide behind 4.6 bytes of DRAM. Codes of 8 and of 2 bits, which lie row-major. A thread owns eight
// columns of a row, which mostly share a block: 8 or 2 bytes in, 16 or 32 out.
//
// Bytes moved per weight: 0.5 + scale + 2 (bf16), 1 + 2, or 0.25 + scale + 2. Expected bound: DRAM;
// where blocks are not whole tiles of 4-bit codes or cross rows, finding them.
#include <algorithm>

#include "kernels/cuda/elements.cuh"
#include "kernels/cuda/ptx.cuh"
#include "kernels/cuda/weight_decode.cuh"

namespace quantd::QUANTD_CUDA_NS {
namespace {

constexpr int kWarps = 4;

struct DequantizeArgs {
  WeightView w;
  Matrix out;
  int32_t first_row = 0;    // of the weight: row 0 of out
  int32_t first_tile = 0;   // row tile of blockIdx.y 0
  bool wide = false;        // groups of eight outputs may be stored by 16 bytes
  bool wide_codes = false;  // segments of byte codes start at multiples of 8
  float values[16] = {};    // of the 4-bit codes
};

template <typename T>
struct Pair {
  T low, high;
};

/// One tile a warp.
template <typename T>
__global__ void __launch_bounds__(32 * kWarps) DequantizeTilesKernel(DequantizeArgs args) {
  // Rows of 64 elements and 16 bytes: a store of pairs (4 g + t words on) and a load of 16 bytes
  // are free of bank conflicts for 16-bit elements.
  constexpr int kStride = kTileCols + 16 / static_cast<int>(sizeof(T));
  DYN_SMEM(unsigned char, shared);
  float* const values = reinterpret_cast<float*>(shared);
  const int thread = static_cast<int>(threadIdx.x), warp = thread / 32, lane = thread % 32;
  T* const tile = reinterpret_cast<T*>(shared + 64) + warp * kTileRows * kStride;
  if (thread < 16) values[thread] = args.values[thread];
  __syncthreads();

  const WeightView& w = args.w;
  const int k_tile = static_cast<int>(blockIdx.x) * kWarps + warp;
  if (k_tile * kTileCols >= w.k) return;
  const int row_tile = args.first_tile + static_cast<int>(blockIdx.y);
  const WeightSegment segment = SegmentOfTile(w, row_tile);
  const int first = (row_tile - segment.first_tile) * kTileRows;  // row within the segment
  const uint4 codes = LoadStreaming(
      segment.codes +
      (static_cast<int64_t>(first / kTileRows) * (w.padded_k / kTileCols) + k_tile) * kTileBytes +
      lane * 16);
  const uint32_t words[4] = {codes.x, codes.y, codes.z, codes.w};

  const int last = segment.rows - 1;
  const int rows[2] = {first + lane / 4 < last ? first + lane / 4 : last,
                       first + lane / 4 + 8 < last ? first + lane / 4 + 8 : last};
  const int first_col = k_tile * kTileCols;
  const auto store = [&](int place, uint32_t byte, const BlockValues& low,
                         const BlockValues& high) {
    const int col = place / 4 * 16 + place % 4 / 2 * 8 + 2 * (lane % 4);
    T* const to = tile + (lane / 4 + 8 * (place % 2)) * kStride + col;
    *reinterpret_cast<Pair<T>*>(to) = {FromFloat<T>(Dequantized(w, values[byte >> 4], low)),
                                       FromFloat<T>(Dequantized(w, values[byte & 15], high))};
  };
  if (w.order == BlockOrder::kTiled) {
    const BlockValues blocks[2] = {BlockOf(w, segment, rows[0], first_col),
                                   BlockOf(w, segment, rows[1], first_col)};
#pragma unroll
    for (int place = 0; place < 16; ++place) {
      const BlockValues& block = blocks[place % 2];
      store(place, words[place / 4] >> (8 * (place % 4)) & 0xffu, block, block);
    }
  } else {  // not unrolled: a kernel longer than the instruction cache runs at the cache's pace
#pragma unroll 1
    for (int place = 0; place < 16; ++place) {
      const int s = place / 4, row = place % 2 == 0 ? rows[0] : rows[1];
      const uint32_t word = s == 0 ? words[0] : s == 1 ? words[1] : s == 2 ? words[2] : words[3];
      // Columns of padding take the last column's block.
      const int c = first_col + s * 16 + place % 4 / 2 * 8 + 2 * (lane % 4);
      store(place, word >> (8 * (place % 4)) & 0xffu,
            BlockOf(w, segment, row, c < w.k ? c : w.k - 1),
            BlockOf(w, segment, row, c + 1 < w.k ? c + 1 : w.k - 1));
    }
  }
  __syncwarp();

  for (int i = lane; i < kTileRows * kTileCols / kGroup; i += 32) {
    const int row = first + i / 8, col = first_col + i % 8 * kGroup;
    const int out_row = segment.first_row + row - args.first_row;
    if (row > last || out_row < 0 || out_row >= args.out.rows) continue;
    T* const to = static_cast<T*>(args.out.data) + out_row * args.out.stride + col;
    const T* const from = tile + i / 8 * kStride + i % 8 * kGroup;
    if (args.wide && col + kGroup <= w.k) {
      Copy<kGroup>(from, to);
    } else {
      for (int c = 0; c < kGroup && col + c < w.k; ++c) to[c] = from[c];
    }
  }
}

/// Eight columns a thread.
template <typename T, int kBits>
__global__ void __launch_bounds__(32 * kWarps) DequantizeRowsKernel(DequantizeArgs args) {
  const WeightView& w = args.w;
  const int col =
      (static_cast<int>(blockIdx.x) * 32 * kWarps + static_cast<int>(threadIdx.x)) * kGroup;
  if (col >= w.k) return;
  const int out_row = static_cast<int>(blockIdx.y);
  const WeightSegment segment = SegmentOfRow(w, args.first_row + out_row);
  const int row = args.first_row + out_row - segment.first_row;
  T* const to = static_cast<T*>(args.out.data) + out_row * args.out.stride + col;
  const int count = w.k - col < kGroup ? w.k - col : kGroup;
  const int64_t place = BlockPlace(w, segment, row, col);
  // Places ascend along a row, but for strided blocks, which no two neighbours share.
  const bool shared =
      w.order != BlockOrder::kStrided && place == BlockPlace(w, segment, row, col + count - 1);
  BlockValues block = BlockAt(w, segment, place, row, col);
  float v[kGroup] = {};
  if (kBits == 8 && count == kGroup && w.k % kGroup == 0 && args.wide_codes) {
    const uint2 codes =
        *reinterpret_cast<const uint2*>(segment.codes + static_cast<int64_t>(row) * w.k + col);
#pragma unroll
    for (int i = 0; i < kGroup; ++i) {
      v[i] = ByteCode(w.codec, static_cast<uint8_t>((i < 4 ? codes.x : codes.y) >> (8 * (i % 4))));
    }
  } else {
#pragma unroll
    for (int i = 0; i < kGroup; ++i) {
      if (i < count) v[i] = RowMajorCode<kBits>(w, segment, row, col + i);
    }
  }
#pragma unroll
  for (int i = 0; i < kGroup; ++i) {
    if (!shared && i > 0 && i < count) block = BlockOf(w, segment, row, col + i);
    v[i] = Dequantized(w, v[i], block);
  }
  if (args.wide && count == kGroup) return Store<kGroup>(to, v);
  for (int i = 0; i < count; ++i) to[i] = FromFloat<T>(v[i]);
}

/// The row tile of output row `row`.
int TileOfRow(const WeightView& w, int row) {
  int index = 0;
  for (int i = 1; i < w.num_segments; ++i) {
    if (row >= w.segments[i].first_row) index = i;
  }
  return w.segments[index].first_tile + (row - w.segments[index].first_row) / kTileRows;
}

// gridDim.y is 16 bits wide.
constexpr int kMaxGridY = 65535;

template <typename T>
void LaunchTiles(DequantizeArgs args, Stream stream) {
  constexpr int kStride = kTileCols + 16 / static_cast<int>(sizeof(T));
  constexpr size_t kShared = 64 + kWarps * kTileRows * kStride * sizeof(T);
  const int end_tile = TileOfRow(args.w, args.first_row + args.out.rows - 1) + 1;
  for (args.first_tile = TileOfRow(args.w, args.first_row); args.first_tile < end_tile;
       args.first_tile += kMaxGridY) {
    const dim3 grid(static_cast<unsigned>(CeilDiv(args.w.k, kTileCols * kWarps)),
                    static_cast<unsigned>(std::min(kMaxGridY, end_tile - args.first_tile)));
    LAUNCH((DequantizeTilesKernel<T>), grid, dim3(32 * kWarps), kShared, stream, args);
  }
}

template <typename T, int kBits>
void LaunchRows(DequantizeArgs args, Stream stream) {
  const Matrix all = args.out;
  const int first_row = args.first_row;
  for (int first = 0; first < all.rows; first += kMaxGridY) {
    args.first_row = first_row + first;
    args.out.rows = std::min(kMaxGridY, all.rows - first);
    args.out.data = static_cast<T*>(all.data) + first * all.stride;
    const dim3 grid(static_cast<unsigned>(CeilDiv(args.w.k, kGroup * 32 * kWarps)),
                    static_cast<unsigned>(args.out.rows));
    LAUNCH((DequantizeRowsKernel<T, kBits>), grid, dim3(32 * kWarps), 0, stream, args);
  }
}

}  // namespace

void Dequantize(const WeightView& w, int32_t first_row, Matrix out, Stream stream) {
  if (out.rows == 0) return;
  DequantizeArgs args{w, out, first_row};
  args.wide = IsAligned16(out.data) && out.stride * BytesOf(out.type) % 16 == 0;
  args.wide_codes = true;
  for (int i = 0; i < w.num_segments; ++i) {
    args.wide_codes =
        args.wide_codes && reinterpret_cast<uintptr_t>(w.segments[i].codes) % kGroup == 0;
  }
  const int bits = BitsOf(w.codec);
  if (bits == 4) std::copy_n(TableOf(w.codec), 16, args.values);
  WithType(out.type, [&](auto tag) {
    using T = typename decltype(tag)::Type;
    if (bits == 8) return LaunchRows<T, 8>(args, stream);
    if (bits == 2) return LaunchRows<T, 2>(args, stream);
    LaunchTiles<T>(args, stream);
  });
}

}  // namespace quantd::QUANTD_CUDA_NS
