// The second half of LLM.int8's Linear where the int32 sums are in memory (cuBLASLt, int8_tiles.cu,
// a split stream): scales, outliers, bias and rounding in one pass.
//
// Idea: the outlier columns of neighbouring rows of x are mostly the same few, and a byte of the
// weight costs a sector of 32, so a block gathers the columns that its rows of x have between them
// once, transposed, and every element then finds its codes in shared memory. Rows of x with more
// outliers than a list holds, and blocks whose columns are more than fit, read the weight itself,
// in the same order. Mapping: a block 128 columns of y x 32 rows; a warp a row at a time, a lane
// four columns. Bytes: 4 read (times the splits) and 2 or 4 written an element of y, both
// coalesced; 32 a column and weight row of the tile for the outliers. Bound: L2 or DRAM bandwidth
// over the sums.
#include <cstdint>

#include "kernels/cuda/int8.cuh"

namespace quantd::QUANTD_CUDA_NS {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
constexpr int kColumns = 128;  // of y a block
constexpr int kPerLane = kColumns / 32;
constexpr int kTokens = 32;    // rows of x a block;
constexpr int kFewTokens = 8;  // where there are few, for the sake of more blocks
constexpr int kFewRows = 128;
constexpr int kMaxGathered = 128;  // outlier columns in shared memory

/// What a block has gathered; in dynamic shared memory.
struct Gathered {
  uint32_t* mask;     // [words] columns of any of the block's rows
  int32_t* rank;      // [words] columns in the words before
  uint32_t* columns;  // [kMaxGathered]
  uint32_t* codes;    // [kMaxGathered][kColumns / 4] four rows of the weight a word
};

size_t GatheredBytes(int words) {
  return sizeof(uint32_t) * (size_t{2} * static_cast<size_t>(words) + kMaxGathered +
                             size_t{kMaxGathered} * (kColumns / 4));
}

__device__ __forceinline__ Gathered GatheredAt(uint32_t* shared, int words) {
  Gathered s;
  s.mask = shared;
  s.rank = reinterpret_cast<int32_t*>(shared + words);
  s.columns = shared + 2 * words;
  s.codes = s.columns + kMaxGathered;
  return s;
}

/// Fills `s` with the columns of the listed outliers of rows first_token .. first_token + tokens -
/// 1; gives their number: 0 when there are none, and above kMaxGathered codes are not there.
__device__ __forceinline__ int Gather(const WeightView& w, const Int8Activations& a,
                                      int first_column, int first_token, int tokens,
                                      const Gathered& s) {
  __shared__ int total;
  const int tid = static_cast<int>(threadIdx.x), lane = tid % 32, warp = tid / 32;
  const int words = a.padded_k / 32;
  const int count = tid < tokens ? a.counts[first_token + tid] : 0;
  if (__syncthreads_or(count > 0) == 0) return 0;
  for (int i = tid; i < words; i += kThreads) s.mask[i] = 0;
  __syncthreads();
  for (int token = warp; token < tokens; token += kWarps) {
    const int64_t row = first_token + token;
    const int listed = a.counts[row];
    if (listed > Int8Activations::kMaxOutliers) continue;
    for (int i = lane; i < listed; i += 32) {
      const int c = a.columns[row * Int8Activations::kMaxOutliers + i];
      atomicOr(&s.mask[c / 32], 1u << c % 32);
    }
  }
  __syncthreads();
  if (warp == 0) {
    int before = 0;
    for (int base = 0; base < words; base += 32) {
      uint32_t bits = base + lane < words ? s.mask[base + lane] : 0;
      const int mine = __popc(bits);
      int upto = mine;
#pragma unroll
      for (int d = 1; d < 32; d *= 2) {
        const int below = __shfl_up_sync(~0u, upto, d);
        if (lane >= d) upto += below;
      }
      int at = before + upto - mine;
      if (base + lane < words) s.rank[base + lane] = at;
      for (; bits != 0 && at < kMaxGathered; bits &= bits - 1) {
        s.columns[at++] =
            static_cast<uint32_t>((base + lane) * 32 + __ffs(static_cast<int>(bits)) - 1);
      }
      before += __shfl_sync(~0u, upto, 31);
    }
    if (lane == 0) total = before;
  }
  __syncthreads();
  if (total <= kMaxGathered) {
    const int column = first_column + tid % kColumns;
    const int8_t* const row = Int8RowOf(w, min(column, w.n - 1)).codes;
    auto* const codes = reinterpret_cast<int8_t*>(s.codes);
    for (int i = tid / kColumns; i < total; i += kThreads / kColumns) {
      codes[i * kColumns + tid % kColumns] = row[s.columns[i]];
    }
  }
  __syncthreads();
  return total;
}

/// Four columns' outlier parts of one row of x.
struct Parts {
  float v[kPerLane][kOutlierParts];
};

/// Adds the outliers of row `token`; `gathered` says whether their codes are in `s`.
__device__ __forceinline__ void AddListed(const WeightView& w, const Matrix& x, int token,
                                          const Int8Activations& a, int count, bool gathered,
                                          const Gathered& s, int column, const float* steps,
                                          Parts& parts) {
  const int lane = threadIdx.x % 32;
  const int32_t* columns = a.columns + int64_t{token} * Int8Activations::kMaxOutliers;
  for (int i = 0; i < count; i += kOutlierParts) {
#pragma unroll
    for (int p = 0; p < kOutlierParts; ++p) {
      if (i + p >= count) break;
      const int c = columns[i + p];
      const float value = LoadFloat(x.type, x.data, token * x.stride + c);
      uint32_t codes = 0;
      if (gathered) {
        const int slot = s.rank[c / 32] + __popc(s.mask[c / 32] & ((1u << c % 32) - 1));
        codes = s.codes[slot * (kColumns / 4) + lane];
      } else {
#pragma unroll
        for (int j = 0; j < kPerLane; ++j) {
          const int8_t code = Int8RowOf(w, min(column + j, w.n - 1)).codes[c];
          codes |= static_cast<uint32_t>(static_cast<uint8_t>(code)) << 8 * j;
        }
      }
#pragma unroll
      for (int j = 0; j < kPerLane; ++j) {
        parts.v[j][p] =
            AddOutlier(parts.v[j][p], value, static_cast<int8_t>(codes >> 8 * j & 0xffu), steps[j]);
      }
    }
  }
}

/// The same of a row whose outliers are more than a list holds, by its mask.
__device__ __forceinline__ void AddMasked(const WeightView& w, const Matrix& x, int token,
                                          const Int8Activations& a, int column, const float* steps,
                                          Parts& parts) {
  const int words = a.padded_k / 32;
  const uint32_t* mask = a.masks + int64_t{token} * words;
  const int8_t* rows[kPerLane];
#pragma unroll
  for (int j = 0; j < kPerLane; ++j) rows[j] = Int8RowOf(w, min(column + j, w.n - 1)).codes;
  for (int i = 0; i < words; i += kOutlierParts) {
#pragma unroll
    for (int p = 0; p < kOutlierParts; ++p) {
      for (uint32_t bits = i + p < words ? mask[i + p] : 0; bits != 0; bits &= bits - 1) {
        const int c = (i + p) * 32 + __ffs(static_cast<int>(bits)) - 1;
        const float value = LoadFloat(x.type, x.data, token * x.stride + c);
#pragma unroll
        for (int j = 0; j < kPerLane; ++j) {
          parts.v[j][p] = AddOutlier(parts.v[j][p], value, rows[j][c], steps[j]);
        }
      }
    }
  }
}

/// Stores the first min(count, kPerLane) of `v` at element `at`.
__device__ __forceinline__ void StoreColumns(const Matrix& y, int64_t at,
                                             const float (&v)[kPerLane], int count, bool vector) {
  if (!vector || count < kPerLane) {
    for (int j = 0; j < kPerLane && j < count; ++j) StoreFloat(y.type, y.data, at + j, v[j]);
  } else if (y.type == FloatType::kF32) {
    *reinterpret_cast<float4*>(static_cast<float*>(y.data) + at) =
        make_float4(v[0], v[1], v[2], v[3]);
  } else {
    uint32_t bits[kPerLane];
#pragma unroll
    for (int j = 0; j < kPerLane; ++j) {
      bits[j] = y.type == FloatType::kBF16 ? BitsOfBF16(v[j]) : BitsOfF16(v[j]);
    }
    *reinterpret_cast<uint2*>(static_cast<uint16_t*>(y.data) + at) =
        make_uint2(bits[0] | bits[1] << 16, bits[2] | bits[3] << 16);
  }
}

/// `vector`: four sums may be read at once and four elements of y written.
__global__ __launch_bounds__(kThreads,
                             2) void Int8RescaleKernel(WeightView w, Matrix x, Int8Activations a,
                                                       Int8Sums sums, const float* bias, Matrix y,
                                                       int tokens_per_block, bool vector) {
  DYN_SMEM(uint32_t, shared);
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int first_column = static_cast<int>(blockIdx.x) * kColumns;
  const int first_token = static_cast<int>(blockIdx.y) * tokens_per_block;
  const int tokens = min(tokens_per_block, x.rows - first_token);
  const Gathered s = GatheredAt(shared, a.padded_k / 32);
  const int total = Gather(w, a, first_column, first_token, tokens, s);

  const int column = first_column + lane * kPerLane;
  if (column >= w.n) return;
  float scales[kPerLane], steps[kPerLane];
#pragma unroll
  for (int j = 0; j < kPerLane; ++j) {
    scales[j] = Int8RowOf(w, min(column + j, w.n - 1)).scale;
    steps[j] = __fmul_rn(scales[j], kWeightStep);
  }
  for (int token = first_token + warp; token < first_token + tokens; token += kWarps) {
    int32_t sum[kPerLane] = {};
#pragma unroll 4
    for (int part = 0; part < sums.splits; ++part) {
      const int32_t* from = sums.data + part * sums.split_stride + token * sums.stride + column;
      if (vector && column + kPerLane <= w.n) {
        const int4 four = *reinterpret_cast<const int4*>(from);
        sum[0] += four.x;
        sum[1] += four.y;
        sum[2] += four.z;
        sum[3] += four.w;
      } else {
#pragma unroll
        for (int j = 0; j < kPerLane; ++j) sum[j] += column + j < w.n ? from[j] : 0;
      }
    }
    Parts parts = {};
    const int count = a.counts[token];
    if (count > Int8Activations::kMaxOutliers) {
      AddMasked(w, x, token, a, column, steps, parts);
    } else {
      AddListed(w, x, token, a, count, total <= kMaxGathered, s, column, steps, parts);
    }
    const float row_scale = a.scales[token];
    float v[kPerLane];
#pragma unroll
    for (int j = 0; j < kPerLane; ++j) {
      v[j] = FinishInt8(sum[j], row_scale, scales[j], a.divisor, JoinOutlierParts(parts.v[j]), bias,
                        min(column + j, w.n - 1));
    }
    StoreColumns(y, token * y.stride + column, v, w.n - column, vector);
  }
}

}  // namespace

void LaunchInt8Rescale(const WeightView& w, Matrix x, const Int8Activations& a,
                       const Int8Sums& sums, const float* bias, Matrix y, Stream stream) {
  if (x.rows == 0) return;
  const bool vector = sums.stride % 4 == 0 && sums.split_stride % 4 == 0 &&
                      reinterpret_cast<uintptr_t>(sums.data) % 16 == 0 && y.stride % 4 == 0 &&
                      reinterpret_cast<uintptr_t>(y.data) % 16 == 0;
  const int tokens = x.rows <= kFewRows ? kFewTokens : kTokens;
  const dim3 grid(static_cast<unsigned>((w.n + kColumns - 1) / kColumns),
                  static_cast<unsigned>((x.rows + tokens - 1) / tokens));
  LAUNCH((Int8RescaleKernel), grid, kThreads, GatheredBytes(a.padded_k / 32), stream, w, x, a, sums,
         bias, y, tokens, vector);
}

}  // namespace quantd::QUANTD_CUDA_NS
