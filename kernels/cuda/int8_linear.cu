// LLM.int8's Linear for few rows of x (decode): the weight streams through once, int8 mma.
//
// Idea: the weight is the A operand of mma.m16n8k32, x the B operand, eight rows of x at the price
// of one. Both lie as they are: lane 4g + t loads bytes 16t .. 16t + 15 of every 64 columns of
// weight rows g and g + 8 and of x row g, which permutes k alike in both, and the order of an
// integer sum's terms is free. The outliers' products come from the same rows of the weight: a few
// bytes of each, asked for after the first loads of the stream are on their way, so that waiting
// overlaps, and found in L2 when the stream gets there. Mapping: a block 16 * kRowTiles rows of the
// weight, its eight warps take turns along k and add their sums in shared memory (integers: in any
// order). Where that leaves too few blocks for the device, k is also split over blocks, whose sums
// go to workspace and are finished by int8_rescale.cu. x is read straight from L2: in a block every
// byte of it is used once. Bytes: 1 a weight, plus 8 / (16 * kRowTiles) of x's codes a weight from
// L2. Bound: DRAM bandwidth; 32 bytes a lane and tile in flight.
//
// More than kStreamRows rows of x: the sums come from int8_tiles.cu, a chunk of rows at a time.
#include <algorithm>
#include <cstdint>

#include "kernels/cuda/int8.cuh"
#include "kernels/cuda/ops.h"
#include "kernels/cuda/ptx.cuh"

namespace quantd::QUANTD_CUDA_NS {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
constexpr int kStreamRows = 16;  // rows of x at most in the streaming kernel
constexpr int kChunkRows = 512;  // rows of x at most in one launch of the tiles

/// Part `part` of the outliers of row `token` (int8.cuh says which those are) times a weight row.
__device__ __forceinline__ float OutlierPart(int part, const Matrix& x, int token,
                                             const Int8Activations& a, int count,
                                             const Int8Row& weight) {
  const float step = __fmul_rn(weight.scale, kWeightStep);
  const int64_t x_row = token * x.stride;
  float sum = 0.0f;
  if (count <= Int8Activations::kMaxOutliers) {
    const int32_t* columns = a.columns + int64_t{token} * Int8Activations::kMaxOutliers;
    for (int i = part; i < count; i += kOutlierParts) {
      const int c = columns[i];
      sum = AddOutlier(sum, LoadFloat(x.type, x.data, x_row + c), weight.codes[c], step);
    }
    return sum;
  }
  const int words = a.padded_k / 32;
  const uint32_t* mask = a.masks + int64_t{token} * words;
  for (int i = part; i < words; i += kOutlierParts) {
    for (uint32_t bits = mask[i]; bits != 0; bits &= bits - 1) {
      const int c = i * 32 + __ffs(static_cast<int>(bits)) - 1;
      sum = AddOutlier(sum, LoadFloat(x.type, x.data, x_row + c), weight.codes[c], step);
    }
  }
  return sum;
}

/// outliers[token * kStride + row] of the block's rows; eight lanes an element. Zeros are written
/// where a row of x has none.
template <int kRows, int kStride>
__device__ __forceinline__ void SumOutliers(const WeightView& w, const Matrix& x,
                                            const Int8Activations& a, int first_row,
                                            float* outliers) {
  const int part = threadIdx.x % kOutlierParts;
  for (int i = static_cast<int>(threadIdx.x) / kOutlierParts; i < x.rows * kRows;
       i += kThreads / kOutlierParts) {  // the same count for all lanes of a warp: kRows % 4 == 0
    const int token = i / kRows, row = i % kRows;
    const int count = a.counts[token];
    float sum = 0.0f;
    if (count > 0 && first_row + row < w.n) {
      sum = OutlierPart(part, x, token, a, count, Int8RowOf(w, first_row + row));
    }
    sum = __fadd_rn(sum, __shfl_xor_sync(~0u, sum, 4));
    sum = __fadd_rn(sum, __shfl_xor_sync(~0u, sum, 2));
    sum = __fadd_rn(sum, __shfl_xor_sync(~0u, sum, 1));
    if (part == 0) outliers[token * kStride + row] = sum;
  }
}

/// Pieces of 64 columns that a warp has in flight.
constexpr int UnrollOf(int row_tiles, bool aligned) { return aligned ? 4 / row_tiles : 1; }

/// `sums.data` null: finishes y. Else writes part blockIdx.y of the sums.
template <int kRowTiles, int kTokenTiles, bool kAligned>
__global__ __launch_bounds__(kThreads) void Int8StreamKernel(WeightView w, Matrix x,
                                                             Int8Activations a, const float* bias,
                                                             Matrix y, Int8Sums sums,
                                                             int chunks_per_split) {
  constexpr int kRows = 16 * kRowTiles, kTokens = 8 * kTokenTiles;
  constexpr int kUnroll = UnrollOf(kRowTiles, kAligned);
  constexpr int kChunk = 64 * kUnroll;
  constexpr int kStride = kRows + 4;  // 4 past a multiple of 16: a warp's sums hit 32 banks
  __shared__ int32_t block_sums[kTokens * kStride];
  __shared__ float outliers[kTokens * kStride];

  const int tid = static_cast<int>(threadIdx.x), lane = tid % 32, warp = tid / 32;
  const int g = lane / 4, t = lane % 4;
  const int first_row = static_cast<int>(blockIdx.x) * kRows;
  const int chunks = (a.padded_k + kChunk - 1) / kChunk;
  const int first_chunk = static_cast<int>(blockIdx.y) * chunks_per_split;
  const int end_chunk = min(first_chunk + chunks_per_split, chunks);

  // Rows past the last are read as the last; their sums are dropped.
  const int8_t* rows[2 * kRowTiles];
#pragma unroll
  for (int r = 0; r < 2 * kRowTiles; ++r) {
    rows[r] = Int8RowOf(w, min(first_row + 8 * r + g, w.n - 1)).codes;
  }
  uint4 wq[kUnroll][2 * kRowTiles], xq[kUnroll][kTokenTiles];
  const auto load = [&](int chunk) {
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      const int offset = chunk * kChunk + u * 64 + t * 16;
#pragma unroll
      for (int r = 0; r < 2 * kRowTiles; ++r) {
        wq[u][r] = Load16Codes<kAligned>(rows[r], offset, w.k);
      }
#pragma unroll
      for (int i = 0; i < kTokenTiles; ++i) {
        const int token = 8 * i + g;
        xq[u][i] = token < x.rows && offset < a.padded_k
                       ? __ldg(reinterpret_cast<const uint4*>(a.codes +
                                                              int64_t{token} * a.padded_k + offset))
                       : make_uint4(0, 0, 0, 0);
      }
    }
  };

