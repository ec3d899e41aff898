// int32 sums of LLM.int8 for many rows of x: int8 mma over tiles staged in shared memory.
//
// Idea: the usual tiled product, four stages of cp.async ahead of the mma. A tile's rows are 64
// codes and lie one behind the other: lane 4g + t takes bytes 16t .. 16t + 15 of row g of both
// operands (k permuted alike, see int8_linear.cu), and the eight lanes of a 128-bit phase then read
// 128 bytes in a row, so nothing is swizzled or padded.
// Mapping: a block 128 rows of the weight x 32, 64 or 128 rows of x, a warp 16 * kRowTiles x 32 of
// it; blockIdx = (weight tile, x tile, part of k).
// Bytes: per 64 columns of k 8 KiB of weight and 2 .. 8 KiB of x a block; 4 written an element.
// Bound: DRAM bandwidth up to some 64 rows of x, then the int8 tensor cores as mma.sync reaches
// them. Where there is cuBLASLt it makes the same sums faster.
#include <cstdint>

#include "kernels/cuda/int8.cuh"
#include "kernels/cuda/ptx.cuh"

namespace quantd::QUANTD_CUDA_NS {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
constexpr int kRows = 128;
constexpr int kStages = 4;
constexpr int kStep = 64;       // columns of k a stage
constexpr int kTokenTiles = 4;  // of 8 rows of x, a warp

template <int kRowTiles, bool kAligned>
__global__ __launch_bounds__(kThreads) void Int8TilesKernel(WeightView w, const int8_t* codes,
                                                            int m, int padded_k, Int8Sums sums,
                                                            int steps_per_split) {
  constexpr int kRowWarps = kRows / (16 * kRowTiles);
  constexpr int kTokens = kWarps / kRowWarps * 8 * kTokenTiles;
  constexpr int kStageBytes = (kRows + kTokens) * kStep;
  DYN_SMEM(unsigned char, stages);

  const int tid = static_cast<int>(threadIdx.x), lane = tid % 32, warp = tid / 32;
  const int g = lane / 4, t = lane % 4;
  const int first_row = static_cast<int>(blockIdx.x) * kRows;
  const int first_token = static_cast<int>(blockIdx.y) * kTokens;
  const int first_step = static_cast<int>(blockIdx.z) * steps_per_split;
  const int end_step = min(first_step + steps_per_split, padded_k / kStep);

  // What this thread copies: 16 bytes of two rows of the weight and of up to two rows of x.
  const int piece = tid % 4 * 16;
  const int8_t* const rows[2] = {Int8RowOf(w, min(first_row + tid / 4, w.n - 1)).codes,
                                 Int8RowOf(w, min(first_row + tid / 4 + 64, w.n - 1)).codes};
  const auto load = [&](int step) {
    unsigned char* const stage = stages + step % kStages * kStageBytes;
    const int offset = step * kStep + piece;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      unsigned char* const to = stage + (tid / 4 + 64 * i) * kStep + piece;
      if constexpr (kAligned) {
        CpAsync16(to, rows[i] + (offset < w.k ? offset : 0), offset < w.k ? 16 : 0);
      } else {
        *reinterpret_cast<uint4*>(to) = Load16Codes<false>(rows[i], offset, w.k);
      }
    }
#pragma unroll
    for (int i = 0; i < (kTokens + 63) / 64; ++i) {
      const int token = tid / 4 + 64 * i;
      if (kTokens % 64 != 0 && token >= kTokens) break;
      const bool valid = first_token + token < m;
      const int64_t row = valid ? first_token + token : 0;
      CpAsync16(stage + (kRows + token) * kStep + piece, codes + row * padded_k + offset,
                valid ? 16 : 0);
    }
  };

  const int warp_row = warp % kRowWarps * 16 * kRowTiles;
  const int warp_token = warp / kRowWarps * 8 * kTokenTiles;
  int32_t acc[kRowTiles][kTokenTiles][4] = {};
#pragma unroll
  for (int i = 0; i < kStages - 1; ++i) {
    if (first_step + i < end_step) load(first_step + i);
    CpAsyncCommit();
  }
  for (int step = first_step; step < end_step; ++step) {
    CpAsyncWait<kStages - 2>();
    __syncthreads();  // the step is here for all, and all have left the stage that is filled now
    if (step + kStages - 1 < end_step) load(step + kStages - 1);
    CpAsyncCommit();
    const unsigned char* const stage = stages + step % kStages * kStageBytes + t * 16;
    uint4 xq[kTokenTiles];
#pragma unroll
    for (int i = 0; i < kTokenTiles; ++i) {
      xq[i] = *reinterpret_cast<const uint4*>(stage + (kRows + warp_token + 8 * i + g) * kStep);
    }
#pragma unroll
    for (int r = 0; r < kRowTiles; ++r) {
      const unsigned char* const at = stage + (warp_row + 16 * r + g) * kStep;
      const uint4 top = *reinterpret_cast<const uint4*>(at);
      const uint4 bottom = *reinterpret_cast<const uint4*>(at + 8 * kStep);
#pragma unroll
      for (int i = 0; i < kTokenTiles; ++i) {
        MmaInt8(acc[r][i], {top.x, bottom.x, top.y, bottom.y}, {xq[i].x, xq[i].y});
        MmaInt8(acc[r][i], {top.z, bottom.z, top.w, bottom.w}, {xq[i].z, xq[i].w});
      }
    }
  }

  int32_t* const out = const_cast<int32_t*>(sums.data) + blockIdx.z * sums.split_stride;
#pragma unroll
  for (int r = 0; r < kRowTiles; ++r) {
#pragma unroll
    for (int i = 0; i < kTokenTiles; ++i) {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const int token = first_token + warp_token + 8 * i + 2 * t + j % 2;
        const int row = first_row + warp_row + 16 * r + g + j / 2 * 8;
        if (token < m && row < w.n) out[token * sums.stride + row] = acc[r][i][j];
      }
    }
  }
}

template <int kRowTiles, bool kAligned>
void Launch(const WeightView& w, const Int8Activations& a, int32_t m, const Int8Sums& sums,
            Stream stream) {
  constexpr int kTokens = kWarps / (kRows / (16 * kRowTiles)) * 8 * kTokenTiles;
  constexpr size_t kSharedBytes = size_t{kStages} * (kRows + kTokens) * kStep;
  const int steps = a.padded_k / kStep;
  const dim3 grid(static_cast<unsigned>((w.n + kRows - 1) / kRows),
                  static_cast<unsigned>((m + kTokens - 1) / kTokens),
                  static_cast<unsigned>(sums.splits));
  LAUNCH((Int8TilesKernel<kRowTiles, kAligned>), grid, kThreads, kSharedBytes, stream, w, a.codes,
         m, a.padded_k, sums, (steps + sums.splits - 1) / sums.splits);
}

template <bool kAligned>
void Launch(const WeightView& w, const Int8Activations& a, int32_t m, const Int8Sums& sums,
            Stream stream) {
  if (m <= 32) return Launch<1, kAligned>(w, a, m, sums, stream);
  if (m <= 64) return Launch<2, kAligned>(w, a, m, sums, stream);
  Launch<4, kAligned>(w, a, m, sums, stream);
}

}  // namespace

void LaunchInt8Tiles(const WeightView& w, const Int8Activations& a, int32_t m, const Int8Sums& sums,
                     Stream stream) {
  if (HasAlignedRows(w)) {
    Launch<true>(w, a, m, sums, stream);
  } else {
    Launch<false>(w, a, m, sums, stream);
  }
}

}  // namespace quantd::QUANTD_CUDA_NS
