// Paged causal attention on tensor cores: q of a 16-bit type T, the cache of the same or int8.
//
// Idea: flash attention whose order of operations is fixed by key positions alone (attention.cuh).
// Mapping: an mma tile of 16 rows holds tile_tokens tokens x tile_heads query heads of one kv head.
//   A block has kTiles such tiles, which share K and V in shared memory, and kParts warps a tile:
//   each takes 64 / kParts keys of S = Q K^T and, after P has met in shared memory, head_dim /
//   kParts columns of O = P V (kParts = 1: P stays in registers). A thread holds rows g = lane / 4
//   and g + 8. The tokens of a block may belong to several sequences: it walks the runs of equal
//   sequences, each from a fresh state, and stores only the rows of the run.
// Sums: l, the sum of the weights, is one more column of P V, with a V of ones: of the weights as
//   rounded, and in the same order whatever kParts is.
// int8: codes become T in registers, exactly. S is multiplied by the keys' scales, P by the values'
//   before it is rounded; l is then summed in f32, each lane its own keys of every 16. ldmatrix
//   moves codes in twos, so lane t's share of 16 dims of K is 4t..4t+3 (Q is loaded to match), and
//   of 16 columns of V the even ones are one mma, the odd ones the next.
// K, V: tiles of 64 keys, double-buffered, each half refilled as soon as its last reader is done.
//   Keys behind the last position of the run are not read: they are zeros, and masked.
// Bytes: K and V of the context once per (kv head, block), 4 head_dim a key; int8 half of that and
//   8.
// Bound: memory with one token a tile, tensor cores with tiles full of tokens. Not yet run on
//   hardware.
#pragma once

#include <climits>
#include <cstdint>

#include "kernels/cuda/attention.cuh"
#include "kernels/cuda/attention_split.cuh"
#include "kernels/cuda/attention_tiles.cuh"
#include "kernels/cuda/numeric.cuh"
#include "kernels/cuda/ptx.cuh"
#include "kernels/cuda/target.h"

namespace quantd::QUANTD_CUDA_NS {

/// A row of a tile.
struct QueryRow {
  bool valid;  // false: padding of the tile
  int token;   // row of the batch
  int head;
};

template <typename T, typename C, int kDim, int kParts, int kTiles>
class AttentionBlock {
  using Config = AttentionConfig<C, kDim, kParts, kTiles>;
  static constexpr bool kInt8 = Config::kInt8;
  static constexpr int kRegisterSteps = kDim / 16 - Config::kSharedSteps;

 public:
  __device__ __forceinline__ AttentionBlock(const AttentionArgs& args, unsigned char* shared,
                                            int first_row, int end_row)
      : a_(args),
        k_(reinterpret_cast<C*>(shared + Config::kK)),
        v_(reinterpret_cast<C*>(shared + Config::kV)),
        cache_rows_(reinterpret_cast<int32_t*>(shared + Config::kRows)),
        scales_(reinterpret_cast<float*>(shared + Config::kScales)),
        shared_q_(reinterpret_cast<uint32_t*>(shared + Config::kQ)),
        lane_(static_cast<int>(threadIdx.x) % 32),
        part_(static_cast<int>(threadIdx.x) / 32 % kParts),
        tile_(static_cast<int>(threadIdx.x) / 32 / kParts),
        kv_head_(static_cast<int>(blockIdx.y) / args.head_tiles),
        first_row_(first_row),
        end_row_(end_row) {
    p_ = reinterpret_cast<T*>(shared + Config::kP) + tile_ * kQueryRows * Config::kPStride;
    max_ = reinterpret_cast<float*>(shared + Config::kMax) + tile_ * kParts * kQueryRows;
    sums_ =
        reinterpret_cast<float4*>(shared + Config::kSums) + tile_ * (kTileKeys / 16 * kQueryRows);
    LoadQ();
  }

