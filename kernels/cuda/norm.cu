// RMS norms (Zhang and Sennrich, 2019): of rows, alone and fused with the addition to the residual,
// and of the heads of q and k (NormHeadsKernel, which has its own mapping).
//
// Idea: a row is read once, held in registers as f32, summed, scaled and stored.
// Mapping: one block a row; thread t owns the groups t, t + blockDim, ... of eight columns. Thread
// and group counts are a function of the number of columns alone, and the sum runs over a thread's
// columns ascending, then over lanes and warps in a fixed tree. So a row's bits depend on its
// values only: not on the batch, and not on alignment, since the narrow kernel adds in the same
// order.
//
// Bytes moved an element (16-bit types): RmsNorm 4, AddRmsNorm 8, NormHeads 4; the f32 weight comes
// from L2. Bound: memory bandwidth in prefill, the latency of one block (two loads, one barrier) in
// decode.
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
constexpr int kHeadThreads = 256;  // of NormHeadsKernel: eight heads

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

/// Heads of q, then of k, of one call of NormHeads.
template <typename T>
struct HeadNormArgs {
  T* q;
  T* k;
  int64_t q_stride, k_stride;
  const float* q_weight;
  const float* k_weight;
  float eps;
  int num_heads, num_kv_heads, head_dim;
};

/// A warp a head, a lane every 32nd element, read again from L1 for the second pass. The sum goes
/// over a lane's elements ascending, then over lanes in a fixed tree.
template <typename T>
__global__ void __launch_bounds__(kHeadThreads) NormHeadsKernel(HeadNormArgs<T> a) {
  const int64_t row = blockIdx.x;
  const int warp = static_cast<int>(blockIdx.y * kHeadThreads + threadIdx.x) / kWarp;
  if (warp >= a.num_heads + a.num_kv_heads) return;
  const bool is_query = warp < a.num_heads;
  T* const x = is_query ? a.q + row * a.q_stride + warp * a.head_dim
                        : a.k + row * a.k_stride + (warp - a.num_heads) * a.head_dim;
  const float* const weight = is_query ? a.q_weight : a.k_weight;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  float sum = 0.0f;
  for (int i = lane; i < a.head_dim; i += kWarp) {
    const float v = ToFloat(x[i]);
    sum = fmaf(v, v, sum);
  }
  const float inverse = 1.0f / sqrtf(WarpSum(sum) / static_cast<float>(a.head_dim) + a.eps);
  for (int i = lane; i < a.head_dim; i += kWarp) {
    x[i] = FromFloat<T>(ToFloat(x[i]) * inverse * weight[i]);
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

void NormHeads(Matrix q, Matrix k, const float* q_weight, const float* k_weight, float eps,
               const AttentionShape& shape, Stream stream) {
  if (q.rows == 0) return;
  const int threads = (shape.num_heads + shape.num_kv_heads) * kWarp;
  const dim3 grid(static_cast<unsigned>(q.rows),
                  static_cast<unsigned>(CeilDiv(threads, kHeadThreads)));
  WithType(q.type, [&](auto type) {
    using T = typename decltype(type)::Type;
    const HeadNormArgs<T> args{static_cast<T*>(q.data),
                               static_cast<T*>(k.data),
                               q.stride,
                               k.stride,
                               q_weight,
                               k_weight,
                               eps,
                               shape.num_heads,
                               shape.num_kv_heads,
                               shape.head_dim};
    LAUNCH((NormHeadsKernel<T>), grid, dim3(kHeadThreads), 0, stream, args);
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
