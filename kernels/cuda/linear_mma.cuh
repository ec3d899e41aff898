// The linear kernel for decode and medium batches: weights are the A operand of mma.m16n8k16,
// tokens its eight columns, so that one to eight tokens cost the same and every weight is expanded
// once for all tokens of a block.
//
// Idea. 4-bit codes stay codes until they are registers: byte -> pair of 16-bit table values by one
// PRMT and one LDS. The table has 256 entries of 256 bytes: 128 bytes hold the pair once per lane,
// so that the 32 lanes never meet in a bank, and 128 bytes hold activations (64 columns of one
// token), so that the address of an entry is a byte of the weight moved to bits 8..15 and nothing
// is wasted. A tile's sum is multiplied by its scale in f32: four FFMA for 32 weights of a lane.
// 16-bit weights are operands as they are loaded, their k order permuted alike in the activations.
// Zero points are taken off a tile's sum, not off its weights: scale * (sum - zero * sum of x), or
// scale * sum + zero * sum of x where they are added. The sums of x come from mma with ones in the
// place of weights, once for the row tiles of a warp.
//
// Mapping. A block owns 8 row tiles (128 rows), a range of k and 8, 16, 32 or 64 tokens. A warp
// owns one row tile (two where more tokens share the expanded weights: x is read half as often from
// shared memory) and walks the range in tiles of 64 columns. Lane (g, t) holds rows g and g + 8.
// Grid: x row groups, y splits of k, z groups of tokens.
//
// The order of additions along k is fixed by MmaPlan, a function of (row tiles, k,
// multiprocessors): within a split tile after tile (f32), then the splits in ascending order,
// whoever adds them: the last block to arrive (small m: partial sums through `partials`), or one
// block that walks all splits (large m). Tokens never meet in a sum, so a row's bits depend on
// nothing else in the batch.
//
// Bytes moved per weight: 0.5 plus scales (per 64: 0.0625 f32 or with zero point, 0.0313 16-bit,
// 0.0157 nested) or 2; x once per row
// group, partial sums 8 bytes per split, token and row. Bound: DRAM for up to 16 or 32 tokens,
// beyond that shared memory (x fragments), then the tensor cores.
#pragma once

#include <type_traits>

#include "kernels/cuda/linear_mma_tiles.cuh"

namespace quantd::QUANTD_CUDA_NS {

/// The kernel's body, one object a thread: stages, sums, results.
template <bool kTable, bool kZeros, typename X, int kTokenTiles>
struct MmaBlock {
  using G = MmaGeometry<kTable, kTokenTiles>;
  using Tile = std::conditional_t<kTable, TableTile, PlainTile>;
  using Source = std::conditional_t<kTable, TableSource, PlainSource>;
  static constexpr int kR = G::kRowTiles;

  const LinearMmaArgs& args;
  unsigned char* const shared;
  const int thread = static_cast<int>(threadIdx.x);
  const int warp = thread / 32, lane = thread % 32;
  const int first_token = static_cast<int>(blockIdx.z) * G::kTokens;
  const int group = static_cast<int>(blockIdx.x) * kMmaGroupTiles;

  float absmax[2] = {};  // nested: of this lane's row in the slice staged last

  __device__ __forceinline__ MmaBlock(const LinearMmaArgs& a, unsigned char* s)
      : args(a), shared(s) {}

  __device__ __forceinline__ unsigned char* Unit(int buffer, int unit) const {
    return shared + G::kUnitOffset + (buffer * G::kSliceUnits + unit) * G::kUnitStride;
  }

