// Sixteen-bit floats in kernels: nvcc's intrinsics on the device, kernels/quant/float_types.h under
// emulation; both round to nearest even, so results agree to the bit.
#pragma once

#include <bit>
#include <cstdint>
#include <type_traits>

#include "kernels/cuda/target.h"
#include "kernels/quant/float_types.h"

#ifndef QUANTD_CUDA_EMULATED
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#endif

namespace quantd::QUANTD_CUDA_NS {

#ifdef QUANTD_CUDA_EMULATED
inline uint16_t BitsOfBF16(float f) { return BF16(f).bits; }
inline uint16_t BitsOfF16(float f) { return F16(f).bits; }
inline float FloatOfF16(uint16_t bits) {
  F16 h;
  h.bits = bits;
  return static_cast<float>(h);
}
#else
__device__ __forceinline__ uint16_t BitsOfBF16(float f) {
  return __bfloat16_as_ushort(__float2bfloat16_rn(f));
}
__device__ __forceinline__ uint16_t BitsOfF16(float f) {
  return __half_as_ushort(__float2half_rn(f));
}
__device__ __forceinline__ float FloatOfF16(uint16_t bits) {
  return __half2float(__ushort_as_half(bits));
}
#endif

__device__ __forceinline__ float FloatOfBF16(uint16_t bits) {
#ifdef QUANTD_CUDA_EMULATED
  return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16);
#else
  return __uint_as_float(static_cast<uint32_t>(bits) << 16);
#endif
}

/// Load and store of one element of BF16, F16 or float as float.
__device__ __forceinline__ float ToFloat(BF16 v) { return FloatOfBF16(v.bits); }
__device__ __forceinline__ float ToFloat(F16 v) { return FloatOfF16(v.bits); }
__device__ __forceinline__ float ToFloat(float v) { return v; }
__device__ __forceinline__ float ToFloat(int8_t v) { return static_cast<float>(v); }

template <typename T>
__device__ __forceinline__ T FromFloat(float v);
template <>
__device__ __forceinline__ BF16 FromFloat<BF16>(float v) {
  BF16 r;
  r.bits = BitsOfBF16(v);
  return r;
}
template <>
__device__ __forceinline__ F16 FromFloat<F16>(float v) {
  F16 r;
  r.bits = BitsOfF16(v);
  return r;
}
template <>
__device__ __forceinline__ float FromFloat<float>(float v) {
  return v;
}

#ifdef QUANTD_CUDA_EMULATED
/// f of the low halves of a and b, and of the high ones, each rounded to T.
template <typename T, typename F>
uint32_t OfPairs(uint32_t a, uint32_t b, F f) {
  const auto half = [&](int shift) {
    T x, y;
    x.bits = static_cast<uint16_t>(a >> shift);
    y.bits = static_cast<uint16_t>(b >> shift);
    return static_cast<uint32_t>(FromFloat<T>(f(ToFloat(x), ToFloat(y))).bits) << shift;
  };
  return half(0) | half(16);
}
#else
/// f of nvcc's own pairs.
template <typename T, typename F>
__device__ __forceinline__ uint32_t OfPairs(uint32_t a, uint32_t b, F f) {
  if constexpr (std::is_same_v<T, BF16>) {
    const __nv_bfloat162 x(std::bit_cast<__nv_bfloat162_raw>(a));
    const __nv_bfloat162 y(std::bit_cast<__nv_bfloat162_raw>(b));
    return std::bit_cast<uint32_t>(static_cast<__nv_bfloat162_raw>(f(x, y)));
  } else {
    const __half2 x(std::bit_cast<__half2_raw>(a)), y(std::bit_cast<__half2_raw>(b));
    return std::bit_cast<uint32_t>(static_cast<__half2_raw>(f(x, y)));
  }
}
#endif

/// Pairs of T in words: a - b, a * b, rounded.
template <typename T>
__device__ __forceinline__ uint32_t SubtractPairs(uint32_t a, uint32_t b) {
  return OfPairs<T>(a, b, [](auto x, auto y) {
#ifdef QUANTD_CUDA_EMULATED
    return x - y;
#else
    return __hsub2(x, y);
#endif
  });
}
template <typename T>
__device__ __forceinline__ uint32_t MultiplyPairs(uint32_t a, uint32_t b) {
  return OfPairs<T>(a, b, [](auto x, auto y) {
#ifdef QUANTD_CUDA_EMULATED
    return x * y;
#else
    return __hmul2(x, y);
#endif
  });
}

}  // namespace quantd::QUANTD_CUDA_NS
