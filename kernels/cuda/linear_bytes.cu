// LinearBytes: y = x W^T + bias for few rows of 16-bit x (decode) and codes of one byte: int8,
// uint8 and e4m3 with scales, and zero points of any kind, a row, a group or a rectangle of the
// weight.
//
// Idea. The weight is the A operand of mma.m16n8k16, x the B operand, eight rows of x at the price
// of one. Both lie as they are: lane 4g + t loads bytes 16t .. 16t + 15 of every 64 columns of
// weight rows g and g + 8 and those columns of x row g, which permutes k alike in both. A code is
// exact in 16 bits: two become a pair in a few instructions (operands.cuh), and the scale
// multiplies the f32 sum of a piece of 64 columns. Zero points come off that sum: scale * (sum +
// (center - zero) * sum of x), where the sum of x is one more mma with ones in the place of
// weights, and unsigned codes are taken `center` = 128 less. Weights, scales and zero points are on
// their way (cp.async) four pieces ahead, in shared memory, where a lane finds what it has asked
// for itself.
//
// Mapping. A block owns 16 rows of the weight and 8 or 16 rows of x; its eight warps take turns of
// 256 columns along k, and their sums meet in shared memory in the order of the warps. x is read
// through L1, where the blocks of a multiprocessor find it; weights pass L1 by, and blocks with
// other rows of x find them in L2. The order of additions along k depends on k alone.
//
// Bytes a weight: 1 plus scales, and 1/8 of x for each row of x from L1 or L2. Bound: DRAM to about
// 16 rows of x, then L2, where there are rows of the weight for all multiprocessors: k is not split
// over blocks.
#include <algorithm>
#include <bit>
#include <cstdint>

#include "kernels/cuda/elements.cuh"
#include "kernels/cuda/operands.cuh"
#include "kernels/cuda/ops.h"
#include "kernels/cuda/weight_decode.cuh"

namespace quantd::QUANTD_CUDA_NS {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
constexpr int kRows = 16;   // of the weight, of a block
constexpr int kPiece = 64;  // columns of a load
constexpr int kMaxGridY = 65535;
constexpr int kTurn = 4;   // pieces of a warp's turn
constexpr int kAhead = 4;  // pieces a warp has in flight
constexpr int kUnroll = 2;
// Of the sums in shared memory: 4 past a multiple of 16, so that a warp's store hits 32 banks.
constexpr int kStride = kRows + 4;

/// How codes become factors of products.
enum class ByteKind : uint8_t {
  kInt,       // two's complement
  kWithZero,  // integers with zero points
  kE4M3,      // none is NaN: such checkpoints are refused
};

struct LinearBytesArgs {
  WeightView w;
  Matrix x;
  Matrix y;
  const float* bias = nullptr;
  int32_t block_shift = 0;  // log2 of a block's pieces
  int32_t scale_bytes = 0;  // log2 of those of a scale
  int32_t zero_bytes = 0;   // the same
  uint32_t flip = 0;        // of four codes: what makes unsigned ones signed, 128 less
  float center = 0.0f;      // what factors are less than codes
};

/// Where a row of the weight is.
struct ByteRow {
  const uint8_t* codes = nullptr;
  const uint8_t* scales = nullptr;  // of its first block
  const uint8_t* zeros = nullptr;
};

__device__ __forceinline__ ByteRow ByteRowOf(const LinearBytesArgs& args, int row) {
  const WeightSegment segment = SegmentOfRow(args.w, row);
  const int local = row - segment.first_row;
  const int64_t block = static_cast<int64_t>(local / args.w.block_rows) * args.w.row_blocks;
  return {segment.codes + static_cast<int64_t>(local) * args.w.k,
          static_cast<const uint8_t*>(segment.scales) + (block << args.scale_bytes),
          static_cast<const uint8_t*>(segment.zeros) + (block << args.zero_bytes)};
}

/// A piece of a warp's weights in shared memory. A lane reads what it has copied itself, so no
/// other need wait.
template <ByteKind kKind>
struct Piece {
  uint4 codes[2][32];
  uint32_t scales[2][32];  // the aligned words that hold them: one access for types of all sizes
};
template <>
struct Piece<ByteKind::kWithZero> {
  uint4 codes[2][32];
  uint32_t scales[2][32], zeros[2][32];
};

__device__ __forceinline__ const uint8_t* AlignedWord(const uint8_t* number) {
  return reinterpret_cast<const uint8_t*>(reinterpret_cast<uintptr_t>(number) & ~uintptr_t{3});
}
/// The number at `number` of the word around it.
__device__ __forceinline__ uint32_t BitsOf(const uint8_t* number, uint32_t word) {
  return word >> 8 * (reinterpret_cast<uintptr_t>(number) & 3);
}

/// Word i of four.
__device__ __forceinline__ uint32_t WordOf(const uint4& v, int i) {
  return i == 0 ? v.x : i == 1 ? v.y : i == 2 ? v.z : v.w;
}

/// Elements offset .. offset + 15 of a row of x, zero from k on; null is a row of zeros.
template <bool kAligned, typename X>
__device__ __forceinline__ void Load16Elements(const X* row, int offset, int k,
                                               uint32_t (&pairs)[8]) {
  if constexpr (kAligned) {
    uint4 v[2] = {make_uint4(0, 0, 0, 0), make_uint4(0, 0, 0, 0)};
    if (row != nullptr && offset < k) {
      const auto* const from = reinterpret_cast<const uint4*>(row + offset);
      v[0] = __ldg(from);
      v[1] = __ldg(from + 1);
    }
#pragma unroll
    for (int i = 0; i < 8; ++i) pairs[i] = WordOf(v[i / 4], i % 4);
  } else {
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      pairs[i] = 0;
      if (row == nullptr) continue;
      const int column = offset + 2 * i;
      if (column < k) pairs[i] = row[column].bits;
      if (column + 1 < k) pairs[i] |= static_cast<uint32_t>(row[column + 1].bits) << 16;
    }
  }
}

