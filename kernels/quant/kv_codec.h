// The int8 format of the KV cache, once for host and device: every backend stores the same bytes.
//
// One scale for the head_dim values of a token's K (after rope) or V in one head:
//   scale = largest |x| / 127, code = x * (127 / largest |x|) to the nearest integer, ties to even,
// in f32, each operation rounded. A reader takes code * scale. Magnitudes are compared as bits, so
// that the largest does not depend on the order, and a NaN is above all.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>

#include "kernels/quant/float_types.h"

namespace quantd {

/// Bits of |x|, in the order of magnitudes; infinity and then NaN come last.
QUANTD_HOST_DEVICE inline uint32_t KvMagnitude(float x) {
  return std::bit_cast<uint32_t>(x) & 0x7fffffffu;
}

struct KvScale {
  float scale;    // what a code is multiplied with
  float inverse;  // what a value is multiplied with to get its code; 0: all codes are 0
};

/// Of values whose largest KvMagnitude is `largest`. Not finite: the scale is NaN, so that whatever
/// is computed from them shows it. Below 2^-100, where the reciprocal nears overflow: zeros.
QUANTD_HOST_DEVICE inline KvScale KvScaleOf(uint32_t largest) {
  if (largest >= 0x7f800000u) return {std::bit_cast<float>(0x7fc00000u), 0.0f};
  const float magnitude = std::bit_cast<float>(largest);
  if (magnitude < 0x1p-100f) return {0.0f, 0.0f};
  return {magnitude / 127.0f, 127.0f / magnitude};
}

/// -127 to 127.
QUANTD_HOST_DEVICE inline int8_t KvCode(float x, const KvScale& scale) {
  return scale.inverse > 0.0f ? static_cast<int8_t>(rintf(x * scale.inverse)) : int8_t{0};
}

}  // namespace quantd
