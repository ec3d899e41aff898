#include "kernels/cuda/emulation/intrinsics.h"

#include <limits>

namespace quantd::cuda_emulated {
namespace {

template <typename T>
struct ReduceSlot {
  T value;
  T result;
};

/// Folds the values of `lanes`, ascending, and gives all of them the result.
template <typename T, T (*kFold)(T, T)>
void RunReduce(void* const* slots, uint32_t lanes) {
  const auto at = [&](uint32_t bits) {
    return static_cast<ReduceSlot<T>*>(slots[std::countr_zero(bits)]);
  };
  T result = at(lanes)->value;
  for (uint32_t rest = lanes & (lanes - 1); rest != 0; rest &= rest - 1) {
    result = kFold(result, at(rest)->value);
  }
  for (uint32_t rest = lanes; rest != 0; rest &= rest - 1) at(rest)->result = result;
}

template <typename T>
T Reduce(const Collective& collective, uint32_t mask, T value, Site site) {
  ReduceSlot<T> slot{value, value};
  Collect(collective, mask, &slot, site);
  return slot.result;
}

int AddInt(int a, int b) {
  return static_cast<int>(static_cast<unsigned>(a) + static_cast<unsigned>(b));
}
unsigned AddUnsigned(unsigned a, unsigned b) { return a + b; }
unsigned OrUnsigned(unsigned a, unsigned b) { return a | b; }
unsigned AndUnsigned(unsigned a, unsigned b) { return a & b; }
template <typename T>
T MinOf(T a, T b) {
  return b < a ? b : a;
}
template <typename T>
T MaxOf(T a, T b) {
  return a < b ? b : a;
}

constexpr Collective kBallot{"__ballot_sync", RunReduce<unsigned, OrUnsigned>};
constexpr Collective kAny{"__any_sync", RunReduce<unsigned, OrUnsigned>};
constexpr Collective kAll{"__all_sync", RunReduce<unsigned, AndUnsigned>};
constexpr Collective kAddInt{"__reduce_add_sync", RunReduce<int, AddInt>};
constexpr Collective kMinInt{"__reduce_min_sync", RunReduce<int, MinOf<int>>};
constexpr Collective kMaxInt{"__reduce_max_sync", RunReduce<int, MaxOf<int>>};
constexpr Collective kAddUnsigned{"__reduce_add_sync", RunReduce<unsigned, AddUnsigned>};
constexpr Collective kMinUnsigned{"__reduce_min_sync", RunReduce<unsigned, MinOf<unsigned>>};
constexpr Collective kMaxUnsigned{"__reduce_max_sync", RunReduce<unsigned, MaxOf<unsigned>>};
constexpr Collective kOr{"__reduce_or_sync", RunReduce<unsigned, OrUnsigned>};
constexpr Collective kAnd{"__reduce_and_sync", RunReduce<unsigned, AndUnsigned>};

template <typename T>
T Saturate(float rounded) {
  if (std::isnan(rounded)) return 0;
  // 2^31 and 2^32 are floats, the largest integers below them are not.
  if (rounded >= static_cast<float>(std::numeric_limits<T>::max())) {
    return std::numeric_limits<T>::max();
  }
  if (rounded <= static_cast<float>(std::numeric_limits<T>::min())) {
    return std::numeric_limits<T>::min();
  }
  return static_cast<T>(rounded);
}

}  // namespace

uint32_t ShuffleSource(Shuffle kind, uint32_t lane, uint32_t operand, int width) {
  if (width < 1 || width > 32 || !std::has_single_bit(static_cast<unsigned>(width))) {
    Fatal("a shuffle of width %d, which is not a power of two up to 32", width);
  }
  const auto within = static_cast<uint32_t>(width) - 1;
  const uint32_t first = lane & ~within, last = lane | within;
  switch (kind) {
    case Shuffle::kIndex: return first | (operand & within);
    case Shuffle::kUp: return (operand & 31) <= lane - first ? lane - (operand & 31) : lane;
    case Shuffle::kDown: return (operand & 31) <= last - lane ? lane + (operand & 31) : lane;
    case Shuffle::kXor: return (lane ^ (operand & 31)) <= last ? lane ^ (operand & 31) : lane;
  }
  return lane;
}

uint32_t __ballot_sync(uint32_t mask, int vote, Site site) {
  return Reduce(kBallot, mask, vote != 0 ? 1u << t_thread->lane : 0u, site);
}
int __any_sync(uint32_t mask, int vote, Site site) {
  return static_cast<int>(Reduce(kAny, mask, vote != 0 ? 1u : 0u, site));
}
int __all_sync(uint32_t mask, int vote, Site site) {
  return static_cast<int>(Reduce(kAll, mask, vote != 0 ? 1u : 0u, site));
}

int __reduce_add_sync(uint32_t mask, int value, Site site) {
  return Reduce(kAddInt, mask, value, site);
}
int __reduce_min_sync(uint32_t mask, int value, Site site) {
  return Reduce(kMinInt, mask, value, site);
}
int __reduce_max_sync(uint32_t mask, int value, Site site) {
  return Reduce(kMaxInt, mask, value, site);
}
unsigned __reduce_add_sync(uint32_t mask, unsigned value, Site site) {
  return Reduce(kAddUnsigned, mask, value, site);
}
unsigned __reduce_min_sync(uint32_t mask, unsigned value, Site site) {
  return Reduce(kMinUnsigned, mask, value, site);
}
unsigned __reduce_max_sync(uint32_t mask, unsigned value, Site site) {
  return Reduce(kMaxUnsigned, mask, value, site);
}
unsigned __reduce_or_sync(uint32_t mask, unsigned value, Site site) {
  return Reduce(kOr, mask, value, site);
}
unsigned __reduce_and_sync(uint32_t mask, unsigned value, Site site) {
  return Reduce(kAnd, mask, value, site);
}

int __float2int_rn(float v) { return Saturate<int>(std::nearbyint(v)); }
int __float2int_rz(float v) { return Saturate<int>(std::trunc(v)); }
int __float2int_rd(float v) { return Saturate<int>(std::floor(v)); }
unsigned __float2uint_rn(float v) { return Saturate<unsigned>(std::nearbyint(v)); }

}  // namespace quantd::cuda_emulated
