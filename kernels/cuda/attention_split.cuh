// What surrounds the tiles of attention_block.cuh: which rows belong together, and the merge of
// chunks that different blocks have folded.
#pragma once

#include <climits>
#include <cmath>
#include <cstdint>

#include "kernels/cuda/attention.cuh"
#include "kernels/cuda/numeric.cuh"
#include "kernels/cuda/target.h"

namespace quantd::QUANTD_CUDA_NS {

/// The row after the last of the run that `first` begins: rows of one sequence. All lanes the same.
__device__ __forceinline__ int RunEnd(const int32_t* seq_of_row, int first, int end) {
  const int seq = seq_of_row[first];
  for (int base = first; base < end; base += 32) {
    const int row = base + static_cast<int>(threadIdx.x) % 32;
    const unsigned others = __ballot_sync(~0u, row >= end || seq_of_row[row] != seq);
    if (others != 0) return base + __ffs(static_cast<int>(others)) - 1;
  }
  return end;
}

/// The only row of sequence `seq`, or -1 when it has none or several. All threads the same.
template <int kThreads>
__device__ __forceinline__ int SingleRowOf(const AttentionArgs& a, int seq) {
  __shared__ int first, count;
  if (threadIdx.x == 0) {
    first = INT_MAX;
    count = 0;
  }
  __syncthreads();
  for (int row = static_cast<int>(threadIdx.x); row < a.rows; row += kThreads) {
    if (a.seq_of_row[row] == seq) {
      atomicMin(&first, row);
      atomicAdd(&count, 1);
    }
  }
  __syncthreads();
  return count == 1 ? first : -1;
}

/// True for the last of `expected` blocks to come here with this counter; the others' writes to
/// global memory are then visible, and the counter is zero again.
__device__ __forceinline__ bool ArriveLast(int32_t* counter, int expected) {
  __shared__ bool last;
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) {
    last = atomicAdd(counter, 1) == expected - 1;
    if (last) *counter = 0;
  }
  __syncthreads();
  if (last) __threadfence();
  return last;
}

/// The last block of a tile merges the chunks of its rows: a thread takes four columns of a row.
template <typename T, int kDim, int kThreads>
__device__ __forceinline__ void MergePartials(const AttentionArgs& a, int first_row, int end_row,
                                              int first_token) {
  constexpr int kQuads = kDim / 4;
  const int kv_head = static_cast<int>(blockIdx.y) / a.head_tiles;
  const int first_head = static_cast<int>(blockIdx.y) % a.head_tiles * a.tile_heads;
  for (int i = static_cast<int>(threadIdx.x); i < a.tile_tokens * a.tile_heads * kQuads;
       i += kThreads) {
    const int slot = i / kQuads, column = i % kQuads * 4;
    const int token = slot / a.tile_heads, head = first_head + slot % a.tile_heads;
    if (first_row + token >= end_row || head >= a.group) continue;
    const int global_head = kv_head * a.group + head;
    const int64_t at = PartialIndex(a, first_token + token, global_head, 0);
    const float2* const ml = a.partial_ml + at;
    const float* const o = a.partial_o + at * kDim + column;
    const int position = a.positions[first_row + token];
    const int chunks = position / kChunkKeys + 1;
    float m = -INFINITY, l = 0.0f, sum[4] = {};
#pragma unroll 4
    for (int chunk = FirstKey(a, position) / kChunkKeys; chunk < chunks; ++chunk) {
      const float2 part = ml[chunk];
      const float4 values =
          *reinterpret_cast<const float4*>(o + static_cast<int64_t>(chunk) * kDim);
      const MergeFactors f = MergeOf(m, part.x);
      m = f.m;
      l = fmaf(part.y, f.add, l * f.keep);
      sum[0] = fmaf(values.x, f.add, sum[0] * f.keep);
      sum[1] = fmaf(values.y, f.add, sum[1] * f.keep);
      sum[2] = fmaf(values.z, f.add, sum[2] * f.keep);
      sum[3] = fmaf(values.w, f.add, sum[3] * f.keep);
    }
    const float scale = 1.0f / l;
    T* const out = static_cast<T*>(a.out) + (first_row + token) * a.out_stride +
                   static_cast<int64_t>(global_head) * kDim + column;
    for (int c = 0; c < 4; ++c) out[c] = FromFloat<T>(sum[c] * scale);
  }
}

}  // namespace quantd::QUANTD_CUDA_NS
