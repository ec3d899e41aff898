// What the codes of a weight mean: Encode and Decode of every codec, once, for host and device.
//
// ref, cpu, cuda and the quantizers are templates over these structs, so a new codec works
// everywhere, slowly, on day one; a tuned kernel is a later specialization. The 4-bit tables are
// bitsandbytes' own (create_normal_map and the fp4 tree of csrc/kernels.cu), as decimal literals
// rounded to f32.
#pragma once

#include <bit>
#include <cstdint>

#include "kernels/quant/float_types.h"

namespace quantd {

enum class Codec : uint8_t {
  kF32,  // plain floats: four, two, two bytes an element, no scales
  kF16,
  kBF16,
  kNf4,    // 4-bit NormalFloat, values in [-1, 1] times a block's absmax
  kFp4,    // bitsandbytes' 4-bit float (e2m1 of its own order, over 12)
  kInt8,   // two's complement, one byte
  kUInt8,  // 0..255: with a zero point
  kInt4,   // two's complement -8..7
  kUInt4,  // 0..15: with a zero point
  kUInt2,  // 0..3: with a zero point
  kE2M1,   // OCP fp4 (nvfp4): 0, .5, 1, 1.5, 2, 3, 4, 6 and a sign bit
  kE4M3,   // OCP fp8 e4m3fn: no infinity, largest 448, 0x7f and 0xff are NaN
};

/// The sixteen values of NF4, ascending by code.
inline constexpr float kNf4Table[16] = {-1.0f,
                                        -0.6961928009986877f,
                                        -0.5250730514526367f,
                                        -0.39491748809814453f,
                                        -0.28444138169288635f,
                                        -0.18477343022823334f,
                                        -0.09105003625154495f,
                                        0.0f,
                                        0.07958029955625534f,
                                        0.16093020141124725f,
                                        0.24611230194568634f,
                                        0.33791524171829224f,
                                        0.44070982933044434f,
                                        0.5626170039176941f,
                                        0.7229568362236023f,
                                        1.0f};

/// The sixteen values of FP4 by code; bit 3 is the sign. Not monotonic in the code.
inline constexpr float kFp4Table[16] = {
    0.0f,  0.0625f / 12.0f,  8.0f / 12.0f,  1.0f,  4.0f / 12.0f,  0.5f,  2.0f / 12.0f,  0.25f,
    -0.0f, -0.0625f / 12.0f, -8.0f / 12.0f, -1.0f, -4.0f / 12.0f, -0.5f, -2.0f / 12.0f, -0.25f};

/// Two's complement of four bits, by code.
inline constexpr float kInt4Table[16] = {0, 1, 2, 3, 4, 5, 6, 7, -8, -7, -6, -5, -4, -3, -2, -1};
inline constexpr float kUInt4Table[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
/// OCP Microscaling 1.0, FP4: bit 3 is the sign.
inline constexpr float kE2M1Table[16] = {0.0f,  0.5f,  1.0f,  1.5f,  2.0f,  3.0f,  4.0f,  6.0f,
                                         -0.0f, -0.5f, -1.0f, -1.5f, -2.0f, -3.0f, -4.0f, -6.0f};

/// The sixteen values of a 4-bit codec, by code: host memory; kernels get a copy.
constexpr const float* TableOf(Codec c) {
  switch (c) {
    case Codec::kNf4: return kNf4Table;
    case Codec::kFp4: return kFp4Table;
    case Codec::kInt4: return kInt4Table;
    case Codec::kUInt4: return kUInt4Table;
    case Codec::kE2M1: return kE2M1Table;
    default: return nullptr;
  }
}

/// The code of a 4-bit codec whose value is zero: what padding is filled with.
constexpr uint8_t ZeroCodeOf(Codec c) { return c == Codec::kNf4 ? 7 : 0; }

struct Nf4Codec {
  static constexpr Codec kCodec = Codec::kNf4;
  static constexpr int kBits = 4;
  QUANTD_HOST_DEVICE static float Decode(uint8_t code) { return kNf4Table[code]; }
  /// The code nearest to `s` in [-1, 1]; a value halfway between two goes to the lower one.
  QUANTD_HOST_DEVICE static uint8_t Encode(float s) {
    uint8_t code = 0;
    while (code < 15 && s > (kNf4Table[code] + kNf4Table[code + 1]) / 2) ++code;
    return code;
  }
};

struct Fp4Codec {
  static constexpr Codec kCodec = Codec::kFp4;
  static constexpr int kBits = 4;
  QUANTD_HOST_DEVICE static float Decode(uint8_t code) { return kFp4Table[code]; }
  /// The code nearest to `s` in [-1, 1], by bitsandbytes' rule on a CPU: walk up the values in
  /// ascending order past every midpoint strictly below `s`. Of the two zeros it has 0 before 8, so
  /// the smallest positive values become code 8 (-0), where the CUDA tree says 0; both decode to
  /// zero.
  QUANTD_HOST_DEVICE static uint8_t Encode(float s) {
    constexpr uint8_t kAscending[16] = {11, 10, 13, 12, 15, 14, 9, 0, 8, 1, 6, 7, 4, 5, 2, 3};
    uint8_t i = 0;
    while (i < 15 && s > (kFp4Table[kAscending[i]] + kFp4Table[kAscending[i + 1]]) / 2) ++i;
    return kAscending[i];
  }
};

struct Int8Codec {
  static constexpr Codec kCodec = Codec::kInt8;
  static constexpr int kBits = 8;
  QUANTD_HOST_DEVICE static float Decode(uint8_t code) {
    return static_cast<float>(static_cast<int8_t>(code));
  }
};

struct E4M3Codec {
  static constexpr Codec kCodec = Codec::kE4M3;
  static constexpr int kBits = 8;
  static constexpr float kLargest = 448.0f;
  QUANTD_HOST_DEVICE static float Decode(uint8_t code) {
    const uint32_t sign = static_cast<uint32_t>(code & 0x80u) << 24;
    const uint32_t magnitude = code & 0x7fu;
    if (magnitude == 0x7fu) return std::bit_cast<float>(sign | 0x7fc00000u);
    if (magnitude < 8u) {  // subnormal: eighths of 2^-6
      return std::bit_cast<float>(sign |
                                  std::bit_cast<uint32_t>(static_cast<float>(magnitude) * 0x1p-9f));
    }
    return std::bit_cast<float>(sign | ((magnitude << 20) + (120u << 23)));
  }
  /// Nearest, ties to even; beyond 448, infinity included, the largest; NaN stays NaN.
  QUANTD_HOST_DEVICE static uint8_t Encode(float value) {
    const uint32_t u = std::bit_cast<uint32_t>(value);
    const uint32_t sign = (u >> 24) & 0x80u;
    const uint32_t magnitude = u & 0x7fffffffu;
    if (magnitude > 0x7f800000u) return static_cast<uint8_t>(sign | 0x7fu);
    if (magnitude >= 0x43e00000u) return static_cast<uint8_t>(sign | 0x7eu);  // 448 and above
    if (magnitude < 0x3c800000u) {  // below 2^-6: the adder rounds to multiples of 2^-9
      const float shifted = std::bit_cast<float>(magnitude) + 0x1p14f;
      return static_cast<uint8_t>(sign | (std::bit_cast<uint32_t>(shifted) & 0xfu));
    }
    const uint32_t rounded = magnitude + 0x7ffffu + ((magnitude >> 20) & 1u);
    return static_cast<uint8_t>(sign | ((rounded - (120u << 23)) >> 20));
  }
};

/// Bits an element takes in memory.
constexpr int BitsOf(Codec c) {
  switch (c) {
    case Codec::kF32: return 32;
    case Codec::kF16:
    case Codec::kBF16: return 16;
    case Codec::kInt8:
    case Codec::kUInt8:
    case Codec::kE4M3: return 8;
    case Codec::kNf4:
    case Codec::kFp4:
    case Codec::kInt4:
    case Codec::kUInt4:
    case Codec::kE2M1: return 4;
    case Codec::kUInt2: return 2;
  }
  return 0;
}

/// True for the codecs whose elements are floats and need no scale.
constexpr bool IsPlain(Codec c) {
  return c == Codec::kF32 || c == Codec::kF16 || c == Codec::kBF16;
}

}  // namespace quantd
