// What the codes of a weight mean: Encode and Decode of every codec, once, for host and device.
//
// ref, cpu, cuda and the quantizers are templates over these structs, so a new codec works
// everywhere, slowly, on day one; a tuned kernel is a later specialization. The 4-bit tables are
// bitsandbytes' own (create_normal_map and the fp4 tree of csrc/kernels.cu), as decimal literals
// rounded to f32.
#pragma once

#include <cstdint>

#include "kernels/quant/float_types.h"

namespace quantd {

enum class Codec : uint8_t {
  kF32,  // plain floats: four, two, two bytes an element, no scales
  kF16,
  kBF16,
  kNf4,   // 4-bit NormalFloat, values in [-1, 1] times a block's absmax
  kFp4,   // bitsandbytes' 4-bit float (e2m1 of its own order, over 12)
  kInt8,  // two's complement -127..127 times a scale
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

/// Bits an element takes in memory.
constexpr int BitsOf(Codec c) {
  switch (c) {
    case Codec::kF32: return 32;
    case Codec::kF16:
    case Codec::kBF16: return 16;
    case Codec::kInt8: return 8;
    case Codec::kNf4:
    case Codec::kFp4: return 4;
  }
  return 0;
}

/// True for the codecs whose elements are floats and need no scale.
constexpr bool IsPlain(Codec c) {
  return c == Codec::kF32 || c == Codec::kF16 || c == Codec::kBF16;
}

}  // namespace quantd