  int chunk = first_chunk + warp;
  if (chunk < end_chunk) load(chunk);
  for (int i = tid; i < kTokens * kStride; i += kThreads) block_sums[i] = 0;
  if (sums.data == nullptr) SumOutliers<kRows, kStride>(w, x, a, first_row, outliers);
  __syncthreads();

  int32_t acc[kRowTiles][kTokenTiles][4] = {};
  for (; chunk < end_chunk; chunk += kWarps) {
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
#pragma unroll
      for (int i = 0; i < kTokenTiles; ++i) {
        const uint32_t low[2] = {xq[u][i].x, xq[u][i].y}, high[2] = {xq[u][i].z, xq[u][i].w};
#pragma unroll
        for (int r = 0; r < kRowTiles; ++r) {
          const uint4 top = wq[u][2 * r], bottom = wq[u][2 * r + 1];
          MmaInt8(acc[r][i], {top.x, bottom.x, top.y, bottom.y}, low);
          MmaInt8(acc[r][i], {top.z, bottom.z, top.w, bottom.w}, high);
        }
      }
    }
    if (chunk + kWarps < end_chunk) load(chunk + kWarps);
  }
#pragma unroll
  for (int r = 0; r < kRowTiles; ++r) {
#pragma unroll
    for (int i = 0; i < kTokenTiles; ++i) {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        atomicAdd(&block_sums[(8 * i + 2 * t + j % 2) * kStride + 16 * r + g + j / 2 * 8],
                  acc[r][i][j]);
      }
    }
  }
  __syncthreads();

  for (int i = tid; i < x.rows * kRows; i += kThreads) {
    const int token = i / kRows, row = first_row + i % kRows;
    if (row >= w.n) continue;
    const int at = token * kStride + i % kRows;
    if (sums.data != nullptr) {
      const_cast<int32_t*>(sums.data)[blockIdx.y * sums.split_stride + token * sums.stride + row] =
          block_sums[at];
    } else {
      StoreFloat(y.type, y.data, token * y.stride + row,
                 FinishInt8(block_sums[at], a.scales[token], Int8RowOf(w, row).scale, a.divisor,
                            outliers[at], bias, row));
    }
  }
}

/// How a Linear of m rows (at most kChunkRows) is divided.
struct Plan {
  bool streams = false;
  int row_tiles = 1;  // of the streaming kernel
  int units = 1;      // pieces along k that a split may have
  int splits = 1;
};

int Ceil(int64_t a, int64_t b) { return static_cast<int>((a + b - 1) / b); }

Plan PlanFor(const WeightView& w, int32_t m, const DeviceLimits& device) {
  const int wanted = 2 * std::max(device.multiprocessors, 1);  // blocks that fill the device
  Plan p;
  p.streams = m <= kStreamRows;
  if (p.streams) {
    const bool aligned = HasAlignedRows(w);
    p.row_tiles = aligned && Ceil(w.n, 32) >= wanted ? 2 : 1;
    p.units = Ceil(w.k, 64 * UnrollOf(p.row_tiles, aligned));
    // Every warp of a block keeps at least one piece.
    p.splits = std::min(wanted / Ceil(w.n, 16 * p.row_tiles), p.units / kWarps);
  } else {
    p.units = Ceil(w.k, 64);
    const int tokens = m <= 32 ? 32 : m <= 64 ? 64 : 128;
    p.splits = std::min({wanted / (Ceil(w.n, 128) * Ceil(m, tokens)), p.units / 4, 8});
  }
  p.splits = std::max(p.splits, 1);
  return p;
}

