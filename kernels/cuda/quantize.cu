// Quantization on load, byte-identical to kernels/quant/quantize.cc.
//
// Idea: the same operations in the same order, each rounded on its own (nothing contracted, true
// divisions): the reciprocal of the block's largest magnitude times the value, the trailing partial
// block divided instead, the nearest code with ties to the lower value. A code is found by counting
// the midpoints below the value, which is what the codec's walk does. Codes go straight to where
// the kernels read them (weight_view.h), so no pass over the host's memory remains but the copy.
// Mapping: scales: a warp a flat block. 4-bit codes: a warp a tile of 16 x 64, a lane its 16 bytes,
// so a warp stores 512 bytes in a row. int8: a block of threads a row.
// Bytes: every value read twice (the second time from L2, if at all), 1/2 or 1 written.
// Bound: nothing here: the values come over PCIe, an order of magnitude slower than they are read.
#include <cstdint>

#include "kernels/cuda/numeric.cuh"
#include "kernels/cuda/ops.h"
#include "kernels/cuda/weight_view.h"
#include "kernels/quant/codecs.h"

namespace quantd::QUANTD_CUDA_NS {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
/// What kernels/quant/quantize.cc divides by at least.
constexpr float kSmallestAbsmax = 1e-38f;

/// A 4-bit codec in ascending order of its values.
struct CodeBook {
  float midpoints[15];  // between neighbours
  uint64_t codes = 0;   // nibble i: code of the i-th smallest value
  uint32_t zero = 0;    // code of 0, for padding
};

CodeBook MakeCodeBook(const float (&table)[16]) {
  // Insertion sort: stable, so that of FP4's two zeros 0 comes before 8, as in Fp4Codec::Encode.
  uint8_t order[16];
  for (uint8_t code = 0; code < 16; ++code) {
    int at = code;
    for (; at > 0 && table[order[at - 1]] > table[code]; --at) order[at] = order[at - 1];
    order[at] = code;
  }
  CodeBook book;
  for (int i = 15; i >= 0; --i) {
    book.codes |= uint64_t{order[i]} << 4 * i;
    if (i > 0) book.midpoints[i - 1] = (table[order[i - 1]] + table[order[i]]) / 2;
    if (table[order[i]] == 0.0f) book.zero = order[i];
  }
  return book;
}

/// A segment as the kernels below write it.
struct Target {
  int32_t rows = 0;
  int32_t k = 0;
  int32_t padded_k = 0;
  int32_t block = 0;
  bool tiled_scales = false;
  uint8_t* codes = nullptr;
  float* scales = nullptr;

  /// Where the scale of flat block `b` lies.
  __device__ __forceinline__ int64_t PlaceOfScale(int64_t b) const {
    if (!tiled_scales) return b;
    const int per_row = k / block;
    const int64_t row = b / per_row;
    return (row / kTileRows * per_row + b % per_row) * kTileRows + row % kTileRows;
  }
};

Target TargetOf(const WeightView& w, int segment, const Matrix& values) {
  const WeightSegment& s = w.segments[segment];
  return {values.rows,
          w.k,
          w.padded_k,
          w.block,
          w.order == BlockOrder::kTiled,
          const_cast<uint8_t*>(s.codes),
          const_cast<float*>(static_cast<const float*>(s.scales))};
}

/// scales[b] = largest magnitude of flat block b; NaNs are passed over. Block b of the grid's
/// warps.
template <typename T>
__global__ __launch_bounds__(kThreads) void BlockAbsmaxKernel(Target to, Matrix values) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int64_t total = int64_t{to.rows} * to.k;
  const int64_t blocks = (total + to.block - 1) / to.block;
  const int64_t b = int64_t{blockIdx.x} * kWarps + threadIdx.x / 32;
  if (b >= blocks) return;
  const int64_t first = b * to.block;
  const int count = total - first < to.block ? static_cast<int>(total - first) : to.block;
  const int64_t row = first / to.k;
  const int64_t col = first % to.k;
  float absmax = 0.0f;
  for (int i = lane; i < count; i += 32) {
    // A block may span several rows, which need not be adjacent.
    const int64_t down = (col + i) / to.k;
    const int64_t at = (row + down) * values.stride + (col + i - down * to.k);
    absmax = fmaxf(absmax, fabsf(ToFloat(static_cast<const T*>(values.data)[at])));
  }
#pragma unroll
  for (int d = 16; d > 0; d /= 2) absmax = fmaxf(absmax, __shfl_xor_sync(~0u, absmax, d));
  if (lane == 0) to.scales[to.PlaceOfScale(b)] = absmax;
}