  /// Entry e: table value of e's high nibble (the lower column) in the low half, of its low nibble
  /// in the high half, once per lane.
  __device__ __forceinline__ void FillTable() const {
#pragma unroll
    for (int first = 0; first < 256; first += G::kThreads) {
      const int entry = first + thread;
      const uint32_t pair = static_cast<uint32_t>(FromFloat<X>(args.values[entry >> 4]).bits) |
                            static_cast<uint32_t>(FromFloat<X>(args.values[entry & 15]).bits) << 16;
#pragma unroll
      for (int j = 0; j < 8; ++j) {  // a warp writes four of its 32 entries, 16 bytes a lane
        const int from = 4 * j + lane / 8;
        const uint32_t v = __shfl_sync(0xffffffffu, pair, from);
        *reinterpret_cast<uint4*>(shared + (first + 32 * warp + from) * 256 + lane % 8 * 16) =
            make_uint4(v, v, v, v);
      }
    }
    if (args.w.scale == Stored::kNested) {
      for (int i = thread; i < 256 * args.w.num_segments; i += G::kThreads) {
        float* const maps = reinterpret_cast<float*>(shared + G::kNestedMaps);
        maps[i] = SegmentAt(args.w, i / 256).nested_map[i % 256];
      }
    }
  }

  /// Starts copying columns of k tiles [first, first + count) of x, zero beyond x's rows and
  /// columns.
  __device__ __forceinline__ void StageX(int buffer, int first, int count) const {
    const X* const x = static_cast<const X*>(args.x);
#pragma unroll 1
    for (int i = thread; i < count * G::kTokens * 8; i += G::kThreads) {
      const int chunk = i % 8, unit = i / 8;
      const int token = unit % G::kTokens;
      const int column = (first + unit / G::kTokens) * kTileCols + 8 * chunk;
      int columns = first_token + token < args.m ? args.w.k - column : 0;
      columns = columns < 0 ? 0 : columns > 8 ? 8 : columns;
      const X* const from = columns == 0 ? x : x + (first_token + token) * args.x_stride + column;
      unsigned char* const to = Unit(buffer, unit) + 16 * G::Swizzle(token, chunk);
      if (args.x_aligned) {
        CpAsync16(to, from, 2 * columns);
      } else {
        X* const elements = reinterpret_cast<X*>(to);
#pragma unroll 1
        for (int c = 0; c < 8; ++c) elements[c] = c < columns ? from[c] : X{};
      }
    }
  }

  /// Where a thread's scales are. In shared memory: it is needed once a slice, and registers are
  /// scarce.
  struct Scales {
    const uint8_t* tiles[kR];  // of the warp's row tiles
    // Nested: of the row whose scales this lane decodes.
    const float* absmax;
    int first_block;  // flat, of the row
    int map;
    float offset;
  };
  __device__ __forceinline__ Scales& MyScales() const {
    static_assert(sizeof(Scales) <= G::kStateBytes);
    return reinterpret_cast<Scales*>(shared + G::kState)[thread];
  }

  /// Once, before the first slice.
  __device__ __forceinline__ void FindScales() const {
    Scales& mine = MyScales();
    const int blocks = args.w.row_blocks;
    const bool nested = args.w.scale == Stored::kNested;
#pragma unroll
    for (int r = 0; r < kR; ++r) {
      const MmaRowTile tile = RowTileAt(args.w, group + warp * kR + r);
      const int64_t first = static_cast<int64_t>(tile.row / kTileRows) * blocks * kTileRows;
      mine.tiles[r] =
          static_cast<const uint8_t*>(tile.segment.scales) + (first << args.scale_shift);
      if (!nested || (kR == 2 && lane / 16 != r)) continue;
      // A lane decodes row lane % 16 of row tile lane / 16 (two row tiles), or half of the tiles of
      // row lane % 16 (one).
      const int last = tile.segment.rows - 1, row = tile.row + lane % 16;
      mine.first_block = (row < last ? row : last) * blocks;
      mine.absmax = tile.segment.nested_absmax;
      mine.offset = tile.segment.scale_base;
      mine.map = 256 * SegmentIndexOfTile(args.w, group + warp * kR + r);
    }
  }