  /// Rows [start, end) of one sequence against keys [first_chunk, end_chunk) x 256.
  __device__ __forceinline__ void Run(int start, int end, int first_chunk, int end_chunk) {
    const int last = a_.positions[end - 1];
    const int first_key = FirstKey(a_, a_.positions[start]);
    int lowest = INT_MAX, highest = -1;
    for (int i = 0; i < 2; ++i) {
      const QueryRow row = RowOf(i, start, end);
      last_key_[i] = INT_MAX;
      if (row.valid) {
        last_key_[i] = a_.positions[row.token];
        highest = max(highest, last_key_[i]);
      }
      lowest = min(lowest, last_key_[i]);
    }
    for (int step = 4; step < 32; step *= 2) {
      highest = max(highest, __shfl_xor_sync(~0u, highest, step));
      lowest = min(lowest, __shfl_xor_sync(~0u, lowest, step));
    }
    const int32_t* const table =
        a_.block_tables + static_cast<int64_t>(a_.seq_of_row[start]) * a_.max_blocks;
    // Behind tiles that no row sees.
    const int first_tile = max(first_chunk * kChunkTiles, first_key / kTileKeys);
    const int end_tile = min(end_chunk * kChunkTiles, last / kTileKeys + 1);
    StartChunk();
    for (int i = 0; i < 2; ++i) {
      total_m_[i] = -INFINITY;
      total_l_[i] = 0.0f;
    }
    for (int n = 0; n < Config::kOutTiles; ++n) {
      for (int c = 0; c < 4; ++c) total_[n][c] = 0.0f;
    }

    // The run before has read cache_rows_ for the last time before its last barrier, and is done
    // with K and V at the next.
    FindCacheRows(table, first_tile / kChunkTiles, last);
    if (first_tile % kChunkTiles != 0) {  // the loop does it at a chunk's first tile
      FindCacheRows(table, first_tile / kChunkTiles + 1, last);
    }
    __syncthreads();
    FetchK(first_tile);
    FetchV(first_tile);
    CpAsyncCommit();
    if (first_tile + 1 < end_tile) FetchK(first_tile + 1);
    CpAsyncCommit();
    for (int tile = first_tile; tile < end_tile; ++tile) {
      CpAsyncWait<1>();  // the latest group is K of the next tile: all before it are of this tile
      __syncthreads();
      if (tile + 1 < end_tile) FetchV(tile + 1);
      CpAsyncCommit();
      if (tile % kChunkTiles == 0 && tile / kChunkTiles + 1 < end_chunk) {
        FindCacheRows(table, tile / kChunkTiles + 1, last);
      }
      const bool active =
          tile * kTileKeys <= highest && tile * kTileKeys + kTileKeys - 1 >= FirstKey(a_, lowest);
      const int stage = tile % 2 * kTileKeys * Config::kStride;
      float s[Config::kScoreTiles][4];
      float largest[2];
      if (active) {
        Scores(k_ + stage, s);
        if constexpr (kInt8) ScaleScores(tile, s);
        if (a_.cap_log2 != 0.0f) CapScores(s);
        if (tile * kTileKeys + kTileKeys - 1 > lowest || tile * kTileKeys < FirstKey(a_, highest)) {
          Mask(tile * kTileKeys, s);
        }
        LargestScores(s, largest);
      }
      __syncthreads();  // K of this tile is read, the maxima of the tile's parts are there
      if (tile + 2 < end_tile) FetchK(tile + 2);
      CpAsyncCommit();
      uint32_t p[kTileKeys / 16][4];
      if (active) Weights(tile, s, largest, p);
      if constexpr (kParts > 1) {
        __syncthreads();  // P is there
        if (active) LoadP(p);
        if constexpr (kInt8) {
          if (active) AddSums();
        }
      }
      if (active) {
        AddValues(v_ + stage, p);
        if (tile % kChunkTiles == kChunkTiles - 1 || tile + 1 == end_tile ||
            (tile + 1) * kTileKeys > highest) {
          MergeChunk();
          StartChunk();
        }
      }
    }
    CpAsyncWait<0>();
  }

