// Reductions of a warp and of a block, with a fixed order: float sums are the same bits in every
// run.
#pragma once

#include <cstdint>

#include "kernels/cuda/target.h"

namespace quantd::QUANTD_CUDA_NS {

inline constexpr int kWarp = 32;
inline constexpr uint32_t kAllLanes = 0xffffffffu;

/// The sum over the warp, in every lane. Addition commutes, so all lanes get the same bits.
template <typename T>
__device__ __forceinline__ T WarpSum(T v) {
  for (int step = kWarp / 2; step > 0; step /= 2) v += __shfl_xor_sync(kAllLanes, v, step);
  return v;
}

template <typename T>
__device__ __forceinline__ T WarpMax(T v) {
  for (int step = kWarp / 2; step > 0; step /= 2) {
    const T other = __shfl_xor_sync(kAllLanes, v, step);
    v = v > other ? v : other;
  }
  return v;
}

/// Sum of this lane's value and those of the lanes below.
template <typename T>
__device__ __forceinline__ T WarpInclusiveSum(T v) {
  const int lane = static_cast<int>(threadIdx.x % kWarp);
  for (int step = 1; step < kWarp; step *= 2) {
    const T below = __shfl_up_sync(kAllLanes, v, step);
    if (lane >= step) v += below;
  }
  return v;
}

/// The sum over a one-dimensional block of whole warps, in every thread. `partial` is shared memory
/// for a value of each warp (32 at most); it may be reused after the next __syncthreads().
template <typename T>
__device__ __forceinline__ T BlockSum(T v, T* partial) {
  const int lane = static_cast<int>(threadIdx.x % kWarp);
  const int warps = static_cast<int>(blockDim.x / kWarp);
  v = WarpSum(v);
  if (lane == 0) partial[threadIdx.x / kWarp] = v;
  __syncthreads();
  return WarpSum(lane < warps ? partial[lane] : T{});
}

}  // namespace quantd::QUANTD_CUDA_NS