/// Word `word` of four codes each of rows g and g + 8 -> the A fragment of their columns.
template <ByteKind kKind, typename X>
__device__ __forceinline__ void Expand(uint32_t top, uint32_t bottom, uint32_t flip,
                                       uint32_t (&a)[4]) {
  if constexpr (kKind == ByteKind::kWithZero) {
    top ^= flip;
    bottom ^= flip;
  }
  if constexpr (kKind == ByteKind::kE4M3) {
    a[0] = PairOfE4M3<X, 0, 1>(top), a[1] = PairOfE4M3<X, 0, 1>(bottom);
    a[2] = PairOfE4M3<X, 2, 3>(top), a[3] = PairOfE4M3<X, 2, 3>(bottom);
  } else {
    a[0] = PairOfCodes<X, 0, 1>(top), a[1] = PairOfCodes<X, 0, 1>(bottom);
    a[2] = PairOfCodes<X, 2, 3>(top), a[3] = PairOfCodes<X, 2, 3>(bottom);
  }
}

template <ByteKind kKind, typename X, int kTokenTiles, bool kAligned>
__global__ void __launch_bounds__(kThreads,
                                  kTokenTiles == 1 && kAligned && kKind != ByteKind::kWithZero ? 3
                                                                                               : 2)
    LinearBytesKernel(LinearBytesArgs args) {
  constexpr int kTokens = 8 * kTokenTiles;
  DYN_SMEM(unsigned char, shared);

  const WeightView& w = args.w;
  const int tid = static_cast<int>(threadIdx.x), lane = tid % 32, warp = tid / 32;
  const int g = lane / 4, t = lane % 4;
  const int first_row = static_cast<int>(blockIdx.y) * kRows;
  const int first_token = static_cast<int>(blockIdx.x) * kTokens;

  // Rows past the last are read as the last; their sums are dropped.
  const ByteRow rows[2] = {ByteRowOf(args, min(first_row + g, w.n - 1)),
                           ByteRowOf(args, min(first_row + 8 + g, w.n - 1))};
  const X* x[kTokenTiles];
#pragma unroll
  for (int i = 0; i < kTokenTiles; ++i) {
    const int token = first_token + 8 * i + g;
    x[i] =
        token < args.x.rows ? static_cast<const X*>(args.x.data) + token * args.x.stride : nullptr;
  }

  // The warp's pieces, in their order; those past the last are zeros.
  const auto piece_at = [&](int i) { return (i / kTurn * kWarps + warp) * kTurn + i % kTurn; };
  const auto block_at = [&](int i) {
    return min(piece_at(i) >> args.block_shift, w.row_blocks - 1);
  };
  auto* const ring = reinterpret_cast<Piece<kKind>*>(shared) + warp * kAhead;
  const auto start = [&](int i) {
    Piece<kKind>& piece = ring[i % kAhead];
    const int offset = piece_at(i) * kPiece + 16 * t, block = block_at(i);
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      if constexpr (kAligned) {
        CpAsync16(&piece.codes[r][lane], rows[r].codes + (offset < w.k ? offset : 0),
                  offset < w.k ? 16 : 0);
      } else {
        piece.codes[r][lane] = Load16Codes<false>(rows[r].codes, offset, w.k);
      }
      CpAsync4(&piece.scales[r][lane], AlignedWord(rows[r].scales + (block << args.scale_bytes)));
      if constexpr (kKind == ByteKind::kWithZero) {
        CpAsync4(&piece.zeros[r][lane], AlignedWord(rows[r].zeros + (block << args.zero_bytes)));
      }
    }
    CpAsyncCommit();
  };

  float acc[kTokenTiles][4] = {};