  /// Stores the rows of the last Run, which are [start, end).
  __device__ __forceinline__ void StoreRows(int start, int end) const {
    for (int i = 0; i < 2; ++i) {
      const QueryRow row = RowOf(i, start, end);
      if (!row.valid) continue;
      const float scale = 1.0f / total_l_[i];
      T* const out = static_cast<T*>(a_.out) + row.token * a_.out_stride +
                     static_cast<int64_t>(row.head) * kDim + FirstColumn();
      for (int n = 0; n < Config::kOutTiles; ++n) {
        const float low = Total(n, i, 0) * scale, high = Total(n, i, 1) * scale;
        T* const to = out + PairColumn(n);
        if (a_.out_pairs) {
          *reinterpret_cast<uint32_t*>(to) = PackPair<T>(low, high);
        } else {
          to[0] = FromFloat<T>(low);
          to[1] = FromFloat<T>(high);
        }
      }
    }
  }

  /// Stores the state of the last Run, over one chunk and rows [start, end), as partials of those
  /// that reach into it. `first_token`: which token of the launch's tiles the block's first row is.
  __device__ __forceinline__ void StorePartials(int start, int end, int first_token,
                                                int chunk) const {
    for (int i = 0; i < 2; ++i) {
      const QueryRow row = RowOf(i, start, end);
      if (!row.valid || a_.positions[row.token] < chunk * kChunkKeys) continue;
      const int64_t at = PartialIndex(a_, row.token - first_row_ + first_token, row.head, chunk);
      if (part_ == 0 && lane_ % 4 == 0) a_.partial_ml[at] = make_float2(total_m_[i], total_l_[i]);
      float* const o = a_.partial_o + at * kDim + FirstColumn();
      for (int n = 0; n < Config::kOutTiles; ++n) {
        *reinterpret_cast<float2*>(o + PairColumn(n)) = make_float2(Total(n, i, 0), Total(n, i, 1));
      }
    }
  }

 private:
  /// Row lane / 4 + 8 i of the warp's tile; valid if its token is one of [start, end). Computed
  /// anew where it is needed: registers are short in between.
  __device__ __forceinline__ QueryRow RowOf(int i, int start, int end) const {
    const int slot = lane_ / 4 + 8 * i;
    const int token = slot / a_.tile_heads;
    const int head =
        slot % a_.tile_heads + static_cast<int>(blockIdx.y) % a_.head_tiles * a_.tile_heads;
    QueryRow row;
    row.token = first_row_ + tile_ * a_.tile_tokens + token;
    row.head = kv_head_ * a_.group + head;
    row.valid = token < a_.tile_tokens && head < a_.group && row.token >= start && row.token < end;
    return row;
  }

  /// Of the thread's columns of O.
  __device__ __forceinline__ int FirstColumn() const {
    return part_ * (kDim / kParts) + lane_ % 4 * (kInt8 ? 4 : 2);
  }
  /// Where the thread's n-th pair of adjacent columns of O begins, from the first.
  static __device__ __forceinline__ constexpr int PairColumn(int n) {
    return kInt8 ? n / 2 * 16 + n % 2 * 2 : 8 * n;
  }
  /// Element e of the n-th pair of row i. int8: of 16 columns, o_[2j] has the even ones.
  __device__ __forceinline__ float Total(int n, int i, int e) const {
    return kInt8 ? total_[n / 2 * 2 + e][2 * i + n % 2] : total_[n][2 * i + e];
  }

  /// The thread's own four words of a step that waits in shared memory.
  __device__ __forceinline__ uint32_t* SharedQ(int step) const {
    return shared_q_ +
           ((step - kRegisterSteps) * Config::kThreads + static_cast<int>(threadIdx.x)) * 4;
  }