/// Zero scales for the rows that fill the last tile.
__global__ __launch_bounds__(kThreads) void PadScalesKernel(Target to) {
  const int per_row = to.k / to.block, padding = kTileRows - to.rows % kTileRows;
  const int i = static_cast<int>(blockIdx.x * kThreads + threadIdx.x);
  if (i >= per_row * padding) return;
  const int64_t tile = to.rows / kTileRows;
  to.scales[(tile * per_row + i / padding) * kTileRows + to.rows % kTileRows + i % padding] = 0.0f;
}

/// The code of `value` in a block whose largest magnitude is `absmax`; `divides` in the trailing
/// partial block.
__device__ __forceinline__ uint32_t Encode4(float value, float absmax, bool divides,
                                            const CodeBook& book) {
  const float divisor = absmax > kSmallestAbsmax ? absmax : kSmallestAbsmax;
  float s = divides ? __fdiv_rn(value, divisor) : __fmul_rn(value, __fdiv_rn(1.0f, divisor));
  s = s > -1.0f ? s : -1.0f;  // a NaN becomes -1
  s = s < 1.0f ? s : 1.0f;
  int below = 0;
#pragma unroll
  for (int i = 0; i < 15; ++i) below += s > book.midpoints[i] ? 1 : 0;
  return static_cast<uint32_t>(book.codes >> 4 * below) & 15u;
}

/// A tile a warp. PlaceOfNibble (weight_view.h) backwards: byte 4 s + i of lane 4 g + t holds row
/// g + 8 (i % 2), columns 16 s + 8 (i / 2) + 2 t and the next.
template <typename T>
__global__ __launch_bounds__(kThreads) void EncodeTilesKernel(Target to, Matrix values,
                                                              CodeBook book) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int tiles_in_row = to.padded_k / kTileCols;
  const int64_t tiles = int64_t{(to.rows + kTileRows - 1) / kTileRows} * tiles_in_row;
  const int64_t tile = int64_t{blockIdx.x} * kWarps + threadIdx.x / 32;
  if (tile >= tiles) return;
  const int64_t total = int64_t{to.rows} * to.k;
  const int col0 = static_cast<int>(tile % tiles_in_row) * kTileCols + lane % 4 * 2;
  uint32_t words[4] = {0, 0, 0, 0};
  for (int half = 0; half < 2; ++half) {
    const int64_t row = tile / tiles_in_row * kTileRows + lane / 4 + 8 * half;
    const T* const from = static_cast<const T*>(values.data) + row * values.stride;
    const int64_t flat = row * to.k + col0;
    const int64_t first_block = flat / to.block;
    const int within = static_cast<int>(flat % to.block);
    int64_t block = -1;
    float absmax = 0.0f;
    bool divides = false;
#pragma unroll
    for (int s = 0; s < 4; ++s) {
#pragma unroll
      for (int j = 0; j < 4; ++j) {  // of the two bytes of this row: columns + 0, + 1, + 8, + 9
        const int ahead = 16 * s + 8 * (j / 2) + j % 2;
        uint32_t code = book.zero;
        if (row < to.rows && col0 + ahead < to.k) {
          const int64_t its_block = first_block + (within + ahead) / to.block;
          if (its_block != block) {
            block = its_block;
            absmax = to.scales[to.PlaceOfScale(block)];
            divides = total - block * to.block < to.block;
          }
          code = Encode4(ToFloat(from[col0 + ahead]), absmax, divides, book);
        }
        words[s] |= code << (8 * (2 * (j / 2) + half) + (j % 2 == 0 ? 4 : 0));
      }
    }
  }
  *reinterpret_cast<uint4*>(to.codes + tile * kTileBytes + lane * 16) =
      make_uint4(words[0], words[1], words[2], words[3]);
}

