// Dequantize: 4-bit and int8 weights -> row-major bf16, f16 or f32, for cuBLASLt.
//
// Block4. Idea: a tile is read in fragment order (512 bytes, 16 a lane), expanded to pairs, and
// turned to rows through shared memory, so that both sides move 16 bytes a lane. Mapping: a warp
// owns one tile of 16 rows x 64 columns, a block four tiles in a row; grid x k tiles, y row tiles.
// The table is read from shared memory 16-fold: lanes meet in banks, but two loads of a pair hide
// behind 4.6 bytes of DRAM. Int8. A thread owns eight columns of a row: 8 bytes in, 16 or 32 out.
//
// Bytes moved per weight: 0.5 + scale + 2 (bf16), or 1 + 2. Expected bound: DRAM.
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
  int32_t first_row = 0;   // of the weight: row 0 of out
  int32_t first_tile = 0;  // row tile of blockIdx.y 0
  bool wide = false;       // groups of eight outputs may be stored by 16 bytes
  float values[16] = {};   // of the 4-bit codes
};

template <typename T>
struct Pair {
  T low, high;
};

/// One tile a warp.
template <typename T>
__global__ void __launch_bounds__(32 * kWarps) DequantizeBlock4Kernel(DequantizeArgs args) {
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
  float scales[2] = {};
  if (w.tiled_scales) {
    for (int r = 0; r < 2; ++r) scales[r] = BlockScale(w, segment, rows[r], first_col);
  }
#pragma unroll
  for (int s = 0; s < 4; ++s) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const uint32_t pair = words[s] >> (8 * i) & 0xffu;
      const int col = 16 * s + 8 * (i / 2) + 2 * (lane % 4);
      float low_scale = scales[i % 2], high_scale = low_scale;
      if (!w.tiled_scales) {  // columns of padding take the last column's scale
        const int c = first_col + col;
        low_scale = BlockScale(w, segment, rows[i % 2], c < w.k ? c : w.k - 1);
        high_scale = BlockScale(w, segment, rows[i % 2], c + 1 < w.k ? c + 1 : w.k - 1);
      }
      T* const to = tile + (lane / 4 + 8 * (i % 2)) * kStride + col;
      *reinterpret_cast<Pair<T>*>(to) = {FromFloat<T>(values[pair >> 4] * low_scale),
                                         FromFloat<T>(values[pair & 15] * high_scale)};
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
template <typename T>
__global__ void __launch_bounds__(32 * kWarps) DequantizeInt8Kernel(DequantizeArgs args) {
  const WeightView& w = args.w;
  const int col =
      (static_cast<int>(blockIdx.x) * 32 * kWarps + static_cast<int>(threadIdx.x)) * kGroup;
  if (col >= w.k) return;
  const int out_row = static_cast<int>(blockIdx.y);
  const WeightSegment segment = SegmentOfRow(w, args.first_row + out_row);
  const int row = args.first_row + out_row - segment.first_row;
  constexpr float kStep = 1.0f / 127.0f;  // kInt8Step of format.h
  const float step = segment.scales[row] * kStep;
  const uint8_t* const from = segment.codes + static_cast<int64_t>(row) * w.k + col;
  T* const to = static_cast<T*>(args.out.data) + out_row * args.out.stride + col;
  if (args.wide && col + kGroup <= w.k && w.k % kGroup == 0) {
    const uint2 codes = *reinterpret_cast<const uint2*>(from);
    float v[kGroup];
#pragma unroll
    for (int i = 0; i < kGroup; ++i) {
      const uint32_t word = i < 4 ? codes.x : codes.y;
      v[i] = Int8Codec::Decode(static_cast<uint8_t>(word >> (8 * (i % 4)))) * step;
    }
    Store<kGroup>(to, v);
    return;
  }
  for (int c = 0; c < kGroup && col + c < w.k; ++c) {
    to[c] = FromFloat<T>(Int8Codec::Decode(from[c]) * step);
  }
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
void LaunchBlock4(DequantizeArgs args, Stream stream) {
  constexpr int kStride = kTileCols + 16 / static_cast<int>(sizeof(T));
  constexpr size_t kShared = 64 + kWarps * kTileRows * kStride * sizeof(T);
  const int end_tile = TileOfRow(args.w, args.first_row + args.out.rows - 1) + 1;
  for (args.first_tile = TileOfRow(args.w, args.first_row); args.first_tile < end_tile;
       args.first_tile += kMaxGridY) {
    const dim3 grid(static_cast<unsigned>(CeilDiv(args.w.k, kTileCols * kWarps)),
                    static_cast<unsigned>(std::min(kMaxGridY, end_tile - args.first_tile)));
    LAUNCH((DequantizeBlock4Kernel<T>), grid, dim3(32 * kWarps), kShared, stream, args);
  }
}

template <typename T>
void LaunchInt8(DequantizeArgs args, Stream stream) {
  const Matrix all = args.out;
  const int first_row = args.first_row;
  for (int first = 0; first < all.rows; first += kMaxGridY) {
    args.first_row = first_row + first;
    args.out.rows = std::min(kMaxGridY, all.rows - first);
    args.out.data = static_cast<T*>(all.data) + first * all.stride;
    const dim3 grid(static_cast<unsigned>(CeilDiv(args.w.k, kGroup * 32 * kWarps)),
                    static_cast<unsigned>(args.out.rows));
    LAUNCH((DequantizeInt8Kernel<T>), grid, dim3(32 * kWarps), 0, stream, args);
  }
}

}  // namespace

void Dequantize(const WeightView& w, int32_t first_row, Matrix out, Stream stream) {
  if (out.rows == 0) return;
  DequantizeArgs args{w, out, first_row};
  args.wide = IsAligned16(out.data) && out.stride * BytesOf(out.type) % 16 == 0;
  if (w.codec != Codec::kInt8) {
    std::copy_n(w.codec == Codec::kNf4 ? kNf4Table : kFp4Table, 16, args.values);
  }
  WithType(out.type, [&](auto tag) {
    using T = typename decltype(tag)::Type;
    if (w.codec == Codec::kInt8) return LaunchInt8<T>(args, stream);
    LaunchBlock4<T>(args, stream);
  });
}

}  // namespace quantd::QUANTD_CUDA_NS