/// Row stride of the sums: a multiple of 4, for 128-bit loads.
int64_t SumsStride(const WeightView& w) { return (int64_t{w.n} + 3) / 4 * 4; }

template <int kRowTiles, int kTokenTiles, bool kAligned>
void LaunchStream(const WeightView& w, Matrix x, const Int8Activations& a, const float* bias,
                  Matrix y, const Int8Sums& sums, const Plan& p, Stream stream) {
  const dim3 grid(static_cast<unsigned>(Ceil(w.n, 16 * kRowTiles)),
                  static_cast<unsigned>(sums.splits));
  LAUNCH((Int8StreamKernel<kRowTiles, kTokenTiles, kAligned>), grid, kThreads, 0, stream, w, x, a,
         bias, y, sums, Ceil(p.units, sums.splits));
}

template <int kTokenTiles>
void LaunchStream(const WeightView& w, Matrix x, const Int8Activations& a, const float* bias,
                  Matrix y, const Int8Sums& sums, const Plan& p, Stream stream) {
  if (!HasAlignedRows(w)) {
    LaunchStream<1, kTokenTiles, false>(w, x, a, bias, y, sums, p, stream);
  } else if (p.row_tiles == 1) {
    LaunchStream<1, kTokenTiles, true>(w, x, a, bias, y, sums, p, stream);
  } else {
    LaunchStream<2, kTokenTiles, true>(w, x, a, bias, y, sums, p, stream);
  }
}

Matrix Rows(Matrix v, int32_t first, int32_t count) {
  const int64_t bytes = v.type == FloatType::kF32 ? 4 : 2;
  v.data = static_cast<unsigned char*>(v.data) + first * v.stride * bytes;
  v.rows = count;
  return v;
}

}  // namespace

size_t LinearInt8WorkspaceBytes(const WeightView& w, int32_t m, const DeviceLimits& device) {
  const int32_t rows = std::min(m, kChunkRows);
  const Plan p = PlanFor(w, rows, device);
  if (p.streams && p.splits == 1) return 0;
  return sizeof(int32_t) * static_cast<size_t>(SumsStride(w) * rows * p.splits);
}

int32_t LinearInt8Counters(const WeightView&, int32_t, const DeviceLimits&) { return 0; }

void LinearInt8Mma(const WeightView& w, Matrix x, const Int8Activations& a, const float* bias,
                   Matrix y, const Workspace& workspace, const DeviceLimits& device,
                   Stream stream) {
  // Neither the number of splits nor of rows in a chunk changes a result: as much as has room.
  const int64_t stride = SumsStride(w);
  const auto room = static_cast<int64_t>(
      std::min<size_t>(workspace.bytes / (sizeof(int32_t) * static_cast<size_t>(stride)), 1 << 20));
  const int32_t chunk_rows =
      x.rows <= kStreamRows
          ? kStreamRows
          : std::max(std::min(kChunkRows, static_cast<int32_t>(room)), kStreamRows);
  for (int32_t first = 0; first < x.rows; first += chunk_rows) {
    const int32_t m = std::min(chunk_rows, x.rows - first);
    const Matrix xs = Rows(x, first, m), ys = Rows(y, first, m);
    const Int8Activations as = RowsFrom(a, first);
    Plan p = PlanFor(w, m, device);
    p.splits = std::min(p.splits, std::max(static_cast<int>(room / m), 1));
    // No split may be left without work: its blocks would write no sums.
    p.splits = Ceil(p.units, Ceil(p.units, p.splits));
    Int8Sums sums;
    sums.data = static_cast<const int32_t*>(workspace.data);
    sums.stride = stride;
    sums.split_stride = stride * m;
    sums.splits = p.splits;
    if (p.streams) {
      if (p.splits == 1) sums.data = nullptr;
      (m <= 8 ? LaunchStream<1> : LaunchStream<2>)(w, xs, as, bias, ys, sums, p, stream);
    } else {
      LaunchInt8Tiles(w, as, m, sums, stream);
    }
    if (sums.data != nullptr) LaunchInt8Rescale(w, xs, as, sums, bias, ys, stream);
  }
}

void RescaleInt8(const WeightView& w, Matrix x, const Int8Activations& a, const int32_t* sums,
                 int64_t sums_stride, const float* bias, Matrix y, Stream stream) {
  LaunchInt8Rescale(w, x, a, {sums, sums_stride, 0, 1}, bias, y, stream);
}

}  // namespace quantd::QUANTD_CUDA_NS
