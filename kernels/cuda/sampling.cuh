// Building blocks of sampling.cu, all called by every thread of a block: a row read in place, its
// order of likelihood as integers, the cut of a best-first prefix, and the first id at which a sum
// over ids exceeds a target.
//
// Sums are integers (counts, or weights in fixed point), so they are exact and the same in any
// order: atomics do not disturb reproducibility.
#pragma once

#include <bit>
#include <cstdint>

#include "kernels/cuda/reduce.cuh"
#include "kernels/cuda/target.h"

namespace quantd::QUANTD_CUDA_NS {

inline constexpr int kBins = 2048;
inline constexpr int kMaxTiles = 1024;
inline constexpr int kTileUnit = 512;  // ids in a tile of FirstAbove: a multiple of this
inline constexpr uint32_t kNeverKey = 0x007fffffu;         // KeyOf(-inf)
inline constexpr uint32_t kLowestFiniteKey = 0x00800000u;  // KeyOf(-FLT_MAX)

/// Shared memory of a row, followed by the bitmap of its banned ids.
struct SampleShared {
  uint32_t low[kBins];   // histogram: low words of the sums,
  uint32_t high[kBins];  // and their high words
  uint64_t tile[kMaxTiles];
  uint64_t warp_sum[32];
  uint64_t warp_best[2][32];
  uint32_t warp_word[2][32];
  // What one warp found for the block.
  uint64_t wanted, content;
  uint32_t bin, key_low, key_high;
  int32_t id;
  int32_t list_size;
  uint64_t list[64];
};

/// NaN counts as -inf; +inf as the largest float, so that differences stay numbers.
__device__ __forceinline__ float Sane(float logit) {
  if (!(logit == logit)) return std::bit_cast<float>(0xff800000u);
  const float largest = std::bit_cast<float>(0x7f7fffffu);
  return logit < largest ? logit : largest;
}

/// Larger logits have larger keys; both zeros have the same. Of a sane logit.
__device__ __forceinline__ uint32_t KeyOf(float logit) {
  const uint32_t bits = std::bit_cast<uint32_t>(logit + 0.0f);
  return bits ^ (bits >> 31 != 0 ? 0xffffffffu : 0x80000000u);
}
__device__ __forceinline__ float LogitOf(uint32_t key) {
  return std::bit_cast<float>(key >> 31 != 0 ? key ^ 0x80000000u : ~key);
}

/// Likelihood and, among equals, the lower id as one number: larger is better.
__device__ __forceinline__ uint64_t EntryOf(uint32_t key, int32_t id) {
  return static_cast<uint64_t>(key) << 32 | ~static_cast<uint32_t>(id);
}
__device__ __forceinline__ int32_t IdOfEntry(uint64_t entry) {
  return static_cast<int32_t>(~static_cast<uint32_t>(entry));
}
__device__ __forceinline__ uint32_t KeyOfEntry(uint64_t entry) {
  return static_cast<uint32_t>(entry >> 32);
}

struct LogitRow {
  float* logits;
  int vocab;
  bool wide;               // 16-byte aligned
  const uint32_t* banned;  // bit per id, in shared memory; nullptr: none

  __device__ __forceinline__ bool Allows(int id) const {
    return banned == nullptr || (banned[id / 32] >> (id % 32) & 1u) == 0;
  }
  /// The logits of ids i..i+3, -inf past the end. i is a multiple of 4.
  __device__ __forceinline__ void Load4(int i, float (&v)[4]) const {
    if (wide && i + 4 <= vocab) {
      const uint4 words = *reinterpret_cast<const uint4*>(logits + i);
      v[0] = std::bit_cast<float>(words.x);
      v[1] = std::bit_cast<float>(words.y);
      v[2] = std::bit_cast<float>(words.z);
      v[3] = std::bit_cast<float>(words.w);
      return;
    }
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      v[j] = i + j < vocab ? logits[i + j] : std::bit_cast<float>(0xff800000u);
    }
  }
};

/// f(id, logit) for every id of the row, over the block; each thread's ids ascend. kBatch loads of
/// 16 bytes are in flight per thread.
template <int kBatch, typename F>
__device__ __forceinline__ void ForEachLogit(const LogitRow& row, F f) {
  const int step = static_cast<int>(blockDim.x) * 4;
  for (int first = static_cast<int>(threadIdx.x) * 4; first < row.vocab; first += kBatch * step) {
    float v[kBatch][4];
#pragma unroll
    for (int b = 0; b < kBatch; ++b) row.Load4(first + b * step, v[b]);
#pragma unroll
    for (int b = 0; b < kBatch; ++b) {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const int id = first + b * step + j;
        if (id < row.vocab) f(id, v[b][j]);
      }
    }
  }
}

