// CUDA's vector types under emulation, with CUDA's alignments: a misaligned uint4 is caught by
// UBSan, as it faults on the device. Our own, so that no toolkit is needed and none can clash.
#pragma once

#include <cstdint>

namespace quantd::cuda_emulated {

#define QUANTD_EMULATED_VECTOR(type, name, bytes2, bytes4)                       \
  struct alignas(bytes2) name##2 {                                               \
    type x, y;                                                                   \
  };                                                                             \
  struct name##3 {                                                               \
    type x, y, z;                                                                \
  };                                                                             \
  struct alignas(bytes4) name##4 {                                               \
    type x, y, z, w;                                                             \
  };                                                                             \
  constexpr name##2 make_##name##2(type x, type y) { return {x, y}; }            \
  constexpr name##3 make_##name##3(type x, type y, type z) { return {x, y, z}; } \
  constexpr name##4 make_##name##4(type x, type y, type z, type w) { return {x, y, z, w}; }

QUANTD_EMULATED_VECTOR(signed char, char, 2, 4)
QUANTD_EMULATED_VECTOR(unsigned char, uchar, 2, 4)
QUANTD_EMULATED_VECTOR(short, short, 4, 8)
QUANTD_EMULATED_VECTOR(unsigned short, ushort, 4, 8)
QUANTD_EMULATED_VECTOR(int, int, 8, 16)
QUANTD_EMULATED_VECTOR(unsigned, uint, 8, 16)
QUANTD_EMULATED_VECTOR(float, float, 8, 16)
#undef QUANTD_EMULATED_VECTOR

/// Extent of a grid or a block.
struct dim3 {
  constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
  constexpr operator uint3() const { return {x, y, z}; }
  unsigned x, y, z;
};

}  // namespace quantd::cuda_emulated