  /// Scales of less than four bytes are staged as they are, then decoded.
  __device__ __forceinline__ bool DecodesScales() const { return !kZeros && args.scale_shift < 2; }
  __device__ __forceinline__ unsigned char* StagedCodes(int buffer) const {
    return shared + G::kScaleCodes + ((buffer * (G::kScaleBuffer / 4)) << args.scale_shift);
  }

  /// Starts copying the scales of this warp's row tiles, one per tile and row.
  __device__ __forceinline__ void StageScales(int buffer, int first, int count) {
    const Scales& mine = MyScales();
    const int tiles_per_scale = args.w.block / kTileCols;
    const int shift = args.scale_shift;
    unsigned char* const staged =
        DecodesScales() ? StagedCodes(buffer) : shared + G::kScales + buffer * G::kScaleBuffer;
#pragma unroll
    for (int r = 0; r < kR; ++r) {
      unsigned char* const to = staged + (((warp * kR + r) * G::kSliceTiles * 16) << shift);
#pragma unroll 1
      for (int i = lane; i < count << shift; i += 32) {
        const int block = (first + (i >> shift)) / tiles_per_scale;
        const int within = i & ((1 << shift) - 1);
        CpAsync16(to + i * 16, mine.tiles[r] + (((block << shift) + within) * 16));
      }
    }
    if (kZeros || args.w.scale != Stored::kNested) return;
    // At most 16 blocks of a row: they belong to at most two groups of 256.
    const int last = first + count - 1;
    const int first_group = (mine.first_block + first / tiles_per_scale) / kNestedGroup;
    const int last_group = (mine.first_block + last / tiles_per_scale) / kNestedGroup;
    absmax[0] = __ldg(mine.absmax + first_group);
    absmax[1] = __ldg(mine.absmax + last_group);
  }

  /// Staged 16-bit scales of the slice -> f32, by the warp for itself.
  __device__ __forceinline__ void WidenScales(int buffer, int count) const {
    constexpr int kPlaces = G::kSliceTiles * 16;  // of a row tile
    const auto* const from = reinterpret_cast<const uint16_t*>(StagedCodes(buffer));
    float* const to = reinterpret_cast<float*>(shared + G::kScales + buffer * G::kScaleBuffer);
#pragma unroll
    for (int r = 0; r < kR; ++r) {
      const int place = (warp * kR + r) * kPlaces;
#pragma unroll 4
      for (int i = lane; i < count * 16; i += 32) {
        to[place + i] = FloatOfHalf(args.w.scale, from[place + i]);
      }
    }
    __syncwarp();
  }

  /// Nested codes of the slice -> f32, by the warp for itself.
  __device__ __forceinline__ void DecodeScales(int buffer, int first, int count) const {
    if (args.w.scale != Stored::kNested) return WidenScales(buffer, count);
    const Scales& mine = MyScales();
    const int tiles_per_scale = args.w.block / kTileCols;
    const int place = (warp * kR + (kR == 2 ? lane / 16 : 0)) * G::kSliceTiles * 16 + lane % 16;
    const unsigned char* const codes = StagedCodes(buffer) + place;
    float* const to =
        reinterpret_cast<float*>(shared + G::kScales + buffer * G::kScaleBuffer) + place;
    const float* const map = reinterpret_cast<const float*>(shared + G::kNestedMaps) + mine.map;
    const int first_group = (mine.first_block + first / tiles_per_scale) / kNestedGroup;
    // All of a slice at once: their latency would be paid while no tile is multiplied.
#pragma unroll
    for (int i = 0; i < G::kSliceTiles * kR / 2; ++i) {
      const int t = kR == 1 ? 2 * i + lane / 16 : i;
      if (t >= count) break;
      const int column_block = tiles_per_scale == 1 ? first + t : (first + t) / tiles_per_scale;
      const int block = mine.first_block + column_block;
      const float statistic = block / kNestedGroup == first_group ? absmax[0] : absmax[1];
      to[t * 16] = NestedScale(map[codes[t * 16]], statistic, mine.offset);
    }
    __syncwarp();
  }

