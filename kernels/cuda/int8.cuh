// What the kernels of int8 activations share, LLM.int8's and plain ones: where a row of a weight
// lies, elements of any activation type, and the arithmetic that turns an int32 sum and a row's
// outliers into an element of y.
//
// Both ways to the int32 sums (our mma kernels, cuBLASLt) end in the functions below, and integer
// sums have no order, so all of them give the same bits for every number of rows.
//
// Order of the outliers' additions: kOutlierParts partial sums, each ascending, joined as
// JoinOutlierParts says. A row with a list (counts <= kMaxOutliers) puts entry i into part
// i % kOutlierParts; a row with more goes through its mask and puts the columns of word i into part
// i % kOutlierParts. Either is a function of the row alone.
#pragma once

#include <cstdint>

#include "kernels/cuda/numeric.cuh"
#include "kernels/cuda/ops.h"
#include "kernels/cuda/ptx.cuh"
#include "kernels/cuda/target.h"
#include "kernels/cuda/weight_decode.cuh"

namespace quantd::QUANTD_CUDA_NS {

inline constexpr int kOutlierParts = 8;
/// The step of an int8 weight is SCB * kWeightStep (kInt8Step of quant/format.h).
inline constexpr float kWeightStep = 1.0f / 127.0f;

/// A row of an int8 weight.
struct Int8Row {
  const int8_t* codes = nullptr;  // [k]
  float scale = 0.0f;             // as stored: LLM.int8's SCB
};

/// Row `row` (a column of y) of `w`. Selects, since indexing a kernel's argument would copy it.
__device__ __forceinline__ Int8Row Int8RowOf(const WeightView& w, int row) {
  const uint8_t* codes = w.segments[0].codes;
  const void* scales = w.segments[0].scales;
  int first = 0;
#pragma unroll
  for (int s = 1; s < WeightView::kMaxSegments; ++s) {
    if (s < w.num_segments && row >= w.segments[s].first_row) {
      codes = w.segments[s].codes;
      scales = w.segments[s].scales;
      first = w.segments[s].first_row;
    }
  }
  const int64_t local = row - first;
  return {reinterpret_cast<const int8_t*>(codes) + local * w.k,
          LoadRowScale(w.scale, scales, local)};
}

/// sum + x * (code * step): the product of the weight is rounded to f32, as ref's is.
__device__ __forceinline__ float AddOutlier(float sum, float x, int code, float step) {
  return __fmaf_rn(x, __fmul_rn(static_cast<float>(code), step), sum);
}

/// The parts' sum. Lanes that hold one part each get the same bits from additions over lane ^ 4,
/// lane ^ 2, lane ^ 1, since an addition does not care which operand comes first.
__device__ __forceinline__ float JoinOutlierParts(const float (&p)[kOutlierParts]) {
  const float even = __fadd_rn(__fadd_rn(p[0], p[4]), __fadd_rn(p[2], p[6]));
  const float odd = __fadd_rn(__fadd_rn(p[1], p[5]), __fadd_rn(p[3], p[7]));
  return __fadd_rn(even, odd);
}

/// y before it is rounded to its type: the int8 part, then the outliers, then the bias.
__device__ __forceinline__ float FinishInt8(int32_t sum, float row_scale, float weight_scale,
                                            float divisor, float outliers, const float* bias,
                                            int row) {
  const float scale = __fdiv_rn(__fmul_rn(row_scale, weight_scale), divisor);
  const float y = __fadd_rn(__fmul_rn(static_cast<float>(sum), scale), outliers);
  return bias == nullptr ? y : __fadd_rn(y, bias[row]);
}

/// int32 sums waiting in memory: parts of k, each [m, n].
struct Int8Sums {
  const int32_t* data = nullptr;
  int64_t stride = 0;        // from row to row of x
  int64_t split_stride = 0;  // from part to part of k
  int32_t splits = 1;
};

/// y from `sums`, which are those of the rows of x and of `a`.
void LaunchInt8Rescale(const WeightView& w, Matrix x, const Int8Activations& a,
                       const Int8Sums& sums, const float* bias, Matrix y, Stream stream);
/// Writes `sums`: part s, row r, column c = the sum of the codes' products over part s of k.
void LaunchInt8Tiles(const WeightView& w, const Int8Activations& a, int32_t m, const Int8Sums& sums,
                     Stream stream);

/// `a` from row `row` on.
inline Int8Activations RowsFrom(Int8Activations a, int64_t row) {
  a.codes += row * a.padded_k;
  a.scales += row;
  a.counts += row;
  a.columns += row * Int8Activations::kMaxOutliers;
  a.masks += row * (a.padded_k / 32);
  return a;
}

}  // namespace quantd::QUANTD_CUDA_NS