/// Likelihoods in fixed point: exp((logit - largest) / temperature) times `one`, rounded down.
struct Weigher {
  float largest;
  float temperature;
  float one;  // a power of two; that of `vocab` weights cannot overflow

  __device__ __forceinline__ uint64_t operator()(float logit) const {
    const float weight = expf((logit - largest) / temperature) * one;
    return weight > 0.0f ? static_cast<uint64_t>(weight) : 0;
  }
};

/// Monotone bins of equal width below the largest logit; what lies further down is in the last.
struct LinearBins {
  float largest;
  float per_unit;

  __device__ __forceinline__ int operator()(float logit) const {
    return static_cast<int>(fminf((largest - logit) * per_unit, static_cast<float>(kBins - 1)));
  }
};
/// Bins over the span of the row's finite logits. A few far down (masked ones) must not coarsen the
/// bins of all others: the span ends at 64.
__device__ __forceinline__ LinearBins BinsOf(float largest, float smallest) {
  const float span = fmaxf(fminf(largest - smallest, 64.0f), 1e-30f);
  return {largest, static_cast<float>(kBins) / span};
}

/// Lowest key of [low, high] that `holds`, which is monotone in the key; high + 1 if none.
template <typename F>
__device__ __forceinline__ uint32_t LowestKey(uint32_t low, uint32_t high, F holds) {
  uint32_t end = high + 1;
  while (low < end) {
    const uint32_t middle = low + (end - low) / 2;
    if (holds(middle)) {
      end = middle;
    } else {
      low = middle + 1;
    }
  }
  return low;
}

/// Where a best-first prefix ends.
struct Cut {
  bool exists;       // false: the target was 0
  uint32_t key;      // of the last element
  uint64_t wanted;   // of the elements with this key, the sum that is still needed (> 0)
  uint64_t content;  // their whole sum
};

/// The shortest best-first prefix of the allowed ids with keys in [key_low, key_high] that sums to
/// `target_of(sum of all)`, a number from 0 to that sum. Elements count `weigh(logit)`.
///
/// Radix select: a histogram over bins of logits (where those spread evenly), then over 2048 bins
/// of the keys within the chosen bin, until one key is left. At most four passes over the row,
/// usually three; only elements in the range touch the histogram.
template <typename W, typename T>
__device__ Cut Select(const LogitRow& row, const LinearBins& linear_bins, W weigh, uint32_t key_low,
                      uint32_t key_high, T target_of, SampleShared& shared) {
  const int thread = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);
  const int lane = thread % kWarp, warp = thread / kWarp;
  const int bins_per_thread = kBins / threads;
  bool first = true;
  uint64_t target = 0;
  for (;;) {
    const uint32_t span = key_high - key_low;
    const bool linear = first && span >= kBins;
    const int bits = 32 - __clz(static_cast<int>(span));
    const int shift = bits > 11 ? bits - 11 : 0;
    for (int b = thread; b < kBins; b += threads) shared.low[b] = shared.high[b] = 0;
    __syncthreads();

    ForEachLogit<2>(row, [&](int id, float raw) {
      const float logit = Sane(raw);
      const uint32_t key = KeyOf(logit);
      if (key < key_low || key > key_high || !row.Allows(id)) return;
      const uint32_t bin =
          linear ? static_cast<uint32_t>(linear_bins(logit)) : (key_high - key) >> shift;
      const uint64_t weight = weigh(logit);
      const uint32_t low = static_cast<uint32_t>(weight);
      const uint32_t before = atomicAdd(&shared.low[bin], low);
      const uint32_t high = static_cast<uint32_t>(weight >> 32) + (before + low < before ? 1 : 0);
      if (high != 0) atomicAdd(&shared.high[bin], high);
    });
    __syncthreads();

    const auto content = [&](int bin) {
      return static_cast<uint64_t>(shared.high[bin]) << 32 | shared.low[bin];
    };
    uint64_t mine = 0;
#pragma unroll 1  // unrolled, these short loops would cost the registers that all threads have
    for (int b = 0; b < bins_per_thread; ++b) mine += content(thread * bins_per_thread + b);
    uint64_t reached = WarpInclusiveSum(mine);
    if (lane == kWarp - 1) shared.warp_sum[warp] = reached;
    __syncthreads();
    uint64_t total = 0;
#pragma unroll 1
    for (int w = 0; w < threads / kWarp; ++w) {
      if (w < warp) reached += shared.warp_sum[w];
      total += shared.warp_sum[w];
    }
    if (first) target = target_of(total);
    if (target == 0) return {false, 0, 0, 0};
    // One thread's bins hold the end of the prefix; its warp finds the bin and its range of keys.
    const uint32_t holders = __ballot_sync(kAllLanes, reached - mine < target && target <= reached);
    if (holders != 0) {
      const int holder = __ffs(static_cast<int>(holders)) - 1;
      int bin = thread * bins_per_thread;
      if (lane == holder) {
        reached -= mine;
        while (reached + content(bin) < target) reached += content(bin++);
        shared.wanted = target - reached;
        shared.content = content(bin);
        shared.bin = static_cast<uint32_t>(bin);
      }
      bin = __shfl_sync(kAllLanes, bin, holder);
      if (linear) {
        const int most = bin - lane % 2;  // even lanes seek the lower end, odd lanes the upper
        const uint32_t lowest = LowestKey(
            key_low, key_high, [&](uint32_t key) { return linear_bins(LogitOf(key)) <= most; });
        if (lane == 0) shared.key_low = lowest;
        if (lane == 1) shared.key_high = lowest - 1;
      }
    }
    __syncthreads();
    target = shared.wanted;
    first = false;
    if (linear) {
      key_low = shared.key_low;
      key_high = shared.key_high;
    } else {
      key_high -= shared.bin << shift;
      const uint32_t lowest = key_high - ((1u << shift) - 1);
      key_low = key_low > lowest ? key_low : lowest;
    }
    if (key_low == key_high) return {true, key_high, target, shared.content};
  }
}