  /// Byte, within the units of eight tokens and one k tile, of this lane's fragment of columns
  /// 32 half .. 32 half + 31.
  __device__ __forceinline__ int PlaceInUnits(int half) const {
    // ldmatrix: lane 8 i + j gives row j (a token) of matrix i (8 columns).
    const int token = kTable ? lane % 8 : lane / 4;
    const int chunk = 4 * half + (kTable ? lane / 8 : lane % 4);
    return token * G::kUnitStride + 16 * G::Swizzle(token, chunk);
  }

  /// Adds one k tile to the sums. `x`: this lane's places of both halves in the tile's first unit;
  /// `scale`: of row lane / 4 of the warp's first row tile. `refill` may overwrite `weights`.
  template <typename F>
  __device__ __forceinline__ void AddTile(const Tile (&weights)[kR],
                                          const unsigned char* const (&x)[2], const float* scale,
                                          float (&acc)[kR][kTokenTiles][4], F refill) const {
    const uint32_t table = kTable ? SharedAddress(shared) : 0;
    uint32_t a[kR][4][4];
    float s[kR][2] = {}, zero[kR][2] = {};  // zero: what the sum of x is multiplied with
#pragma unroll
    for (int r = 0; r < kR; ++r) {
      Expand(weights[r], table, static_cast<uint32_t>(lane * 4), a[r]);
#pragma unroll
      for (int i = 0; kTable && i < 2; ++i) {
        s[r][i] = scale[r * G::kSliceTiles * 16 + 8 * i];
        if constexpr (kZeros) {
          const uint32_t pair = std::bit_cast<uint32_t>(s[r][i]);
          s[r][i] = FloatOfHalf(args.w.scale, static_cast<uint16_t>(pair));
          zero[r][i] = FloatOfHalf(args.w.scale, static_cast<uint16_t>(pair >> 16));
          if (!args.w.added_zero) zero[r][i] = s[r][i] * (args.zero_center - zero[r][i]);
        }
      }
    }
    refill();
#pragma unroll
    for (int j = 0; j < kTokenTiles; ++j) {
      uint32_t b[2][4];  // words 0, 1: first mma of the half; 2, 3: second
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const unsigned char* const place = x[half] + j * 8 * G::kUnitStride;
        if constexpr (kTable) {
          LdMatrix4(b[half], place);
        } else {
          const uint4 v = *reinterpret_cast<const uint4*>(place);
          b[half][0] = v.x, b[half][1] = v.y, b[half][2] = v.z, b[half][3] = v.w;
        }
      }
      float x_sum[4] = {};
      if constexpr (kZeros) {
        const uint32_t ones[4] = {kOnesPair<X>, kOnesPair<X>, kOnesPair<X>, kOnesPair<X>};
#pragma unroll
        for (int step = 0; step < 4; ++step) {
          const uint32_t b_step[2] = {b[step / 2][step % 2 * 2], b[step / 2][step % 2 * 2 + 1]};
          Mma<X>(x_sum, ones, b_step);
        }
      }
#pragma unroll
      for (int r = 0; r < kR; ++r) {
        float d[4] = {};
        float(&sum)[4] = kTable ? d : acc[r][j];
#pragma unroll
        for (int step = 0; step < 4; ++step) {
          const uint32_t b_step[2] = {b[step / 2][step % 2 * 2], b[step / 2][step % 2 * 2 + 1]};
          Mma<X>(sum, a[r][step], b_step);
        }
        if constexpr (kTable) {
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            acc[r][j][i] = __fmaf_rn(s[r][i / 2], d[i], acc[r][j][i]);
            if constexpr (kZeros) acc[r][j][i] = __fmaf_rn(zero[r][i / 2], x_sum[i], acc[r][j][i]);
          }
        }
      }
    }
  }

  /// Calls f(sum, row tile of the warp, row in it, token) for every sum of this thread.
  template <typename F>
  __device__ __forceinline__ void ForEachSum(float (&acc)[kR][kTokenTiles][4], F f) const {
#pragma unroll
    for (int r = 0; r < kR; ++r) {
#pragma unroll
      for (int j = 0; j < kTokenTiles; ++j) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          f(acc[r][j][i], r, lane / 4 + i / 2 * 8, first_token + 8 * j + lane % 4 * 2 + i % 2);
        }
      }
    }
  }

  /// Leaves this block's sums in `partials`; the last block of the row group and tokens adds all
  /// splits in ascending order.
  __device__ __forceinline__ void CombineSplits(float (&acc)[kR][kTokenTiles][4]) const {
    const int64_t padded_rows = static_cast<int64_t>(gridDim.x) * kMmaGroupTiles * kTileRows;
    const int64_t split_stride = args.m * padded_rows;
    float* const mine = args.partials + blockIdx.y * split_stride;
    ForEachSum(acc, [&](float sum, int r, int row, int token) {
      if (token >= args.m) return;
      mine[token * padded_rows + (group + warp * kR + r) * kTileRows + row] = sum;
    });
    __threadfence();
    __syncthreads();
    int32_t* const flag = reinterpret_cast<int32_t*>(shared + G::kFlag);
    if (thread == 0) {
      int32_t* const counter = args.counters + blockIdx.z * gridDim.x + blockIdx.x;
      *flag = atomicAdd(counter, 1) == args.plan.splits - 1;
      if (*flag != 0) *counter = 0;  // every other block has passed: zero for the next launch
    }
    __syncthreads();
    if (*flag == 0) return;
    __threadfence();
    AddSplits(padded_rows, split_stride);
  }

  /// The last block's part: a lane adds four rows of some tokens at once, so that many partial sums
  /// are on their way from L2 before the first is needed; their latency is all this costs.
  __device__ __forceinline__ void AddSplits(int64_t padded_rows, int64_t split_stride) const {
    constexpr int kTogether = G::kTokens / G::kWarps < 4 ? G::kTokens / G::kWarps : 4;  // tokens
    constexpr int kAhead = 8;                                                           // splits
    static_assert(32 * 4 == kMmaGroupTiles * kTileRows);
    const MmaRowTile tile = RowTileAt(args.w, group + lane / 4);
    const int first_row = tile.row + lane % 4 * 4;
    const int end = first_token + G::kTokens < args.m ? first_token + G::kTokens : args.m;
#pragma unroll 1
    for (int token = first_token + warp; token < end; token += kTogether * G::kWarps) {
      const float* const from = args.partials + token * padded_rows + group * kTileRows + 4 * lane;
      float4 sums[kTogether] = {};
#pragma unroll 1
      for (int first = 0; first < args.plan.splits; first += kAhead) {
        float4 parts[kAhead][kTogether] = {};
#pragma unroll
        for (int s = 0; s < kAhead; ++s) {
#pragma unroll
          for (int t = 0; t < kTogether; ++t) {
            if (first + s >= args.plan.splits || token + t * G::kWarps >= end) continue;
            parts[s][t] = *reinterpret_cast<const float4*>(from + (first + s) * split_stride +
                                                           t * G::kWarps * padded_rows);
          }
        }
#pragma unroll
        for (int s = 0; s < kAhead; ++s) {
          if (first + s >= args.plan.splits) break;
#pragma unroll
          for (int t = 0; t < kTogether; ++t) {
            sums[t].x += parts[s][t].x, sums[t].y += parts[s][t].y;
            sums[t].z += parts[s][t].z, sums[t].w += parts[s][t].w;
          }
        }
      }
#pragma unroll
      for (int t = 0; t < kTogether; ++t) {
        if (token + t * G::kWarps >= end || !tile.active) continue;
        const float four[4] = {sums[t].x, sums[t].y, sums[t].z, sums[t].w};
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          if (first_row + i >= tile.segment.rows) continue;
          Finish(four[i], tile.segment.first_row + first_row + i, token + t * G::kWarps);
        }
      }
    }
  }

  /// Bias and the one rounding.
  __device__ __forceinline__ void Finish(float sum, int column, int token) const {
    if (args.bias != nullptr) sum += __ldg(args.bias + column);
    StoreFloat(args.y_type, args.y, token * args.y_stride + column, sum);
  }

  /// Starts everything a slice needs into buffer `buffer`.
  __device__ __forceinline__ void Stage(int buffer, int first, int count) {
    StageX(buffer, first, count);
    if constexpr (kTable) StageScales(buffer, first, count);
    CpAsyncCommit();
  }

  __device__ __forceinline__ void Run() {
    const int per_split = args.plan.tiles_per_split;
    const int begin = static_cast<int>(blockIdx.y) * per_split;
    int end = args.whole_k ? args.plan.k_tiles : begin + per_split;
    if (end > args.plan.k_tiles) end = args.plan.k_tiles;

    const int my_tile = group + warp * kR;
    Source sources[2] = {Source(args.w, RowTileAt(args.w, my_tile), begin, lane),
                         Source(args.w, RowTileAt(args.w, my_tile + kR - 1), begin, lane)};
    // Weights first: they come from DRAM, everything below from L2 or registers.
    Tile ring[G::kDepth][kR] = {};
#pragma unroll
    for (int i = 0; i < G::kDepth; ++i) {
#pragma unroll
      for (int r = 0; r < kR; ++r) {
        if (begin + i < end) sources[r].Load(i, ring[i][r]);
      }
    }
    float acc[kR][kTokenTiles][4] = {};
    const auto count_at = [&](int first, int split_end) {
      return split_end - first < G::kSliceTiles ? split_end - first : G::kSliceTiles;
    };
    int split_end = begin + per_split < end ? begin + per_split : end;
    int count = count_at(begin, split_end);
    if constexpr (kTable) FindScales();
    Stage(0, begin, count);
    if constexpr (kTable) FillTable();

    int buffer = 0;
    for (int first = begin; first < end; buffer ^= 1) {
      CpAsyncWait<0>();
      __syncthreads();  // the slice is here, and nobody reads the other buffer any more
      if constexpr (kTable) {
        if (DecodesScales()) DecodeScales(buffer, first, count);
      }
      const int next = first + count;
      const int next_end = next < split_end         ? split_end
                           : next + per_split < end ? next + per_split
                                                    : end;
      const int next_count = count_at(next, next_end);
      if (next < end) Stage(buffer ^ 1, next, next_count);
      const unsigned char* x[2] = {Unit(buffer, 0) + PlaceInUnits(0),
                                   Unit(buffer, 0) + PlaceInUnits(1)};
      const float* scale =
          reinterpret_cast<const float*>(shared + G::kScales + buffer * G::kScaleBuffer) +
          warp * kR * G::kSliceTiles * 16 + lane / 4;
      // A slice is a multiple of kUnroll tiles unless it is the last: tile i of a group is ring[i].
#pragma unroll 1
      for (int left = count, to_load = end - first; left > 0;
           left -= G::kUnroll, to_load -= G::kUnroll) {
#pragma unroll
        for (int i = 0; i < G::kUnroll; ++i) {
          if (i >= left) break;
          const unsigned char* const here[2] = {x[0] + i * G::kTokens * G::kUnitStride,
                                                x[1] + i * G::kTokens * G::kUnitStride};
          AddTile(ring[i], here, scale + i * 16, acc, [&] {
            if constexpr (G::kUnroll == 1) {
#pragma unroll
              for (int d = 1; d < G::kDepth; ++d) {
#pragma unroll
                for (int r = 0; r < kR; ++r) ring[d - 1][r] = ring[d][r];
              }
            }
            if (i + G::kDepth >= to_load) return;
            constexpr int kLast = G::kDepth - 1;
#pragma unroll
            for (int r = 0; r < kR; ++r) {
              sources[r].Load(i + G::kDepth, ring[G::kUnroll == 1 ? kLast : i][r]);
            }
          });
        }
#pragma unroll
        for (int r = 0; r < kR; ++r) sources[r].Advance(G::kUnroll);
#pragma unroll
        for (int half = 0; half < 2; ++half) x[half] += G::kUnroll * G::kTokens * G::kUnitStride;
        scale += G::kUnroll * 16;
      }
      if constexpr (kTokenTiles == 8) {
        if (args.whole_k && next == split_end) AddToTotals(acc, split_end <= per_split);
      }
      first = next;
      count = next_count;
      split_end = next_end;
    }
    if constexpr (kTokenTiles == 8) {
      if (args.whole_k) LoadTotals(acc);
    }
    if (!args.whole_k && args.plan.splits > 1) {
      CombineSplits(acc);
      return;
    }
    ForEachSum(acc, [&](float sum, int r, int row, int token) {
      const MmaRowTile tile = RowTileAt(args.w, my_tile + r);
      if (token >= args.m || !tile.active || tile.row + row >= tile.segment.rows) return;
      Finish(sum, tile.segment.first_row + tile.row + row, token);
    });
  }

  // whole_k: the sum of the splits so far, in shared memory; a thread reads only what it wrote.
  __device__ __forceinline__ void AddToTotals(float (&acc)[kR][kTokenTiles][4],
                                              bool is_first) const {
    float* const totals = reinterpret_cast<float*>(shared + G::kTotals) + thread;
    int at = 0;
    ForEachSum(acc, [&](float& sum, int, int, int) {
      totals[at] = is_first ? sum : totals[at] + sum;
      sum = 0.0f;
      at += G::kThreads;
    });
  }
  __device__ __forceinline__ void LoadTotals(float (&acc)[kR][kTokenTiles][4]) const {
    const float* const totals = reinterpret_cast<const float*>(shared + G::kTotals) + thread;
    int at = 0;
    ForEachSum(acc, [&](float& sum, int, int, int) {
      sum = totals[at];
      at += G::kThreads;
    });
  }
};

