// Chooses how attention is laid over blocks, by host values only: rows, num_seqs, max_blocks. The
// bits of a row do not depend on the choice.
//
//   rows <= num_seqs: every row is a sequence of its own. A tile is one token. Chunks are spread
//     over blocks while tiles are few; one block takes all chunks of a tile when tiles abound.
//   Few rows and few kv heads: tiles full of tokens, chunks split.
//   Else prompts: tiles side by side share K and V, a block takes all chunks. Rows alone in their
//     sequence are left out there and done as in the first case, a block looking for its row.
// The mapping within a block, bytes and bounds: attention_block.cuh, attention_generic.cu.
#include <algorithm>

#include "kernels/cuda/attention.cuh"
#include "kernels/cuda/attention_tiles.cuh"
#include "kernels/cuda/elements.cuh"

namespace quantd::QUANTD_CUDA_NS {
namespace {

/// Below this many blocks, chunks are spread over more blocks: a few per multiprocessor of the
/// largest devices. It bounds the workspace too.
constexpr int kSplitBlocks = 512;
/// A prompt of fewer blocks than this leaves most of a device idle: its chunks are split as well.
constexpr int kFewPromptBlocks = 32;

struct Tiling {
  int tile_heads;     // query heads in a tile
  int head_tiles;     // tiles of a group
  int tile_tokens;    // tokens in a full tile
  int grid_y;         // kv heads x head tiles
  int prompt_tokens;  // tokens of a block of AttentionLayout::kManyTiles
};

Tiling TilingOf(const AttentionShape& shape) {
  Tiling t;
  const int group = shape.num_heads / shape.num_kv_heads;
  t.tile_heads = std::min(group, kQueryRows);
  t.head_tiles = CeilDiv(group, t.tile_heads);
  t.tile_tokens = kQueryRows / t.tile_heads;
  t.grid_y = shape.num_kv_heads * t.head_tiles;
  t.prompt_tokens = t.tile_tokens * ManyTiles(shape.head_dim);
  return t;
}

/// True when `blocks` along x leave a device idle, so that chunks get blocks of their own.
bool SplitsRows(const Tiling& t, int blocks) { return blocks * t.grid_y <= kSplitBlocks; }
bool IsShortPrompt(const Tiling& t, int rows) {
  return CeilDiv(rows, t.prompt_tokens) * t.grid_y <= kFewPromptBlocks;
}

int ChunksOf(int max_blocks, int block_size) {
  const int64_t keys = static_cast<int64_t>(max_blocks) * block_size;
  return static_cast<int>((keys + kChunkKeys - 1) / kChunkKeys);
}

/// Tokens that can have partials, over all layouts a call of `rows` may take.
int PartialTokens(const Tiling& t, int rows) {
  const int single = kSplitBlocks / t.grid_y;
  const int prompt = kFewPromptBlocks / t.grid_y * t.prompt_tokens;
  return std::min(rows, std::max(single, prompt));
}

size_t PartialCount(const Tiling& t, int rows, int num_heads, int chunks) {
  return static_cast<size_t>(PartialTokens(t, rows)) * static_cast<size_t>(num_heads) *
         static_cast<size_t>(chunks);
}

void LaunchMma(FloatType type, const AttentionArgs& a, int head_dim, AttentionLayout layout,
               int grid_x, Stream stream) {
  if (a.k_scales != nullptr) {
    if (type == FloatType::kBF16) return AttentionInt8MmaBF16(a, head_dim, layout, grid_x, stream);
    return AttentionInt8MmaF16(a, head_dim, layout, grid_x, stream);
  }
  if (type == FloatType::kBF16) return AttentionMmaBF16(a, head_dim, layout, grid_x, stream);
  AttentionMmaF16(a, head_dim, layout, grid_x, stream);
}

/// True when every layout finds its shared memory on the device: the layouts give the same bits,
/// AttentionGeneric has others. Heads of 256 in 16 bits take 138 KiB, which compute capability 8.6
/// and 8.9 have not.
bool Fits(int head_dim, const KvArrays& cache, const DeviceLimits& device) {
  int64_t bytes = 0;
  const auto add = [&](auto dim, auto parts, auto tiles) {
    constexpr int kDim = decltype(dim)::value, kParts = decltype(parts)::value,
                  kTiles = decltype(tiles)::value;
    const size_t shared = cache.k_scales != nullptr
                              ? AttentionConfig<int8_t, kDim, kParts, kTiles>::kShared
                              : AttentionConfig<BF16, kDim, kParts, kTiles>::kShared;
    bytes = std::max(bytes, static_cast<int64_t>(shared));
  };
  for (const AttentionLayout layout : {AttentionLayout::kOneTile, AttentionLayout::kManyTiles}) {
    if (cache.k_scales != nullptr) {
      WithAttentionParts<int8_t>(head_dim, layout, add);
    } else {
      WithAttentionParts<BF16>(head_dim, layout, add);
    }
  }
  return bytes <= device.shared_memory;
}

}  // namespace

size_t AttentionWorkspaceBytes(int32_t rows, const AttentionShape& shape, int32_t max_blocks,
                               int32_t block_size) {
  const int chunks = ChunksOf(max_blocks, block_size);
  if (chunks <= 1 || !HasAttentionMma(shape.head_dim)) return 0;
  return PartialCount(TilingOf(shape), rows, shape.num_heads, chunks) *
         (static_cast<size_t>(shape.head_dim) * sizeof(float) + sizeof(float2));
}

int32_t AttentionCounters(int32_t rows, const AttentionShape& shape) {
  if (!HasAttentionMma(shape.head_dim)) return 0;
  const Tiling t = TilingOf(shape);
  return PartialTokens(t, rows) * t.grid_y;
}

void Attention(Matrix q, const AttentionShape& shape, const AttentionArrays& batch,
               const KvArrays& cache, Matrix out, const Workspace& workspace,
               const DeviceLimits& device, Stream stream) {
  if (q.rows == 0) return;
  const Tiling t = TilingOf(shape);
  AttentionArgs a;
  a.q = q.data;
  a.q_stride = q.stride;
  a.out = out.data;
  a.out_stride = out.stride;
  a.q_pairs = reinterpret_cast<uintptr_t>(q.data) % 4 == 0 && q.stride % 2 == 0;
  a.out_pairs = reinterpret_cast<uintptr_t>(out.data) % 4 == 0 && out.stride % 2 == 0;
  a.positions = batch.positions;
  a.seq_of_row = batch.seq_of_row;
  a.block_tables = batch.block_tables;
  a.max_blocks = batch.max_blocks;
  a.k = cache.k;
  a.v = cache.v;
  a.k_scales = cache.k_scales;
  a.v_scales = cache.v_scales;
  a.block_size = cache.block_size;
  a.rows = q.rows;
  a.num_heads = shape.num_heads;
  a.num_kv_heads = shape.num_kv_heads;
  a.group = shape.num_heads / shape.num_kv_heads;
  constexpr float kLog2E = 1.44269504088896340736f;
  const bool capped = shape.softcap > 0.0f;
  a.scale_log2 = (capped ? shape.softcap : shape.scale) * kLog2E;
  a.cap_log2 = capped ? 2.0f * kLog2E * shape.scale / shape.softcap : 0.0f;
  if (shape.window > 0) a.window = shape.window;
  if (!HasAttentionMma(shape.head_dim) || !Fits(shape.head_dim, cache, device) ||
      q.type == FloatType::kF32 || (cache.k_scales == nullptr && q.type != cache.type) ||
      !IsAligned16(cache.k) || !IsAligned16(cache.v)) {
    return AttentionGeneric(a, q.type, cache.type, shape.head_dim, stream);
  }

  a.tile_heads = t.tile_heads;
  a.head_tiles = t.head_tiles;
  a.max_chunks = ChunksOf(batch.max_blocks, cache.block_size);
  a.partial_o = static_cast<float*>(workspace.data);
  a.partial_ml = reinterpret_cast<float2*>(a.partial_o +
                                           PartialCount(t, q.rows, shape.num_heads, a.max_chunks) *
                                               static_cast<size_t>(shape.head_dim));
  a.counters = workspace.counters;
  if (q.rows <= batch.num_seqs) {
    a.tile_tokens = 1;
    a.split = a.max_chunks > 1 && SplitsRows(t, q.rows);
    return LaunchMma(q.type, a, shape.head_dim, AttentionLayout::kOneTile, q.rows, stream);
  }
  a.tile_tokens = t.tile_tokens;
  if (IsShortPrompt(t, q.rows)) {
    a.split = a.max_chunks > 1;
    return LaunchMma(q.type, a, shape.head_dim, AttentionLayout::kOneTile,
                     CeilDiv(q.rows, t.tile_tokens), stream);
  }
  a.skip_single = batch.num_seqs > 1;
  LaunchMma(q.type, a, shape.head_dim, AttentionLayout::kManyTiles,
            CeilDiv(q.rows, t.prompt_tokens), stream);
  if (!a.skip_single) return;
  a.skip_single = false;
  a.by_sequence = true;
  a.tile_tokens = 1;
  a.split = a.max_chunks > 1 && SplitsRows(t, batch.num_seqs);
  LaunchMma(q.type, a, shape.head_dim, AttentionLayout::kOneTile, batch.num_seqs, stream);
}

}  // namespace quantd::QUANTD_CUDA_NS