/// The first id at which the running sum over ids of weigh(id, logit) exceeds
/// `target_of(sum of all)`, which is less than that sum.
///
/// A warp sums a tile of ids; one warp then scans the tiles' sums and walks the tile in question.
template <typename W, typename T>
__device__ int32_t FirstAbove(const LogitRow& row, int tile, W weigh, T target_of,
                              SampleShared& shared) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const int tiles = (row.vocab + tile - 1) / tile;
  const auto weigh4 = [&](int i, uint64_t(&weights)[4]) {
    float v[4];
    row.Load4(i, v);
    uint64_t sum = 0;
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      weights[j] = i + j < row.vocab ? weigh(i + j, Sane(v[j])) : 0;
      sum += weights[j];
    }
    return sum;
  };
  for (int t = warp; t < tiles; t += static_cast<int>(blockDim.x) / kWarp) {
    uint64_t sum = 0, weights[4];
    for (int i = t * tile + lane * 4; i < (t + 1) * tile; i += kWarp * 4) sum += weigh4(i, weights);
    sum = WarpSum(sum);
    if (lane == 0) shared.tile[t] = sum;
  }
  __syncthreads();
  if (warp == 0) {
    const int per_lane = (tiles + kWarp - 1) / kWarp;
    uint64_t sum = 0;
    for (int t = lane * per_lane; t < (lane + 1) * per_lane && t < tiles; ++t) {
      sum += shared.tile[t];
    }
    uint64_t reached = WarpInclusiveSum(sum);
    const uint64_t target = target_of(__shfl_sync(kAllLanes, reached, kWarp - 1));
    const int holder = __ffs(static_cast<int>(__ballot_sync(kAllLanes, reached > target))) - 1;
    uint64_t base = __shfl_sync(kAllLanes, reached - sum, holder);
    int t = holder * per_lane;
    while (base + shared.tile[t] <= target) base += shared.tile[t++];
    for (int first = t * tile;; first += kWarp * 4) {
      uint64_t weights[4];
      sum = weigh4(first + lane * 4, weights);
      reached = base + WarpInclusiveSum(sum);
      const uint32_t above = __ballot_sync(kAllLanes, reached > target);
      if (above != 0) {
        if (lane == __ffs(static_cast<int>(above)) - 1) {
          reached -= sum;
          int j = 0;
#pragma unroll
          for (int i = 0; i < 3; ++i) {  // constant indices keep the weights in registers
            reached += weights[i];
            j += reached <= target ? 1 : 0;
          }
          shared.id = first + lane * 4 + j;
        }
        break;
      }
      base = __shfl_sync(kAllLanes, reached, kWarp - 1);
    }
  }
  __syncthreads();
  return shared.id;
}

}  // namespace quantd::QUANTD_CUDA_NS