template <bool kTable, bool kZeros, typename X, int kTokenTiles>
__global__ void __launch_bounds__(MmaGeometry<kTable, kTokenTiles>::kThreads, 2)
    LinearMmaKernel(LinearMmaArgs args) {
  DYN_SMEM(unsigned char, shared);
  MmaBlock<kTable, kZeros, X, kTokenTiles>(args, shared).Run();
}

template <bool kTable, bool kZeros, typename X, int kTokenTiles>
void LaunchLinearMmaKernel(const LinearMmaArgs& args, Stream stream) {
  using G = MmaGeometry<kTable, kTokenTiles>;
  const unsigned token_groups = static_cast<unsigned>((args.m + G::kTokens - 1) / G::kTokens);
  const dim3 grid(static_cast<unsigned>(args.plan.row_groups),
                  args.whole_k ? 1u : static_cast<unsigned>(args.plan.splits), token_groups);
  LAUNCH((LinearMmaKernel<kTable, kZeros, X, kTokenTiles>), grid, dim3(G::kThreads),
         args.whole_k ? G::kBytesWholeK : G::kBytes, stream, args);
}

template <bool kTable, bool kZeros, typename X>
void LaunchLinearMmaOf(const LinearMmaArgs& args, int token_tiles, Stream stream) {
  switch (token_tiles) {
    case 1: return LaunchLinearMmaKernel<kTable, kZeros, X, 1>(args, stream);
    case 2: return LaunchLinearMmaKernel<kTable, kZeros, X, 2>(args, stream);
    case 4: return LaunchLinearMmaKernel<kTable, kZeros, X, 4>(args, stream);
    default: break;
  }
  // With zero points the sums of 64 tokens do not fit the registers: linear_mma.cu asks for 32.
  if constexpr (!kZeros) LaunchLinearMmaKernel<kTable, kZeros, X, 8>(args, stream);
}

}  // namespace quantd::QUANTD_CUDA_NS
