// Sixteen-bit and smaller floating-point types as plain bit patterns, for host and device alike.
//
// CUDA's own types appear only in kernels/cuda; these are what files, formats and tests speak. All
// conversions to a narrower type round to nearest, ties to even, and keep NaN a NaN.
#pragma once

#include <bit>
#include <cstdint>

#if defined(__CUDACC__)
#define QUANTD_HOST_DEVICE __host__ __device__
#else
#define QUANTD_HOST_DEVICE
#endif

namespace quantd {

/// bfloat16: 1 sign, 8 exponent, 7 fraction bits.
struct BF16 {
  uint16_t bits = 0;

  BF16() = default;
  QUANTD_HOST_DEVICE explicit BF16(float f) {
    const uint32_t u = std::bit_cast<uint32_t>(f);
    bits =
        (u & 0x7fffffffu) > 0x7f800000u
            ? static_cast<uint16_t>((u >> 16) | 0x40u)  // quiet the NaN: rounding could reach inf
            : static_cast<uint16_t>((u + 0x7fffu + ((u >> 16) & 1u)) >> 16);
  }
  QUANTD_HOST_DEVICE explicit operator float() const {
    return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16);
  }
};

/// IEEE binary16: 1 sign, 5 exponent, 10 fraction bits; values above 65504 round to infinity.
struct F16 {
  uint16_t bits = 0;

  F16() = default;
  QUANTD_HOST_DEVICE explicit F16(float f) {
    const uint32_t u = std::bit_cast<uint32_t>(f);
    const uint16_t sign = static_cast<uint16_t>((u >> 16) & 0x8000u);
    const uint32_t magnitude = u & 0x7fffffffu;
    if (magnitude > 0x7f800000u) {
      bits = static_cast<uint16_t>(sign | 0x7e00u);
    } else if (magnitude >= 0x477ff000u) {  // 65520 and above: nearest is infinity
      bits = static_cast<uint16_t>(sign | 0x7c00u);
    } else if (magnitude < 0x38800000u) {  // below 2^-14: subnormal; the adder does the rounding
      const float shifted = std::bit_cast<float>(magnitude) + 0.5f;
      bits = static_cast<uint16_t>(sign | (std::bit_cast<uint32_t>(shifted) - 0x3f000000u));
    } else {
      const uint32_t rounded = magnitude + 0xfffu + ((magnitude >> 13) & 1u);
      bits = static_cast<uint16_t>(sign | ((rounded - 0x38000000u) >> 13));
    }
  }
  QUANTD_HOST_DEVICE explicit operator float() const {
    const uint32_t sign = static_cast<uint32_t>(bits & 0x8000u) << 16;
    const uint32_t exponent = (bits >> 10) & 0x1fu;
    const uint32_t fraction = bits & 0x3ffu;
    if (exponent == 0) {
      const float value = static_cast<float>(fraction) * 0x1p-24f;
      return std::bit_cast<float>(sign | std::bit_cast<uint32_t>(value));
    }
    if (exponent == 31) return std::bit_cast<float>(sign | 0x7f800000u | (fraction << 13));
    return std::bit_cast<float>(sign | ((exponent + 112u) << 23) | (fraction << 13));
  }
};

static_assert(sizeof(BF16) == 2 && sizeof(F16) == 2);

}  // namespace quantd
