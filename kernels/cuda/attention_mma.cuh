// The kernel of paged causal attention on tensor cores, and the choice of its instantiation. Idea,
// mapping, bytes and bound: attention_block.cuh.
#pragma once

#include <cstdint>
#include <type_traits>

#include "kernels/cuda/attention.cuh"
#include "kernels/cuda/attention_block.cuh"
#include "kernels/cuda/attention_split.cuh"
#include "kernels/cuda/attention_tiles.cuh"
#include "kernels/cuda/target.h"

namespace quantd::QUANTD_CUDA_NS {

template <typename T, typename C, int kDim, int kParts, int kTiles>
__global__ void __launch_bounds__(AttentionConfig<C, kDim, kParts, kTiles>::kThreads,
                                  AttentionConfig<C, kDim, kParts, kTiles>::kBlocks)
    AttentionMma(const AttentionArgs a) {
  using Config = AttentionConfig<C, kDim, kParts, kTiles>;
  DYN_SMEM(unsigned char, shared);
  const int block_tokens = a.tile_tokens * kTiles;
  // The last rows have the longest contexts: they begin first.
  const int index = static_cast<int>(kTiles > 1 ? gridDim.x - 1 - blockIdx.x : blockIdx.x);
  int first_row = index * block_tokens, end_row = min(first_row + block_tokens, a.rows);
  int chunks = 0, skipped = 0;  // of the tile, and those of them that no row sees
  if constexpr (kTiles == 1) {
    if (a.by_sequence) {
      first_row = SingleRowOf<Config::kThreads>(a, index);
      if (first_row < 0) return;
      end_row = first_row + 1;
    }
    if (a.split) {
      const int row = min(first_row + static_cast<int>(threadIdx.x) % 32, end_row - 1);
      chunks = __reduce_max_sync(~0u, a.positions[row]) / kChunkKeys + 1;
      skipped = FirstKey(a, __reduce_min_sync(~0u, a.positions[row])) / kChunkKeys;
      if (static_cast<int>(blockIdx.z) >= chunks || static_cast<int>(blockIdx.z) < skipped) return;
    }
  }
  const bool to_workspace = chunks - skipped > 1;

  AttentionBlock<T, C, kDim, kParts, kTiles> block(a, shared, first_row, end_row);
  for (int start = first_row, end; start < end_row; start = end) {
    end = RunEnd(a.seq_of_row, start, end_row);
    const int seq = a.seq_of_row[start];
    if (a.skip_single && end == start + 1 && (start == 0 || a.seq_of_row[start - 1] != seq) &&
        (end == a.rows || a.seq_of_row[end] != seq)) {
      continue;
    }
    int first_chunk = FirstKey(a, a.positions[start]) / kChunkKeys;
    int end_chunk = a.positions[end - 1] / kChunkKeys + 1;
    if (to_workspace) {
      if (static_cast<int>(blockIdx.z) < first_chunk) continue;
      first_chunk = static_cast<int>(blockIdx.z);
      if (first_chunk >= end_chunk) continue;
      end_chunk = first_chunk + 1;
    }
    block.Run(start, end, first_chunk, end_chunk);
    if (to_workspace) {
      block.StorePartials(start, end, index * a.tile_tokens, first_chunk);
    } else {
      block.StoreRows(start, end);
    }
  }
  if constexpr (kTiles == 1) {
    if (to_workspace &&
        ArriveLast(a.counters + static_cast<int64_t>(index) * gridDim.y + blockIdx.y,
                   chunks - skipped)) {
      MergePartials<T, kDim, Config::kThreads>(a, first_row, end_row, index * a.tile_tokens);
    }
  }
}

template <typename T, typename C, int kDim, int kParts, int kTiles>
void LaunchAttentionMma(const AttentionArgs& a, int grid_x, Stream stream) {
  using Config = AttentionConfig<C, kDim, kParts, kTiles>;
  const dim3 grid(static_cast<unsigned>(grid_x),
                  static_cast<unsigned>(a.num_kv_heads * a.head_tiles),
                  static_cast<unsigned>(a.split ? a.max_chunks : 1));
  LAUNCH((AttentionMma<T, C, kDim, kParts, kTiles>), grid, dim3(Config::kThreads), Config::kShared,
         stream, a);
}

/// The instantiation for head_dim and layout.
template <typename T, typename C>
void DispatchAttentionMma(const AttentionArgs& a, int head_dim, AttentionLayout layout, int grid_x,
                          Stream stream) {
  WithAttentionParts<C>(head_dim, layout, [&](auto dim, auto parts, auto tiles) {
    LaunchAttentionMma<T, C, decltype(dim)::value, decltype(parts)::value, decltype(tiles)::value>(
        a, grid_x, stream);
  });
}

}  // namespace quantd::QUANTD_CUDA_NS
