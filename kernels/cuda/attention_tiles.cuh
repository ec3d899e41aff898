// What an instantiation of attention_block.cuh is made of: its types, and the plan of its shared
// memory.
#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "kernels/cuda/attention.cuh"
#include "kernels/cuda/elements.cuh"
#include "kernels/cuda/numeric.cuh"
#include "kernels/cuda/operands.cuh"
#include "kernels/cuda/target.h"

namespace quantd::QUANTD_CUDA_NS {

template <typename T>
__device__ __forceinline__ uint32_t PackPair(float low, float high) {
  return static_cast<uint32_t>(FromFloat<T>(low).bits) |
         static_cast<uint32_t>(FromFloat<T>(high).bits) << 16;
}

/// P times the scale of V is taken this much larger, and sums of V this much smaller, so that a f16
/// P has the range that it has with V of f16 (a code is up to 127, not 1). Exact.
inline constexpr float kValueUnit = 64.0f;

/// Shapes and the shared memory of an instantiation, for a cache of C. Rows of K, V and P are
/// padded by 16 bytes, which makes their length an odd number of 16-byte words: ldmatrix has no
/// bank conflicts.
template <typename C, int kDim, int kParts, int kTiles>
struct AttentionConfig {
  static_assert(kDim % (16 * kParts) == 0 && kTileKeys % (16 * kParts) == 0 && kDim % 32 == 0);
  static constexpr bool kInt8 = std::is_same_v<C, int8_t>;
  static constexpr int kThreads = 32 * kParts * kTiles;
  static constexpr int kBlocks = kThreads > 128 ? 1 : 2;      // a multiprocessor's registers hold
  static constexpr int kWord = 16 / sizeof(C);                // elements of K and V in 16 bytes
  static constexpr int kStride = kDim + kWord;                // elements, of K and V
  static constexpr int kPStride = kTileKeys + 8;              // elements, of P
  static constexpr int kScoreTiles = kTileKeys / 8 / kParts;  // 8-key columns of S of a warp
  static constexpr int kOutTiles = kDim / 8 / kParts;         // 8-element columns of O of a warp

  /// Steps of 16 of Q that wait in shared memory, because two states of 128 columns leave a thread
  /// no registers for them.
  static constexpr int kSharedSteps = kParts == 1 && kDim >= 128 ? 4 : 0;

  static constexpr size_t kTileBytes = size_t{kTileKeys} * kStride * sizeof(C);
  static constexpr size_t kK = 0;                                // [2][64][kStride]
  static constexpr size_t kV = kK + 2 * kTileBytes;              // [2][64][kStride]
  static constexpr size_t kRows = kV + 2 * kTileBytes;           // int32 [2][256] rows of the cache
  static constexpr size_t kScales = kRows + 2 * kChunkKeys * 4;  // f32 [K, V][2][64]
  static constexpr size_t kP =                                   // [kTiles][16][kPStride]
      kScales + (kInt8 ? size_t{4} * kTileKeys * 4 : 0);
  static constexpr size_t kMax = kP + (kParts > 1 ? size_t{kTiles} * kQueryRows * kPStride * 2 : 0);
  static constexpr size_t kSums =  // f32 [kTiles][kParts][16] of maxima before it
      kMax + (kParts > 1 ? size_t{kTiles} * kParts * kQueryRows * 4 : 0);
  static constexpr size_t kQ =  // f32 [kTiles][64 / 16][16][4] of sums of weights before it
      kSums + (kInt8 && kParts > 1 ? size_t{kTiles} * (kTileKeys / 16) * kQueryRows * 16 : 0);
  static constexpr size_t kShared = kQ + size_t{kSharedSteps} * kThreads * 16;  // [steps][thread]
};

/// f(head size, warps of a tile, tiles side by side), as constants, for a cache of C: which
/// instantiations there are. A warp of kManyTiles holds a whole tile as long as two states of
/// head_dim columns fit its registers.
template <typename C, typename F>
void WithAttentionParts(int head_dim, AttentionLayout layout, F f) {
  // Of 96 columns and more: codes to convert take the registers that let one warp hold a tile.
  constexpr int kParts = std::is_same_v<C, int8_t> ? 2 : 1;
  constexpr IntTag<1> kOne;
  constexpr IntTag<2> kTwo;
  constexpr IntTag<4> kFour;
  const bool one = layout == AttentionLayout::kOneTile;
  const auto run = [&](auto dim, auto parts_of_one, auto parts_of_many) {
    constexpr int kTiles = ManyTiles(decltype(dim)::value);
    return one ? f(dim, parts_of_one, kOne) : f(dim, parts_of_many, IntTag<kTiles>());
  };
  switch (head_dim) {
    case 32: return run(IntTag<32>(), kTwo, kOne);
    case 64: return run(IntTag<64>(), kFour, kOne);
    case 96: return run(IntTag<96>(), kTwo, IntTag<kParts>());
    case 128: return run(IntTag<128>(), kFour, IntTag<kParts>());
    case 256: return run(IntTag<256>(), kFour, kFour);
    default: break;
  }
}

}  // namespace quantd::QUANTD_CUDA_NS