template <typename T>
__device__ __forceinline__ float ThroughF16(T v) {
  return FloatOfF16(BitsOfF16(ToFloat(v)));
}

template <typename T>
__global__ __launch_bounds__(kThreads) void QuantizeInt8RowsKernel(Target to, Matrix values) {
  __shared__ float parts[kWarps];
  const int tid = static_cast<int>(threadIdx.x);
  const int64_t r = blockIdx.x;
  const T* const row = static_cast<const T*>(values.data) + r * values.stride;
  float scb = 0.0f;
  for (int c = tid; c < to.k; c += kThreads) scb = fmaxf(scb, fabsf(ThroughF16(row[c])));
#pragma unroll
  for (int d = 16; d > 0; d /= 2) scb = fmaxf(scb, __shfl_xor_sync(~0u, scb, d));
  if (tid % 32 == 0) parts[tid / 32] = scb;
  __syncthreads();
#pragma unroll
  for (int i = 0; i < kWarps; ++i) scb = fmaxf(scb, parts[i]);
  if (tid == 0) to.scales[r] = scb;

  // torch divides a number by a tensor as reciprocal times number, which differs at ties.
  const float inverse = scb > 0.0f ? __fmul_rn(127.0f, __fdiv_rn(1.0f, scb)) : 0.0f;
  auto* const codes = reinterpret_cast<int8_t*>(to.codes) + r * to.k;
  for (int c = tid; c < to.k; c += kThreads) {
    // A NaN (also of infinity times 0) becomes 0; all else lies within +-127.
    codes[c] = static_cast<int8_t>(__float2int_rn(__fmul_rn(ThroughF16(row[c]), inverse)));
  }
}

unsigned BlocksFor(int64_t warps) { return static_cast<unsigned>((warps + kWarps - 1) / kWarps); }

template <typename T>
void LaunchBlock4(const Target& to, Matrix values, const CodeBook& book, Stream stream) {
  const int64_t blocks = (int64_t{to.rows} * to.k + to.block - 1) / to.block;
  const int64_t tiles = int64_t{(to.rows + kTileRows - 1) / kTileRows} * (to.padded_k / kTileCols);
  LAUNCH((BlockAbsmaxKernel<T>), BlocksFor(blocks), kThreads, 0, stream, to, values);
  LAUNCH((EncodeTilesKernel<T>), BlocksFor(tiles), kThreads, 0, stream, to, values, book);
  if (to.tiled_scales && to.rows % kTileRows != 0) {
    const int count = to.k / to.block * (kTileRows - to.rows % kTileRows);
    LAUNCH((PadScalesKernel), static_cast<unsigned>((count + kThreads - 1) / kThreads), kThreads, 0,
           stream, to);
  }
}

}  // namespace

void QuantizeBlock4(const WeightView& w, int segment, Matrix values, Stream stream) {
  if (values.rows == 0) return;
  static const CodeBook nf4 = MakeCodeBook(kNf4Table), fp4 = MakeCodeBook(kFp4Table);
  const CodeBook& book = w.codec == Codec::kNf4 ? nf4 : fp4;
  const Target to = TargetOf(w, segment, values);
  switch (values.type) {
    case FloatType::kF32: return LaunchBlock4<float>(to, values, book, stream);
    case FloatType::kF16: return LaunchBlock4<F16>(to, values, book, stream);
    case FloatType::kBF16: return LaunchBlock4<BF16>(to, values, book, stream);
  }
}

void QuantizeInt8Rows(const WeightView& w, int segment, Matrix values, Stream stream) {
  if (values.rows == 0) return;
  const Target to = TargetOf(w, segment, values);
  const unsigned rows = static_cast<unsigned>(values.rows);
  switch (values.type) {
    case FloatType::kF32:
      LAUNCH((QuantizeInt8RowsKernel<float>), rows, kThreads, 0, stream, to, values);
      return;
    case FloatType::kF16:
      LAUNCH((QuantizeInt8RowsKernel<F16>), rows, kThreads, 0, stream, to, values);
      return;
    case FloatType::kBF16:
      LAUNCH((QuantizeInt8RowsKernel<BF16>), rows, kThreads, 0, stream, to, values);
      return;
  }
}

}  // namespace quantd::QUANTD_CUDA_NS