  /// A fragments of the tile's Q; zeros in padding.
  __device__ __forceinline__ void LoadQ() {
    for (int i = 0; i < 2; ++i) {
      const QueryRow row = RowOf(i, first_row_, end_row_);
      const T* const q = static_cast<const T*>(a_.q) + row.token * a_.q_stride +
                         static_cast<int64_t>(row.head) * kDim + lane_ % 4 * (kInt8 ? 4 : 2);
#pragma unroll
      for (int k = 0; k < kDim / 16; ++k) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const T* const from = q + 16 * k + (kInt8 ? 2 : 8) * half;
          uint32_t word = 0;
          if (row.valid) {
            word = a_.q_pairs ? *reinterpret_cast<const uint32_t*>(from)
                              : static_cast<uint32_t>(from[0].bits) |
                                    static_cast<uint32_t>(from[1].bits) << 16;
          }
          if (k < kRegisterSteps) {
            q_[k][i + 2 * half] = word;
          } else {
            SharedQ(k)[i + 2 * half] = word;
          }
        }
      }
    }
  }

  /// Which row of the cache (of head_dim elements) holds each key of a chunk; -1 behind `last`.
  __device__ __forceinline__ void FindCacheRows(const int32_t* table, int chunk, int last) {
    const unsigned block_size = static_cast<unsigned>(a_.block_size);
#pragma unroll 1
    for (int i = static_cast<int>(threadIdx.x); i < kChunkKeys; i += Config::kThreads) {
      const int key = chunk * kChunkKeys + i;
      int row = -1;
      if (key <= last) {
        const int block = static_cast<int>(static_cast<unsigned>(key) / block_size);
        row = (table[block] * a_.num_kv_heads + kv_head_) * a_.block_size +
              (key - block * a_.block_size);
      }
      cache_rows_[chunk % 2 * kChunkKeys + i] = row;
    }
  }

  __device__ __forceinline__ void FetchK(int tile) { Fetch(k_, a_.k, scales_, a_.k_scales, tile); }
  __device__ __forceinline__ void FetchV(int tile) {
    Fetch(v_, a_.v, scales_ + 2 * kTileKeys, a_.v_scales, tile);
  }
  /// Starts copying a tile of K or V, and its scales, to its stage of `to`; zeros behind the last
  /// key.
  __device__ __forceinline__ void Fetch(C* to, const void* cache, float* to_scales,
                                        const float* scales, int tile) {
    constexpr int kWords = kDim / Config::kWord;  // of 16 bytes, in a row
    C* const stage = to + tile % 2 * kTileKeys * Config::kStride;
    const int32_t* const rows = cache_rows_ + tile % (2 * kChunkTiles) * kTileKeys;
    const int thread = static_cast<int>(threadIdx.x);
#pragma unroll 4
    for (int i = 0; i < (kTileKeys * kWords + Config::kThreads - 1) / Config::kThreads; ++i) {
      int key, column;
      if constexpr (Config::kThreads % kWords == 0) {  // a thread keeps its column
        key = thread / kWords + i * (Config::kThreads / kWords);
        column = thread % kWords * Config::kWord;
      } else {
        key = (thread + i * Config::kThreads) / kWords;
        column = (thread + i * Config::kThreads) % kWords * Config::kWord;
      }
      if (kTileKeys * kWords % Config::kThreads != 0 && key >= kTileKeys) break;
      const int row = rows[key];
      const C* const from =
          static_cast<const C*>(cache) + static_cast<int64_t>(max(row, 0)) * kDim + column;
      CpAsync16(stage + key * Config::kStride + column, from, row >= 0 ? 16 : 0);
    }
    if constexpr (kInt8) {
      static_assert(Config::kThreads >= kTileKeys);
      if (thread < kTileKeys) {
        const int row = rows[thread];
        CpAsync4(to_scales + tile % 2 * kTileKeys + thread, scales + max(row, 0), row >= 0 ? 4 : 0);
      }
    }
  }

  __device__ __forceinline__ void FragmentOfQ(int step, uint32_t (&q)[4]) const {
    if (step < kRegisterSteps) {
      for (int c = 0; c < 4; ++c) q[c] = q_[step][c];
    } else {
      const uint4 words = *reinterpret_cast<const uint4*>(SharedQ(step));
      q[0] = words.x, q[1] = words.y, q[2] = words.z, q[3] = words.w;
    }
  }

  /// s = Q K^T of this warp's keys, not yet scaled.
  __device__ __forceinline__ void Scores(const C* k, float (&s)[Config::kScoreTiles][4]) const {
    const C* const from =
        k + (part_ * Config::kScoreTiles * 8 + lane_ / 16 * 8 + lane_ % 8) * Config::kStride +
        lane_ / 8 % 2 * Config::kWord;
#pragma unroll
    for (int n = 0; n < Config::kScoreTiles; ++n) {
#pragma unroll
      for (int c = 0; c < 4; ++c) s[n][c] = 0.0f;
    }
    if constexpr (kInt8) {  // a matrix is 16 dims of 8 keys: two steps at a time
#pragma unroll
      for (int d = 0; d < kDim / 16; d += 2) {
        uint32_t q[2][4];
        FragmentOfQ(d, q[0]);
        FragmentOfQ(d + 1, q[1]);
#pragma unroll
        for (int n = 0; n < Config::kScoreTiles; n += 2) {
          uint32_t b[4];
          LdMatrix4(b, from + n * 8 * Config::kStride + d * 16);
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            Mma<T>(s[n + i / 2], q[i % 2],
                   {PairOfCodes<T, 0, 1>(b[i]), PairOfCodes<T, 2, 3>(b[i])});
          }
        }
      }
    } else {
#pragma unroll
      for (int d = 0; d < kDim / 16; ++d) {
        uint32_t q[4];
        FragmentOfQ(d, q);
#pragma unroll
        for (int n = 0; n < Config::kScoreTiles; n += 2) {
          uint32_t b[4];
          LdMatrix4(b, from + n * 8 * Config::kStride + d * 16);
          Mma<T>(s[n], q, {b[0], b[1]});
          Mma<T>(s[n + 1], q, {b[2], b[3]});
        }
      }
    }
  }

  /// The scales of the thread's two keys of 8-key column n, of K or V in a stage.
  __device__ __forceinline__ float2 ScalesOf(const float* stage, int n) const {
    return *reinterpret_cast<const float2*>(stage + (part_ * Config::kScoreTiles + n) * 8 +
                                            lane_ % 4 * 2);
  }

  __device__ __forceinline__ void ScaleScores(int tile, float (&s)[Config::kScoreTiles][4]) const {
#pragma unroll
    for (int n = 0; n < Config::kScoreTiles; ++n) {
      const float2 scale = ScalesOf(scales_ + tile % 2 * kTileKeys, n);
      s[n][0] *= scale.x, s[n][2] *= scale.x;
      s[n][1] *= scale.y, s[n][3] *= scale.y;
    }
  }

  __device__ __forceinline__ void CapScores(float (&s)[Config::kScoreTiles][4]) const {
#pragma unroll
    for (int n = 0; n < Config::kScoreTiles; ++n) {
#pragma unroll
      for (int c = 0; c < 4; ++c) s[n][c] = CappedScore(s[n][c] * a_.cap_log2);
    }
  }

  /// Keys behind a row's own, or before its window.
  __device__ __forceinline__ void Mask(int first_key, float (&s)[Config::kScoreTiles][4]) const {
    const int first = first_key + part_ * Config::kScoreTiles * 8 + lane_ % 4 * 2;
#pragma unroll
    for (int n = 0; n < Config::kScoreTiles; ++n) {
#pragma unroll
      for (int c = 0; c < 4; ++c) {
        const unsigned back = static_cast<unsigned>(last_key_[c / 2] - (first + n * 8 + c % 2));
        if (back >= static_cast<unsigned>(a_.window)) s[n][c] = -INFINITY;
      }
    }
  }

  /// The largest score of each row over this warp's keys; kParts > 1: to shared memory too.
  __device__ __forceinline__ void LargestScores(const float (&s)[Config::kScoreTiles][4],
                                                float (&largest)[2]) const {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      float m = -INFINITY;
#pragma unroll
      for (int n = 0; n < Config::kScoreTiles; ++n) {
        m = fmaxf(m, fmaxf(s[n][2 * i], s[n][2 * i + 1]));
      }
      m = fmaxf(m, __shfl_xor_sync(~0u, m, 1));
      m = fmaxf(m, __shfl_xor_sync(~0u, m, 2));
      largest[i] = m;
      if constexpr (kParts > 1) {
        if (lane_ % 4 == 0) max_[part_ * kQueryRows + lane_ / 4 + 8 * i] = m;
      }
    }
  }

  /// Moves the state to the tile's maxima and turns scores into weights, rounded to T: A fragments
  /// in `p`, or P in shared memory when the tile has several parts. int8: weights times scales of
  /// V; the sums of the weights go to l, or where they meet.
  __device__ __forceinline__ void Weights(int tile, const float (&s)[Config::kScoreTiles][4],
                                          float (&largest)[2], uint32_t (&p)[kTileKeys / 16][4]) {
    float base[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      if constexpr (kParts > 1) {
#pragma unroll
        for (int part = 0; part < kParts; ++part) {
          largest[i] = fmaxf(largest[i], max_[part * kQueryRows + lane_ / 4 + 8 * i]);
        }
      }
      const float m = fmaxf(m_[i], largest[i] * a_.scale_log2);
      base[i] = m == -INFINITY ? 0.0f : m;  // no key of this row yet: all weights are 2^-inf
      const float keep = Exp2(m_[i] - base[i]);
      m_[i] = m;
#pragma unroll
      for (int n = 0; n < Config::kOutTiles; ++n) {
        o_[n][2 * i] *= keep;
        o_[n][2 * i + 1] *= keep;
      }
      l_[2 * i] = __fmul_rn(l_[2 * i], keep);  // never one with the addition to come
      l_[2 * i + 1] = __fmul_rn(l_[2 * i + 1], keep);
    }
    float sum[2];  // of the thread's weights of 16 keys
#pragma unroll
    for (int n = 0; n < Config::kScoreTiles; ++n) {
      float2 scale = {1.0f, 1.0f};
      if constexpr (kInt8) {
        scale = ScalesOf(scales_ + (2 + tile % 2) * kTileKeys, n);
        scale.x *= kValueUnit, scale.y *= kValueUnit;
      }
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        float low = Exp2(fmaf(s[n][2 * i], a_.scale_log2, -base[i]));
        float high = Exp2(fmaf(s[n][2 * i + 1], a_.scale_log2, -base[i]));
        if constexpr (kInt8) {
          sum[i] = n % 2 == 0 ? low + high : sum[i] + (low + high);
          if (n % 2 == 1) KeepSum(n / 2, i, sum[i]);
          low *= scale.x;
          high *= scale.y;
        }
        const uint32_t pair = PackPair<T>(low, high);
        if constexpr (kParts > 1) {
          T* const to = p_ + (lane_ / 4 + 8 * i) * Config::kPStride +
                        (part_ * Config::kScoreTiles + n) * 8 + lane_ % 4 * 2;
          *reinterpret_cast<uint32_t*>(to) = pair;
        } else {
          p[n / 2][i + n % 2 * 2] = pair;
        }
      }
    }
  }

  /// The thread's share of the weights of row i over the warp's 16 keys `group`.
  __device__ __forceinline__ void KeepSum(int group, int i, float sum) {
    if constexpr (kParts == 1) {
      l_[2 * i] += sum;
    } else {
      float* const to = reinterpret_cast<float*>(
          sums_ + (part_ * (Config::kScoreTiles / 2) + group) * kQueryRows + lane_ / 4 + 8 * i);
      to[lane_ % 4] = sum;
    }
  }
  /// Adds what the warps of the tile have kept, in the order in which one warp would.
  __device__ __forceinline__ void AddSums() {
#pragma unroll
    for (int group = 0; group < kTileKeys / 16; ++group) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const float* const from =
            reinterpret_cast<const float*>(sums_ + group * kQueryRows + lane_ / 4 + 8 * i);
        l_[2 * i] += from[lane_ % 4];
      }
    }
  }

  __device__ __forceinline__ void LoadP(uint32_t (&p)[kTileKeys / 16][4]) const {
    const T* const from = p_ + lane_ % 16 * Config::kPStride + lane_ / 16 * 8;
#pragma unroll
    for (int k = 0; k < kTileKeys / 16; ++k) LdMatrix4(p[k], from + 16 * k);
  }

  /// o += P V of this warp's columns; l += P 1 unless int8.
  __device__ __forceinline__ void AddValues(const C* v, const uint32_t (&p)[kTileKeys / 16][4]) {
    if constexpr (kInt8) {  // a matrix is 8 keys of 16 columns: 32 keys at a time
      const C* const from = v + lane_ * Config::kStride + part_ * (kDim / kParts);
#pragma unroll
      for (int k = 0; k < kTileKeys / 16; k += 2) {
#pragma unroll
        for (int n = 0; n < Config::kOutTiles; n += 2) {
          uint32_t b[4];
          LdMatrix4Transposed(b, from + 16 * k * Config::kStride + n * 8);
#pragma unroll
          for (int i = 0; i < 2; ++i) {
            Mma<T>(o_[n], p[k + i],
                   {PairOfCodes<T, 0, 2>(b[2 * i]), PairOfCodes<T, 0, 2>(b[2 * i + 1])});
            Mma<T>(o_[n + 1], p[k + i],
                   {PairOfCodes<T, 1, 3>(b[2 * i]), PairOfCodes<T, 1, 3>(b[2 * i + 1])});
          }
        }
      }
    } else {
      const C* const from =
          v + lane_ % 16 * Config::kStride + part_ * (kDim / kParts) + lane_ / 16 * 8;
#pragma unroll
      for (int k = 0; k < kTileKeys / 16; ++k) {
#pragma unroll
        for (int n = 0; n < Config::kOutTiles; n += 2) {
          uint32_t b[4];
          LdMatrix4Transposed(b, from + 16 * k * Config::kStride + n * 8);
          Mma<T>(o_[n], p[k], {b[0], b[1]});
          Mma<T>(o_[n + 1], p[k], {b[2], b[3]});
        }
        Mma<T>(l_, p[k], {kOnesPair<T>, kOnesPair<T>});
      }
    }
  }

  __device__ __forceinline__ void StartChunk() {
    m_[0] = m_[1] = -INFINITY;
#pragma unroll
    for (int c = 0; c < 4; ++c) l_[c] = 0.0f;
#pragma unroll
    for (int n = 0; n < Config::kOutTiles; ++n) {
#pragma unroll
      for (int c = 0; c < 4; ++c) o_[n][c] = 0.0f;
    }
  }

  __device__ __forceinline__ void MergeChunk() {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const MergeFactors f = MergeOf(total_m_[i], m_[i]);
      total_m_[i] = f.m;
      float l = l_[2 * i];
      if constexpr (kInt8) {
        l += __shfl_xor_sync(~0u, l, 1);
        l += __shfl_xor_sync(~0u, l, 2);
      }
      total_l_[i] = fmaf(l, f.add, total_l_[i] * f.keep);
      const float add = kInt8 ? f.add * (1.0f / kValueUnit) : f.add;
#pragma unroll
      for (int n = 0; n < Config::kOutTiles; ++n) {
#pragma unroll
        for (int c = 2 * i; c < 2 * i + 2; ++c) {
          total_[n][c] = fmaf(o_[n][c], add, total_[n][c] * f.keep);
        }
      }
    }
  }

  const AttentionArgs& a_;
  C* const k_;
  C* const v_;
  int32_t* const cache_rows_;
  float* const scales_;  // int8 only
  uint32_t* const shared_q_;
  T* p_;          // of this warp's tile
  float* max_;    // of this warp's tile
  float4* sums_;  // as well, int8 only: [keys / 16][row], an element a lane of the row
  const int lane_, part_, tile_, kv_head_;
  const int first_row_, end_row_;

  uint32_t q_[kRegisterSteps][4];
  int last_key_[2];  // of the row; rows outside the run see all keys, and are dropped

  // Of the chunk so far. int8: l_[2 i] of row i, of the lane's own keys.
  float m_[2], l_[4], o_[Config::kOutTiles][4];
  float total_m_[2], total_l_[2], total_[Config::kOutTiles][4];  // of the chunks before
};

}  // namespace quantd::QUANTD_CUDA_NS
