// Operands of the 16-bit mma: its products by element type, and codes of one byte as pairs of that
// type. Every conversion is exact.
#pragma once

#include <cstdint>
#include <type_traits>

#include "kernels/cuda/numeric.cuh"
#include "kernels/cuda/ptx.cuh"
#include "kernels/cuda/target.h"

namespace quantd::QUANTD_CUDA_NS {

/// Two ones of T in a word: an operand of them sums the other operand.
template <typename T>
inline constexpr uint32_t kOnesPair = std::is_same_v<T, BF16> ? 0x3f803f80u : 0x3c003c00u;

/// d += a * b, operands of T (BF16 or F16), f32 sums; fragments as in ptx.cuh.
template <typename T>
__device__ __forceinline__ void Mma(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  if constexpr (std::is_same_v<T, BF16>) {
    MmaBF16(d, a, b);
  } else {
    MmaF16(d, a, b);
  }
}

/// Bytes i and j of `codes`, two's complement, as a pair of T: they become the low mantissa bits of
/// numbers whose ulp is 1, and what was added is taken away again.
template <typename T, int i, int j>
__device__ __forceinline__ uint32_t PairOfCodes(uint32_t codes) {
  constexpr uint32_t kSelector = 0x4040u | i | j << 8;  // a byte of the second word above each
  if constexpr (std::is_same_v<T, F16>) {
    // 1024 + (code + 128)
    return SubtractPairs<F16>(__byte_perm(codes ^ 0x80808080u, 0x64646464u, kSelector),
                              0x64806480u);
  } else {
    // Seven mantissa bits: 128 + code % 128. The sign bit lies where it makes 128 a 256.
    const uint32_t pair = __byte_perm(codes, 0x43434343u, kSelector);
    return SubtractPairs<BF16>(pair & 0xff7fff7fu, pair & 0xff80ff80u);
  }
}

/// The same of e4m3 codes: exponent and mantissa are put where T has them, and the difference of
/// the two biases is a power of two; subnormals of e4m3 are such of T until it is multiplied. A NaN
/// becomes 480.
template <typename T, int i, int j>
__device__ __forceinline__ uint32_t PairOfE4M3(uint32_t codes) {
  const uint32_t pair = __byte_perm(codes, 0u, 0x0404u | i << 4 | j << 12);  // in the high bytes
  if constexpr (std::is_same_v<T, F16>) {
    return MultiplyPairs<F16>((pair & 0x80008000u) | (pair >> 1 & 0x3f803f80u), 0x5c005c00u);
  } else {
    return MultiplyPairs<BF16>((pair & 0x80008000u) | (pair >> 4 & 0x07f007f0u), 0x7b807b80u);
  }
}

}  // namespace quantd::QUANTD_CUDA_NS