#pragma unroll
  for (int i = 0; i < kAhead; ++i) start(i);
#pragma unroll 1
  for (int first = 0; piece_at(first) * kPiece < w.k; first += kUnroll) {
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      const int i = first + u, offset = piece_at(i) * kPiece + 16 * t, block = block_at(i);
      uint32_t pairs[2][8];  // of this tile of tokens and the next
      Load16Elements<kAligned>(x[0], offset, w.k, pairs[0]);
      CpAsyncWait<kAhead - 1>();
      const Piece<kKind>& piece = ring[i % kAhead];
      uint32_t a[4][4];
      float s[2], z[2];
      const uint4 top = piece.codes[0][lane], bottom = piece.codes[1][lane];
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        Expand<kKind, X>(WordOf(top, j), WordOf(bottom, j), args.flip, a[j]);
      }
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const uint32_t scale =
            BitsOf(rows[r].scales + (block << args.scale_bytes), piece.scales[r][lane]);
        s[r] = w.scale == Stored::kF32 ? std::bit_cast<float>(scale)
                                       : FloatOfHalf(w.scale, static_cast<uint16_t>(scale));
        s[r] = __fmul_rn(s[r], w.scale_step);
        if constexpr (kKind == ByteKind::kWithZero) {
          const float zero = FloatOfBits(
              w.zero, BitsOf(rows[r].zeros + (block << args.zero_bytes), piece.zeros[r][lane]));
          z[r] = w.added_zero ? __fmaf_rn(s[r], args.center, zero)
                              : __fmul_rn(s[r], args.center - zero);
        }
      }
      start(i + kAhead);  // in the place of what has just been read
#pragma unroll
      for (int tile = 0; tile < kTokenTiles; ++tile) {
        if (tile + 1 < kTokenTiles) {
          Load16Elements<kAligned>(x[tile + 1], offset, w.k, pairs[(tile + 1) % 2]);
        }
        float d[4] = {}, x_sum[4] = {};
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          const uint32_t b[2] = {pairs[tile % 2][2 * j], pairs[tile % 2][2 * j + 1]};
          Mma<X>(d, a[j], b);
          if constexpr (kKind == ByteKind::kWithZero) {
            Mma<X>(x_sum, {kOnesPair<X>, kOnesPair<X>, kOnesPair<X>, kOnesPair<X>}, b);
          }
        }
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          acc[tile][j] = __fmaf_rn(s[j / 2], d[j], acc[tile][j]);
          if constexpr (kKind == ByteKind::kWithZero) {
            acc[tile][j] = __fmaf_rn(z[j / 2], x_sum[j], acc[tile][j]);
          }
        }
      }
    }
  }
  CpAsyncWait<0>();
  __syncthreads();  // the sums take the place of the pieces
  auto* const sums = reinterpret_cast<float(*)[kTokens * kStride]>(shared);
