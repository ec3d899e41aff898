// CUDA's intrinsics under emulation: barriers, warp collectives, atomics, bits, arithmetic.
//
// A lane that is in the mask and reads from one that is not (or has returned) gets poison, as the
// value is undefined on the device. Atomics need no atomicity, since one fiber runs at a time; in
// random order they and the fences are points where another thread may come first.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <source_location>
#include <type_traits>

#include "kernels/cuda/emulation/fibers.h"

namespace quantd::cuda_emulated {

using Site = std::source_location;

// ---- barriers ----
inline void __syncthreads(Site site = Site::current()) {
  BlockBarrier("__syncthreads", false, site);
}
inline int __syncthreads_or(int vote, Site site = Site::current()) {
  return BlockBarrier("__syncthreads_or", vote != 0, site).any;
}
inline int __syncthreads_and(int vote, Site site = Site::current()) {
  return BlockBarrier("__syncthreads_and", vote != 0, site).all;
}
inline int __syncthreads_count(int vote, Site site = Site::current()) {
  return BlockBarrier("__syncthreads_count", vote != 0, site).count;
}

inline void RunNothing(void* const*, uint32_t) {}
inline constexpr Collective kSyncWarp{"__syncwarp", RunNothing};
inline void __syncwarp(uint32_t mask = ~0u, Site site = Site::current()) {
  Collect(kSyncWarp, mask, nullptr, site);
}

// ---- shuffles ----
enum class Shuffle { kIndex, kUp, kDown, kXor };
template <typename T>
struct ShuffleSlot {
  T value;
  T result;
  uint32_t source;
};
template <typename T>
void RunShuffle(void* const* slots, uint32_t lanes) {
  for (uint32_t rest = lanes; rest != 0; rest &= rest - 1) {
    auto* slot = static_cast<ShuffleSlot<T>*>(slots[std::countr_zero(rest)]);
    if ((lanes >> slot->source & 1) != 0) {
      slot->result = static_cast<const ShuffleSlot<T>*>(slots[slot->source])->value;
    } else {
      std::memset(&slot->result, 0xCD, sizeof(T));
    }
  }
}
template <typename T, Shuffle kKind>
inline constexpr Collective kShuffle{kKind == Shuffle::kIndex  ? "__shfl_sync"
                                     : kKind == Shuffle::kUp   ? "__shfl_up_sync"
                                     : kKind == Shuffle::kDown ? "__shfl_down_sync"
                                                               : "__shfl_xor_sync",
                                     RunShuffle<T>};
/// The lane that lane `lane` reads from, by the PTX ISA's pseudocode of shfl.sync.
uint32_t ShuffleSource(Shuffle kind, uint32_t lane, uint32_t operand, int width);

template <Shuffle kKind, typename T>
T ShuffleOf(uint32_t mask, T value, uint32_t operand, int width, Site site) {
  static_assert(std::is_arithmetic_v<T> && sizeof(T) >= 4, "CUDA shuffles 4 and 8 byte numbers");
  ShuffleSlot<T> slot{value, value, ShuffleSource(kKind, t_thread->lane, operand, width)};
  Collect(kShuffle<T, kKind>, mask, &slot, site);
  return slot.result;
}
template <typename T>
T __shfl_sync(uint32_t mask, T value, int lane, int width = 32, Site site = Site::current()) {
  return ShuffleOf<Shuffle::kIndex>(mask, value, static_cast<uint32_t>(lane), width, site);
}
template <typename T>
T __shfl_up_sync(uint32_t mask, T value, unsigned delta, int width = 32,
                 Site site = Site::current()) {
  return ShuffleOf<Shuffle::kUp>(mask, value, delta, width, site);
}
template <typename T>
T __shfl_down_sync(uint32_t mask, T value, unsigned delta, int width = 32,
                   Site site = Site::current()) {
  return ShuffleOf<Shuffle::kDown>(mask, value, delta, width, site);
}
template <typename T>
T __shfl_xor_sync(uint32_t mask, T value, int bits, int width = 32, Site site = Site::current()) {
  return ShuffleOf<Shuffle::kXor>(mask, value, static_cast<uint32_t>(bits), width, site);
}

// ---- votes, matches, reductions ----
uint32_t __ballot_sync(uint32_t mask, int vote, Site site = Site::current());
int __any_sync(uint32_t mask, int vote, Site site = Site::current());
int __all_sync(uint32_t mask, int vote, Site site = Site::current());

template <typename T>
struct MatchSlot {
  T value;
  uint32_t result;
};
template <typename T>
void RunMatchAny(void* const* slots, uint32_t lanes) {
  const auto at = [&](int lane) { return static_cast<MatchSlot<T>*>(slots[lane]); };
  for (int i = 0; i < 32; ++i) {
    if ((lanes >> i & 1) == 0) continue;
    at(i)->result = 0;
    for (int j = 0; j < 32; ++j) {
      if ((lanes >> j & 1) != 0 && std::memcmp(&at(i)->value, &at(j)->value, sizeof(T)) == 0) {
        at(i)->result |= 1u << j;
      }
    }
  }
}
template <typename T>
inline constexpr Collective kMatchAny{"__match_any_sync", RunMatchAny<T>};
template <typename T>
uint32_t __match_any_sync(uint32_t mask, T value, Site site = Site::current()) {
  static_assert(std::is_arithmetic_v<T> && sizeof(T) >= 4, "CUDA matches 4 and 8 byte numbers");
  MatchSlot<T> slot{value, 0};
  Collect(kMatchAny<T>, mask, &slot, site);
  return slot.result;
}

int __reduce_add_sync(uint32_t mask, int value, Site site = Site::current());
int __reduce_min_sync(uint32_t mask, int value, Site site = Site::current());
int __reduce_max_sync(uint32_t mask, int value, Site site = Site::current());
unsigned __reduce_add_sync(uint32_t mask, unsigned value, Site site = Site::current());
unsigned __reduce_min_sync(uint32_t mask, unsigned value, Site site = Site::current());
unsigned __reduce_max_sync(uint32_t mask, unsigned value, Site site = Site::current());
unsigned __reduce_or_sync(uint32_t mask, unsigned value, Site site = Site::current());
unsigned __reduce_and_sync(uint32_t mask, unsigned value, Site site = Site::current());

// ---- memory ----
inline void __threadfence() { MayPreempt(); }
inline void __threadfence_block() { MayPreempt(); }
template <typename T>
T __ldg(const T* p) {
  return *p;
}
template <typename T>
T __ldcg(const T* p) {
  return *p;
}
template <typename T>
T __ldcs(const T* p) {
  return *p;
}

template <typename T, typename F>
T AtomicUpdate(T* p, F&& next) {
  MayPreempt();
  const T old = *p;
  *p = next(old);
  return old;
}
#define QUANTD_EMULATED_ATOMIC(name, type, expression)                                        \
  inline type name(type* p, type value) {                                                     \
    return AtomicUpdate(                                                                      \
        p, [=]([[maybe_unused]] type old) -> type { return static_cast<type>(expression); }); \
  }
QUANTD_EMULATED_ATOMIC(atomicAdd, int, static_cast<unsigned>(old) + static_cast<unsigned>(value))
QUANTD_EMULATED_ATOMIC(atomicAdd, unsigned, old + value)
QUANTD_EMULATED_ATOMIC(atomicAdd, unsigned long long, old + value)
QUANTD_EMULATED_ATOMIC(atomicAdd, float, old + value)
QUANTD_EMULATED_ATOMIC(atomicSub, int, static_cast<unsigned>(old) - static_cast<unsigned>(value))
QUANTD_EMULATED_ATOMIC(atomicSub, unsigned, old - value)
#define QUANTD_EMULATED_INTEGER_ATOMICS(type)                                          \
  QUANTD_EMULATED_ATOMIC(atomicMax, type, old < value ? value : old)                   \
  QUANTD_EMULATED_ATOMIC(atomicMin, type, value < old ? value : old)                   \
  QUANTD_EMULATED_ATOMIC(atomicOr, type, old | value)                                  \
  QUANTD_EMULATED_ATOMIC(atomicAnd, type, old& value)                                  \
  QUANTD_EMULATED_ATOMIC(atomicXor, type, old ^ value)                                 \
  QUANTD_EMULATED_ATOMIC(atomicExch, type, value)                                      \
  inline type atomicCAS(type* p, type expected, type desired) {                        \
    return AtomicUpdate(p, [=](type old) { return old == expected ? desired : old; }); \
  }
QUANTD_EMULATED_INTEGER_ATOMICS(int)
QUANTD_EMULATED_INTEGER_ATOMICS(unsigned)
QUANTD_EMULATED_INTEGER_ATOMICS(unsigned long long)
#undef QUANTD_EMULATED_INTEGER_ATOMICS
QUANTD_EMULATED_ATOMIC(atomicExch, float, value)
#undef QUANTD_EMULATED_ATOMIC

// ---- bits ----
inline uint32_t __byte_perm(uint32_t a, uint32_t b, uint32_t selector) {
  const uint64_t bytes = static_cast<uint64_t>(b) << 32 | a;
  uint32_t result = 0;
  for (int i = 0; i < 4; ++i) {
    const uint32_t s = selector >> 4 * i & 0xF;
    uint32_t byte = static_cast<uint32_t>(bytes >> 8 * (s & 7)) & 0xFF;
    if ((s & 8) != 0) byte = (byte & 0x80) != 0 ? 0xFF : 0;  // replicates the sign
    result |= byte << 8 * i;
  }
  return result;
}
inline int __popc(unsigned v) { return std::popcount(v); }
inline int __popcll(unsigned long long v) { return std::popcount(v); }
inline int __clz(int v) { return std::countl_zero(static_cast<unsigned>(v)); }
inline int __clzll(long long v) { return std::countl_zero(static_cast<unsigned long long>(v)); }
inline int __ffs(int v) { return v == 0 ? 0 : std::countr_zero(static_cast<unsigned>(v)) + 1; }
inline int __ffsll(long long v) {
  return v == 0 ? 0 : std::countr_zero(static_cast<unsigned long long>(v)) + 1;
}
inline uint32_t __brev(uint32_t v) {
  v = (v >> 1 & 0x55555555u) | (v & 0x55555555u) << 1;
  v = (v >> 2 & 0x33333333u) | (v & 0x33333333u) << 2;
  v = (v >> 4 & 0x0F0F0F0Fu) | (v & 0x0F0F0F0Fu) << 4;
  return __builtin_bswap32(v);
}
inline uint32_t __funnelshift_l(uint32_t low, uint32_t high, uint32_t shift) {
  return static_cast<uint32_t>((static_cast<uint64_t>(high) << 32 | low) << (shift & 31) >> 32);
}
inline uint32_t __funnelshift_r(uint32_t low, uint32_t high, uint32_t shift) {
  return static_cast<uint32_t>((static_cast<uint64_t>(high) << 32 | low) >> (shift & 31));
}
inline int __dp4a(int a, int b, int c) {
  auto sum = static_cast<unsigned>(c);
  for (int i = 0; i < 4; ++i) {
    sum += static_cast<unsigned>(static_cast<int8_t>(a >> 8 * i) * static_cast<int8_t>(b >> 8 * i));
  }
  return static_cast<int>(sum);
}
inline unsigned __dp4a(unsigned a, unsigned b, unsigned c) {
  for (int i = 0; i < 4; ++i) c += (a >> 8 * i & 0xFF) * (b >> 8 * i & 0xFF);
  return c;
}
inline unsigned __umulhi(unsigned a, unsigned b) {
  return static_cast<unsigned>(static_cast<uint64_t>(a) * b >> 32);
}
inline int __mulhi(int a, int b) { return static_cast<int>(static_cast<int64_t>(a) * b >> 32); }

inline float __uint_as_float(unsigned v) { return std::bit_cast<float>(v); }
inline float __int_as_float(int v) { return std::bit_cast<float>(v); }
inline unsigned __float_as_uint(float v) { return std::bit_cast<unsigned>(v); }
inline int __float_as_int(float v) { return std::bit_cast<int>(v); }

// ---- arithmetic ----
// The approximate ones are exact here; the rounded ones keep nvcc from fusing.
inline float __fdividef(float a, float b) { return a / b; }
inline float __expf(float v) { return std::exp(v); }
inline float __logf(float v) { return std::log(v); }
inline float __log2f(float v) { return std::log2(v); }
inline float rsqrtf(float v) { return 1.0f / std::sqrt(v); }
inline float __frsqrt_rn(float v) { return static_cast<float>(1.0 / std::sqrt(double{v})); }
inline float __saturatef(float v) { return v > 0.0f ? std::min(v, 1.0f) : 0.0f; }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __fsqrt_rn(float v) { return std::sqrt(v); }
inline float __frcp_rn(float v) { return 1.0f / v; }
inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }
/// CUDA's conversions saturate, and take NaN to 0.
int __float2int_rn(float v);
int __float2int_rz(float v);
int __float2int_rd(float v);
unsigned __float2uint_rn(float v);
inline float __int2float_rn(int v) { return static_cast<float>(v); }
inline float __uint2float_rn(unsigned v) { return static_cast<float>(v); }

#define QUANTD_EMULATED_MIN_MAX(type)                          \
  constexpr type min(type a, type b) { return b < a ? b : a; } \
  constexpr type max(type a, type b) { return a < b ? b : a; }
QUANTD_EMULATED_MIN_MAX(int)
QUANTD_EMULATED_MIN_MAX(unsigned)
QUANTD_EMULATED_MIN_MAX(long)
QUANTD_EMULATED_MIN_MAX(unsigned long)
QUANTD_EMULATED_MIN_MAX(long long)
QUANTD_EMULATED_MIN_MAX(unsigned long long)
#undef QUANTD_EMULATED_MIN_MAX
constexpr unsigned min(int a, unsigned b) { return min(static_cast<unsigned>(a), b); }
constexpr unsigned min(unsigned a, int b) { return min(a, static_cast<unsigned>(b)); }
constexpr unsigned max(int a, unsigned b) { return max(static_cast<unsigned>(a), b); }
constexpr unsigned max(unsigned a, int b) { return max(a, static_cast<unsigned>(b)); }
inline float min(float a, float b) { return std::fmin(a, b); }
inline float max(float a, float b) { return std::fmax(a, b); }

}  // namespace quantd::cuda_emulated
