// Loading and storing activations: groups of eight elements by 16-byte accesses where the views
// allow it, single elements where they do not, and the choice of a kernel by element type.
#pragma once

#include <bit>
#include <cstdint>
#include <type_traits>

#include "kernels/cuda/numeric.cuh"
#include "kernels/cuda/ops.h"
#include "kernels/cuda/target.h"

namespace quantd::QUANTD_CUDA_NS {

/// Elements a thread handles at a time on the wide path: one 16-byte access of a 16-bit type, two
/// of f32.
inline constexpr int kGroup = 8;

__device__ __forceinline__ void UnpackWord(uint32_t word, BF16 (&v)[2]) {
  v[0].bits = static_cast<uint16_t>(word);
  v[1].bits = static_cast<uint16_t>(word >> 16);
}
__device__ __forceinline__ void UnpackWord(uint32_t word, F16 (&v)[2]) {
  v[0].bits = static_cast<uint16_t>(word);
  v[1].bits = static_cast<uint16_t>(word >> 16);
}

/// v = the W elements at p, as f32. W is 1, or kGroup with p 16-byte aligned.
template <int W, typename T>
__device__ __forceinline__ void Load(const T* p, float (&v)[W]) {
  static_assert(W == 1 || W == kGroup);
  if constexpr (W == 1) {
    v[0] = ToFloat(*p);
  } else if constexpr (sizeof(T) == 4) {
    const uint4* const from = reinterpret_cast<const uint4*>(p);
    const uint4 a = from[0], b = from[1];
    const uint32_t words[8] = {a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w};
    for (int i = 0; i < 8; ++i) v[i] = std::bit_cast<float>(words[i]);
  } else {
    const uint4 a = *reinterpret_cast<const uint4*>(p);
    const uint32_t words[4] = {a.x, a.y, a.z, a.w};
    for (int i = 0; i < 4; ++i) {
      T pair[2];
      UnpackWord(words[i], pair);
      v[2 * i] = ToFloat(pair[0]);
      v[2 * i + 1] = ToFloat(pair[1]);
    }
  }
}

/// The W elements at p = v, each rounded to T. Alignment as Load's.
template <int W, typename T>
__device__ __forceinline__ void Store(T* p, const float (&v)[W]) {
  static_assert(W == 1 || W == kGroup);
  if constexpr (W == 1) {
    *p = FromFloat<T>(v[0]);
  } else if constexpr (sizeof(T) == 4) {
    uint32_t words[8];
    for (int i = 0; i < 8; ++i) words[i] = std::bit_cast<uint32_t>(v[i]);
    uint4* const to = reinterpret_cast<uint4*>(p);
    to[0] = uint4{words[0], words[1], words[2], words[3]};
    to[1] = uint4{words[4], words[5], words[6], words[7]};
  } else {
    uint32_t words[4];
    for (int i = 0; i < 4; ++i) {
      const uint32_t low = FromFloat<T>(v[2 * i]).bits, high = FromFloat<T>(v[2 * i + 1]).bits;
      words[i] = low | high << 16;
    }
    *reinterpret_cast<uint4*>(p) = uint4{words[0], words[1], words[2], words[3]};
  }
}

/// Columns col .. col + 7 of a row as f32, zero from k on. `aligned`: rows are 16-byte aligned.
template <typename T>
__device__ __forceinline__ void LoadUpTo8(const T* row, int col, int k, bool aligned,
                                          float (&v)[kGroup]) {
  if (aligned && col + kGroup <= k) return Load<kGroup>(row + col, v);
#pragma unroll
  for (int i = 0; i < kGroup; ++i) v[i] = col + i < k ? ToFloat(row[col + i]) : 0.0f;
}

/// Copies W elements bit for bit.
template <int W, typename T>
__device__ __forceinline__ void Copy(const T* from, T* to) {
  if constexpr (W == 1) {
    *to = *from;
  } else {
    const uint4* const source = reinterpret_cast<const uint4*>(from);
    uint4* const target = reinterpret_cast<uint4*>(to);
    for (int i = 0; i < static_cast<int>(W * sizeof(T) / 16); ++i) target[i] = source[i];
  }
}

// ---- host ----

inline int64_t BytesOf(FloatType type) { return type == FloatType::kF32 ? 4 : 2; }
inline bool IsAligned16(const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; }
/// True when every row is 16-byte aligned.
inline bool HasAlignedRows(const Matrix& x) {
  return IsAligned16(x.data) && x.stride * BytesOf(x.type) % 16 == 0;
}
/// True when every group of kGroup columns of every row lies 16-byte aligned.
inline bool IsWide(const Matrix& x) { return HasAlignedRows(x) && x.cols % kGroup == 0; }

/// An element type or an access width as an argument of a generic lambda.
template <typename T>
struct TypeTag {
  using Type = T;
};
template <int kValue>
using IntTag = std::integral_constant<int, kValue>;

/// f(TypeTag of `type`).
template <typename F>
void WithType(FloatType type, F&& f) {
  switch (type) {
    case FloatType::kF32: return f(TypeTag<float>{});
    case FloatType::kF16: return f(TypeTag<F16>{});
    case FloatType::kBF16: return f(TypeTag<BF16>{});
  }
}
/// f(IntTag<kGroup>) if `wide`, else f(IntTag<1>).
template <typename F>
void WithWidth(bool wide, F&& f) {
  if (wide) return f(IntTag<kGroup>{});
  f(IntTag<1>{});
}

inline int CeilDiv(int a, int b) { return (a + b - 1) / b; }

}  // namespace quantd::QUANTD_CUDA_NS