#pragma unroll
  for (int i = 0; i < kTokenTiles; ++i) {
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      sums[warp][(8 * i + 2 * t + j % 2) * kStride + g + j / 2 * 8] = acc[i][j];
    }
  }
  __syncthreads();

  const int tokens = min(args.x.rows - first_token, kTokens);
  for (int i = tid; i < tokens * kRows; i += kThreads) {
    const int token = i / kRows, row = first_row + i % kRows;
    if (row >= w.n) continue;
    float sum = sums[0][token * kStride + i % kRows];
#pragma unroll
    for (int other = 1; other < kWarps; ++other) {
      sum = __fadd_rn(sum, sums[other][token * kStride + i % kRows]);
    }
    if (args.bias != nullptr) sum = __fadd_rn(sum, args.bias[row]);
    StoreFloat(args.y.type, args.y.data, (first_token + token) * args.y.stride + row, sum);
  }
}

template <ByteKind kKind, typename X, int kTokenTiles, bool kAligned>
void Launch(const LinearBytesArgs& args, Stream stream) {
  // Blocks that read the same weights are neighbours.
  const dim3 grid(static_cast<unsigned>(CeilDiv(args.x.rows, 8 * kTokenTiles)),
                  static_cast<unsigned>(CeilDiv(args.w.n, kRows)));
  constexpr size_t kShared = std::max(sizeof(Piece<kKind>) * kAhead * kWarps,
                                      sizeof(float) * kWarps * 8 * kTokenTiles * kStride);
  LAUNCH((LinearBytesKernel<kKind, X, kTokenTiles, kAligned>), grid, kThreads, kShared, stream,
         args);
}

template <ByteKind kKind, typename X>
void Launch(const LinearBytesArgs& args, Stream stream) {
  const bool aligned = HasAlignedRows(args.w) && HasAlignedRows(args.x);
  if (!aligned) return Launch<kKind, X, 1, false>(args, stream);
  // Sums of x leave no registers for those of 16 rows.
  if constexpr (kKind != ByteKind::kWithZero) {
    if (args.x.rows > 8) return Launch<kKind, X, 2, true>(args, stream);
  }
  Launch<kKind, X, 1, true>(args, stream);
}

template <typename X>
void Launch(const LinearBytesArgs& args, Stream stream) {
  if (args.w.codec == Codec::kE4M3) {
    Launch<ByteKind::kE4M3, X>(args, stream);
  } else if (args.w.zero == Stored::kNone) {
    Launch<ByteKind::kInt, X>(args, stream);
  } else {
    Launch<ByteKind::kWithZero, X>(args, stream);
  }
}

/// Of a scale or zero point.
int32_t Log2Bytes(Stored type) { return type == Stored::kU8 ? 0 : type == Stored::kF32 ? 2 : 1; }

/// Pieces of a block where all blocks of a row but the last have as many; 0 where a block starts or
/// ends within a piece.
int32_t PiecesOf(const WeightView& w) { return w.block % kPiece == 0 ? w.block / kPiece : 0; }

}  // namespace

bool HasLinearBytes(const WeightView& w, FloatType x) {
  const bool is_byte =
      w.codec == Codec::kInt8 || w.codec == Codec::kUInt8 || w.codec == Codec::kE4M3;
  const bool is_float =
      w.scale == Stored::kF32 || w.scale == Stored::kF16 || w.scale == Stored::kBF16;
  if (x == FloatType::kF32 || !is_byte || !is_float || w.order != BlockOrder::kGrid) return false;
  if (w.codec == Codec::kE4M3 && w.zero != Stored::kNone) return false;
  if (w.codec == Codec::kUInt8 && w.zero == Stored::kNone) return false;
  if (w.n > kMaxGridY * kRows) return false;
  return w.row_blocks == 1 || std::has_single_bit(static_cast<uint32_t>(PiecesOf(w)));
}

void LinearBytes(const WeightView& w, Matrix x, const float* bias, Matrix y, Stream stream) {
  if (x.rows == 0) return;
  LinearBytesArgs args;
  args.w = w;
  args.x = x;
  args.y = y;
  args.bias = bias;
  args.scale_bytes = Log2Bytes(w.scale);
  args.zero_bytes = Log2Bytes(w.zero);
  args.block_shift = w.row_blocks == 1 ? 31 : std::countr_zero(static_cast<uint32_t>(PiecesOf(w)));
  if (w.codec == Codec::kUInt8) {
    args.flip = 0x80808080u;
    args.center = 128.0f;
  }
  if (x.type == FloatType::kBF16) return Launch<BF16>(args, stream);
  Launch<F16>(args, stream);
}

}  // namespace quantd::QUANTD_CUDA_NS
