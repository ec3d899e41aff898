// RMS norms (Zhang and Sennrich, 2019), alone and fused with the addition to the residual.
//
// Idea: a row is read once, held in registers as f32, summed, scaled and stored.
// Mapping: one block a row; thread t owns the groups t, t + blockDim, ... of eight columns. Thread
// and group counts are a function of the number of columns alone, and the sum runs over a thread's
// columns ascending, then over lanes and warps in a fixed tree. So a row's bits depend on its
// values only: not on the batch, and not on alignment, since the narrow kernel adds in the same
// order.
//
// Bytes moved an element (16-bit types): RmsNorm 4, AddRmsNorm 8; the f32 weight comes from L2.
// Bound: memory bandwidth in prefill, the latency of one block (two loads, one barrier) in decode.
//
// Rounding: the sum of squares and the scaling are f32 with one rounding on store; AddRmsNorm
// rounds the sum, stores it, and norms what it stored.
#include <cmath>

#include "kernels/cuda/elements.cuh"
#include "kernels/cuda/ops.h"
#include "kernels/cuda/reduce.cuh"

namespace quantd::QUANTD_CUDA_NS {
namespace {

constexpr int kMaxThreads = 512;

/// Arrays of one call. `residual` is unused by RmsNorm. out may be x or residual.
template <typename T>
struct NormArgs {
  const T* x;
  int64_t x_stride;
  T* residual;
  int64_t residual_stride;
  const float* weight;
  float eps;
  T* out;
  int64_t out_stride;
  int cols;
};

/// 1 / sqrt(mean square + eps) of the row, in every thread.
__device__ __forceinline__ float InverseRms(float sum, int cols, float eps) {
  __shared__ float partial[32];
  sum = BlockSum(sum, partial);
  return 1.0f / sqrtf(sum / static_cast<float>(cols) + eps);
}

/// Every row 16-byte aligned, at most kGroups groups a thread.
template <typename T, bool kAdd, int kGroups>
__global__ void __launch_bounds__(kMaxThreads) WideNormKernel(NormArgs<T> a) {
  const int64_t row = blockIdx.x;
  float v[kGroups][kGroup], w[kGroups][kGroup];
  float sum = 0.0f;
#pragma unroll
  for (int g = 0; g < kGroups; ++g) {
    const int col = static_cast<int>(threadIdx.x + g * blockDim.x) * kGroup;
    if (col >= a.cols) continue;
    Load<kGroup>(a.x + row * a.x_stride + col, v[g]);
    if constexpr (kAdd) {
      float r[kGroup];
      T* const residual = a.residual + row * a.residual_stride + col;
      Load<kGroup>(residual, r);
#pragma unroll
      for (int i = 0; i < kGroup; ++i) v[g][i] = ToFloat(FromFloat<T>(r[i] + v[g][i]));
      Store<kGroup>(residual, v[g]);
    }
    Load<kGroup>(a.weight + col, w[g]);  // before the barrier, so that its latency is hidden
#pragma unroll
    for (int i = 0; i < kGroup; ++i) sum = fmaf(v[g][i], v[g][i], sum);
  }
  const float inverse = InverseRms(sum, a.cols, a.eps);
#pragma unroll
  for (int g = 0; g < kGroups; ++g) {
    const int col = static_cast<int>(threadIdx.x + g * blockDim.x) * kGroup;
    if (col >= a.cols) continue;
#pragma unroll
    for (int i = 0; i < kGroup; ++i) v[g][i] = v[g][i] * inverse * w[g][i];
    Store<kGroup>(a.out + row * a.out_stride + col, v[g]);
  }
}

/// Any alignment, any number of columns: element by element, the row read twice.
template <typename T, bool kAdd>
__global__ void __launch_bounds__(kMaxThreads) NarrowNormKernel(NormArgs<T> a) {
  const int64_t row = blockIdx.x;
  T* const residual = kAdd ? a.residual + row * a.residual_stride : nullptr;
  const T* const x = a.x + row * a.x_stride;
  const T* const summed = kAdd ? residual : x;
  T* const out = a.out + row * a.out_stride;
  const int step = static_cast<int>(blockDim.x) * kGroup;
  float sum = 0.0f;
  for (int first = static_cast<int>(threadIdx.x) * kGroup; first < a.cols; first += step) {
    const int end = first + kGroup < a.cols ? first + kGroup : a.cols;
    for (int col = first; col < end; ++col) {
      if constexpr (kAdd) residual[col] = FromFloat<T>(ToFloat(residual[col]) + ToFloat(x[col]));
      const float v = ToFloat(summed[col]);
      sum = fmaf(v, v, sum);
    }
  }
  const float inverse = InverseRms(sum, a.cols, a.eps);
  for (int first = static_cast<int>(threadIdx.x) * kGroup; first < a.cols; first += step) {
    const int end = first + kGroup < a.cols ? first + kGroup : a.cols;
    for (int col = first; col < end; ++col) {
      out[col] = FromFloat<T>(ToFloat(summed[col]) * inverse * a.weight[col]);
    }
  }
}

template <typename T, bool kAdd>
void LaunchNorm(const NormArgs<T>& args, int rows, bool wide, Stream stream) {
  // As few groups a thread as kMaxThreads allow, then no more threads than those groups need.
  const int groups = CeilDiv(args.cols, kGroup);
  const int per_thread = CeilDiv(groups, kMaxThreads);
  const int threads = CeilDiv(CeilDiv(groups, per_thread), kWarp) * kWarp;
  const dim3 grid(static_cast<unsigned>(rows)), block(static_cast<unsigned>(threads));
  if (!wide || per_thread > 4) {
    LAUNCH((NarrowNormKernel<T, kAdd>), grid, block, 0, stream, args);
  } else if (per_thread == 1) {
    LAUNCH((WideNormKernel<T, kAdd, 1>), grid, block, 0, stream, args);
  } else if (per_thread == 2) {
    LAUNCH((WideNormKernel<T, kAdd, 2>), grid, block, 0, stream, args);
  } else {
    LAUNCH((WideNormKernel<T, kAdd, 4>), grid, block, 0, stream, args);
  }
}

}  // namespace

void RmsNorm(Matrix x, const float* weight, float eps, Matrix out, Stream stream) {
  if (x.rows == 0) return;
  WithType(x.type, [&](auto type) {
    using T = typename decltype(type)::Type;
    const NormArgs<T> args{static_cast<const T*>(x.data), x.stride,   nullptr, 0, weight, eps,
                           static_cast<T*>(out.data),     out.stride, x.cols};
    LaunchNorm<T, false>(args, x.rows, IsWide(x) && IsWide(out) && IsAligned16(weight), stream);
  });
}

void AddRmsNorm(Matrix residual, Matrix x, const float* weight, float eps, Matrix out,
                Stream stream) {
  if (x.rows == 0) return;
  WithType(x.type, [&](auto type) {
    using T = typename decltype(type)::Type;
    const NormArgs<T> args{static_cast<const T*>(x.data),
                           x.stride,
                           static_cast<T*>(residual.data),
                           residual.stride,
                           weight,
                           eps,
                           static_cast<T*>(out.data),
                           out.stride,
                           x.cols};
    LaunchNorm<T, true>(
        args, x.rows, IsWide(residual) && IsWide(x) && IsWide(out) && IsAligned16(weight), stream);
  });
}

}  // namespace quantd::QUANTD_CUDA_NS
