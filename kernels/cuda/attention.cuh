// What the attention kernels share: their arguments, and the arithmetic that makes a row's bits
// depend on nothing but its own position, K, V and block table.
//
// Scores are in units of log2: s = scale * log2(e) * q.k, so that exp is 2^x. Keys are folded in
// tiles of 64 from position 0 by online softmax; 4 tiles are a chunk, which starts afresh; chunks
// are merged in ascending order by MergeFactors. A tile or chunk of which a row sees no key leaves
// the row's state as it is, to the bit, so those before all windows of a block are passed over.
// Which block or warp folds which chunk is then free: one block for all of them (prompts), or one
// each, merged by the last to arrive (few rows with long contexts). Every product that is added is
// an explicit fmaf, so that no two instantiations contract differently.
#pragma once

#include <climits>
#include <cmath>
#include <cstddef>
#include <cstdint>

#include "kernels/cuda/ops.h"
#include "kernels/cuda/ptx.cuh"
#include "kernels/cuda/target.h"

namespace quantd::QUANTD_CUDA_NS {

inline constexpr int kTileKeys = 64;
inline constexpr int kChunkTiles = 4;
inline constexpr int kChunkKeys = kTileKeys * kChunkTiles;
/// Rows of one mma tile: (tokens x query heads of one kv head).
inline constexpr int kQueryRows = 16;

struct AttentionArgs {
  const void* q = nullptr;  // [rows, num_heads * head_dim]
  int64_t q_stride = 0;
  void* out = nullptr;  // as q
  int64_t out_stride = 0;
  bool q_pairs = false;    // elements 2i, 2i + 1 of a head lie in one aligned word
  bool out_pairs = false;  // as well in out
  const int32_t* positions = nullptr;
  const int32_t* seq_of_row = nullptr;
  const int32_t* block_tables = nullptr;
  int32_t max_blocks = 0;
  const void* k = nullptr;
  const void* v = nullptr;
  const float* k_scales = nullptr;  // [row of head_dim in k], int8 only
  const float* v_scales = nullptr;
  int32_t block_size = 0;
  int32_t rows = 0;
  int32_t num_heads = 0;
  int32_t num_kv_heads = 0;
  int32_t group = 0;             // query heads of a kv head
  float scale_log2 = 0.0f;       // scale * log2(e), positive; with a soft cap: softcap * log2(e)
  float cap_log2 = 0.0f;         // 2 log2(e) scale / softcap; 0: no soft cap
  int32_t window = INT_MAX;      // keys a row sees, its own the last of them
  int32_t tile_heads = 0;        // query heads in a tile: min(group, 16)
  int32_t head_tiles = 0;        // tiles that hold the heads of a group
  int32_t tile_tokens = 0;       // tokens in a tile
  int32_t max_chunks = 0;        // chunks of the longest context a block table can hold
  bool by_sequence = false;      // a block is a sequence that has one row in the batch, else rows
  bool skip_single = false;      // leave such rows out: another launch does them
  bool split = false;            // blockIdx.z is a chunk; partials meet in the workspace
  float* partial_o = nullptr;    // [token of a tile, head, chunk, head_dim]
  float2* partial_ml = nullptr;  // [token of a tile, head, chunk]: largest score, sum of weights
  int32_t* counters = nullptr;   // [tile, kv head and head tile]
};

/// The first key that a row at `position` sees.
__device__ __forceinline__ int FirstKey(const AttentionArgs& a, int position) {
  return max(position - a.window, -1) + 1;
}

/// tanh of half of x / log2(e), within 2^-21: what becomes of a score times cap_log2. The same
/// operations wherever it is computed.
__device__ __forceinline__ float CappedScore(float x) {
  return fmaf(-2.0f, __fdividef(1.0f, 1.0f + Exp2(x)), 1.0f);
}

/// The state (m, l, o) of a row after the states of two disjoint sets of keys: both are scaled to
/// the larger m, o = fmaf(o_part, add, o * keep), l alike.
struct MergeFactors {
  float m;
  float keep;
  float add;
};
__device__ __forceinline__ MergeFactors MergeOf(float m, float m_part) {
  MergeFactors f;
  f.m = fmaxf(m, m_part);
  // Neither has a key: nothing to scale, and no NaN from inf - inf.
  const float base = f.m == -INFINITY ? 0.0f : f.m;
  f.keep = Exp2(m - base);
  f.add = Exp2(m_part - base);
  return f;
}

/// Where the partial of (token of the launch's tiles, head, chunk) lies in partial_ml; times
/// head_dim: in partial_o.
__device__ __forceinline__ int64_t PartialIndex(const AttentionArgs& a, int token, int head,
                                                int chunk) {
  return (static_cast<int64_t>(token) * a.num_heads + head) * a.max_chunks + chunk;
}

// ---- attention_bf16.cu, attention_f16.cu: q and cache of the same type; attention_int8_*.cu ----

/// How the kernel is laid over the rows; results are the same to the bit.
enum class AttentionLayout : uint8_t {
  kOneTile,    // all warps of a block share one tile: few rows
  kManyTiles,  // tiles side by side share K and V: prompts
};
/// True for the head sizes that have an instantiation.
constexpr bool HasAttentionMma(int head_dim) {
  return head_dim == 32 || head_dim == 64 || head_dim == 96 || head_dim == 128 || head_dim == 256;
}
/// Tiles side by side in a block of kManyTiles.
constexpr int ManyTiles(int head_dim) { return head_dim == 256 ? 2 : 4; }

/// Grid (grid_x, kv heads x head tiles, chunks if split).
void AttentionMmaBF16(const AttentionArgs& a, int head_dim, AttentionLayout layout, int grid_x,
                      Stream stream);
void AttentionMmaF16(const AttentionArgs& a, int head_dim, AttentionLayout layout, int grid_x,
                     Stream stream);
void AttentionInt8MmaBF16(const AttentionArgs& a, int head_dim, AttentionLayout layout, int grid_x,
                          Stream stream);
void AttentionInt8MmaF16(const AttentionArgs& a, int head_dim, AttentionLayout layout, int grid_x,
                         Stream stream);

// ---- attention_generic.cu: any head size, any types ----
/// `cache_type` is that of K and V without scales.
void AttentionGeneric(const AttentionArgs& a, FloatType type, FloatType cache_type, int head_dim,
                      Stream stream);

}  // namespace quantd::QUANTD_CUDA_NS
