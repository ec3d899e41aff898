// Warp collectives against what the CUDA programming guide says each lane gets.
#include <cstdint>
#include <limits>
#include <vector>

#include "tests/kernels/cuda/emulation/emulation_testing.h"

namespace quantd::cuda_emulated {
namespace {

constexpr uint32_t kAll = ~0u;

/// Runs `body` in one warp and returns what each lane returned.
template <typename T>
std::vector<T> PerLane(const std::function<T(uint32_t lane)>& body) {
  std::vector<T> results(32);
  RunKernel(1, 32, 0, [&] { results[threadIdx.x] = body(threadIdx.x); });
  return results;
}

TEST(WarpTest, ShuffleByIndexReadsTheLaneWithinItsSegment) {
  ForEachOrder([] {
    for (int width : {1, 2, 4, 8, 16, 32}) {
      const auto got = PerLane<int>([&](uint32_t lane) {
        return __shfl_sync(kAll, static_cast<int>(100 + lane), static_cast<int>(lane * 7 + 3),
                           width);
      });
      for (int lane = 0; lane < 32; ++lane) {
        const int source = lane / width * width + (lane * 7 + 3) % width;
        EXPECT_EQ(got[static_cast<size_t>(lane)], 100 + source) << width << " " << lane;
      }
    }
  });
}

TEST(WarpTest, ShuffleUpAndDownKeepTheirOwnValueAtTheEdgeOfTheSegment) {
  ForEachOrder([] {
    for (int width : {2, 8, 32}) {
      for (int delta : {0, 1, 3, 7}) {
        const auto up = PerLane<float>([&](uint32_t lane) {
          return __shfl_up_sync(kAll, static_cast<float>(lane), static_cast<unsigned>(delta),
                                width);
        });
        const auto down = PerLane<float>([&](uint32_t lane) {
          return __shfl_down_sync(kAll, static_cast<float>(lane), static_cast<unsigned>(delta),
                                  width);
        });
        for (int lane = 0; lane < 32; ++lane) {
          const int within = lane % width;
          const auto i = static_cast<size_t>(lane);
          EXPECT_EQ(up[i], static_cast<float>(within >= delta ? lane - delta : lane));
          EXPECT_EQ(down[i], static_cast<float>(within + delta < width ? lane + delta : lane));
        }
      }
    }
  });
}

TEST(WarpTest, ShuffleXorReadsEarlierSegmentsButNotLaterOnes) {
  ForEachOrder([] {
    for (int width : {4, 16, 32}) {
      for (int bits : {1, 2, 5, 16, 31}) {
        const auto got = PerLane<int64_t>(
            [&](uint32_t lane) { return __shfl_xor_sync(kAll, int64_t{lane} << 40, bits, width); });
        for (int lane = 0; lane < 32; ++lane) {
          const int last = lane / width * width + width - 1;
          const int source = (lane ^ bits) <= last ? lane ^ bits : lane;
          EXPECT_EQ(got[static_cast<size_t>(lane)], int64_t{source} << 40);
        }
      }
    }
  });
}

TEST(WarpTest, DisjointMasksProceedIndependently) {
  ForEachOrder([] {
    // The upper half does three collectives while the lower half does one.
    const auto got = PerLane<int>([](uint32_t lane) {
      int v = static_cast<int>(lane);
      if (lane < 16) return __shfl_sync(0x0000FFFFu, v, 5);
      for (int i = 0; i < 3; ++i) v = __shfl_xor_sync(0xFFFF0000u, v, 1 << i) + 1;
      return v;
    });
    for (size_t lane = 0; lane < 32; ++lane) {
      EXPECT_EQ(got[lane], lane < 16 ? 5 : static_cast<int>(lane ^ 7) + 3);
    }
  });
}

TEST(WarpTest, AValueFromALaneOutsideTheMaskIsPoison) {
  const auto got = PerLane<uint32_t>([](uint32_t lane) {
    return lane < 8 ? __shfl_sync(0xFFu, lane, static_cast<int>(lane) + 4) : 0u;
  });
  EXPECT_EQ(got[3], 7u);
  EXPECT_EQ(got[4], 0xCDCDCDCDu);
}

TEST(WarpTest, LanesThatReturnedAreNotWaitedFor) {
  ForEachOrder([] {
    std::vector<uint32_t> ballots(32, 0);
    RunKernel(1, 32, 0, [&] {
      const uint32_t lane = threadIdx.x;
      if (lane % 3 == 0) return;
      __syncwarp();
      ballots[lane] = __ballot_sync(kAll, 1);
    });
    uint32_t expected = 0;
    for (uint32_t lane = 0; lane < 32; ++lane) expected |= lane % 3 != 0 ? 1u << lane : 0;
    for (uint32_t lane = 0; lane < 32; ++lane) {
      EXPECT_EQ(ballots[lane], lane % 3 != 0 ? expected : 0u);
    }
  });
}

TEST(WarpTest, VotesCountTheLanesOfTheMask) {
  ForEachOrder([] {
    constexpr uint32_t kMask = 0x00FFFF0Fu;
    std::vector<uint32_t> ballot(32), any(32), all(32), all_of_mask(32);
    RunKernel(1, 32, 0, [&] {
      const uint32_t lane = threadIdx.x;
      if ((kMask >> lane & 1) == 0) return;
      ballot[lane] = __ballot_sync(kMask, lane % 5 == 0);
      any[lane] = static_cast<uint32_t>(__any_sync(kMask, lane == 9));
      all[lane] = static_cast<uint32_t>(__all_sync(kMask, lane != 9));
      all_of_mask[lane] = static_cast<uint32_t>(__all_sync(kMask, lane != 31 ? 2 : 0));
    });
    uint32_t fives = 0;
    for (uint32_t lane = 0; lane < 32; lane += 5) fives |= 1u << lane;
    for (uint32_t lane = 0; lane < 32; ++lane) {
      if ((kMask >> lane & 1) == 0) continue;
      EXPECT_EQ(ballot[lane], fives & kMask);
      EXPECT_EQ(any[lane], 1u);
      EXPECT_EQ(all[lane], 0u);
      EXPECT_EQ(all_of_mask[lane], 1u);
    }
  });
}

TEST(WarpTest, MatchAnyFindsTheLanesWithTheSameValue) {
  ForEachOrder([] {
    const auto got =
        PerLane<uint32_t>([](uint32_t lane) { return __match_any_sync(kAll, lane * lane % 6); });
    for (uint32_t lane = 0; lane < 32; ++lane) {
      uint32_t expected = 0;
      for (uint32_t other = 0; other < 32; ++other) {
        if (other * other % 6 == lane * lane % 6) expected |= 1u << other;
      }
      EXPECT_EQ(got[lane], expected);
    }
  });
}

TEST(WarpTest, ReductionsFoldTheLanesOfTheMaskWithTheirSignedness) {
  ForEachOrder([] {
    constexpr uint32_t kMask = 0xF0F0FFFFu;
    std::vector<int> got(8);
    RunKernel(1, 32, 0, [&] {
      const auto lane = static_cast<int>(threadIdx.x);
      if ((kMask >> lane & 1) == 0) return;
      const int v = lane % 2 == 0 ? lane * 3 : -lane;
      const auto u = static_cast<unsigned>(v);
      const int results[] = {__reduce_add_sync(kMask, v),
                             __reduce_min_sync(kMask, v),
                             __reduce_max_sync(kMask, v),
                             static_cast<int>(__reduce_add_sync(kMask, u)),
                             static_cast<int>(__reduce_min_sync(kMask, u)),
                             static_cast<int>(__reduce_max_sync(kMask, u)),
                             static_cast<int>(__reduce_or_sync(kMask, 1u << (lane / 2))),
                             static_cast<int>(__reduce_and_sync(kMask, ~(1u << lane)))};
      if (lane == 31) got.assign(std::begin(results), std::end(results));
    });
    int sum = 0, low = 0, high = 0;
    unsigned ulow = ~0u, uhigh = 0, bits = 0, common = kAll;
    for (int lane = 0; lane < 32; ++lane) {
      if ((kMask >> lane & 1) == 0) continue;
      const int v = lane % 2 == 0 ? lane * 3 : -lane;
      sum += v;
      low = std::min(low, v);
      high = std::max(high, v);
      ulow = std::min(ulow, static_cast<unsigned>(v));
      uhigh = std::max(uhigh, static_cast<unsigned>(v));
      bits |= 1u << (lane / 2);
      common &= ~(1u << lane);
    }
    EXPECT_EQ(
        got, (std::vector<int>{sum, low, high, sum, static_cast<int>(ulow), static_cast<int>(uhigh),
                               static_cast<int>(bits), static_cast<int>(common)}));
  });
}

TEST(WarpDeathTest, ALaneOutsideItsMaskIsABug) {
  EXPECT_DEATH(RunKernel(1, 32, 0, [] { __syncwarp(0xFFFFu); }),
               "TestKernel, block \\(0, 0, 0\\), thread \\([0-9]+, 0, 0\\).*not in the mask");
}

TEST(WarpDeathTest, LanesInDifferentCollectivesAreABug) {
  const auto kernel = [] {
    if (threadIdx.x < 5) {
      __syncwarp();
    } else {
      __shfl_sync(kAll, 1, 0);
    }
  };
  EXPECT_DEATH(RunKernel(1, 32, 0, kernel),
               "__shfl_sync.*while others.*in __syncwarp|__syncwarp.*while others.*in __shfl_sync");
}

TEST(WarpDeathTest, AWidthThatIsNoPowerOfTwoIsABug) {
  EXPECT_DEATH(RunKernel(1, 32, 0, [] { __shfl_sync(kAll, 1, 0, 12); }), "width 12");
}

TEST(IntrinsicsTest, BytesAndBitsFollowTheProgrammingGuide) {
  EXPECT_EQ(__byte_perm(0x33221100u, 0x77665544u, 0x7052u), 0x77005522u);
  EXPECT_EQ(__byte_perm(0x80FF7F00u, 0, 0xBA98u), 0xFFFF0000u);  // signs of bytes 0..3
  EXPECT_EQ(__brev(0x00000001u), 0x80000000u);
  EXPECT_EQ(__brev(0x12345678u), 0x1E6A2C48u);
  EXPECT_EQ(__popc(0xF0F0u), 8);
  EXPECT_EQ(__clz(0), 32);
  EXPECT_EQ(__clz(1), 31);
  EXPECT_EQ(__ffs(0), 0);
  EXPECT_EQ(__ffs(8), 4);
  EXPECT_EQ(__funnelshift_l(0x80000001u, 0x00000002u, 1), 0x00000005u);
  EXPECT_EQ(__funnelshift_r(0x80000001u, 0x00000003u, 4), 0x38000000u);
  EXPECT_EQ(__funnelshift_r(0x12345678u, 0x9ABCDEF0u, 0), 0x12345678u);
  EXPECT_EQ(__dp4a(static_cast<int>(0x80017FFFu), static_cast<int>(0x02FD01FEu), 10),
            10 + (-1 * -2) + 127 * 1 + 1 * -3 + -128 * 2);
  EXPECT_EQ(__dp4a(0xFF000001u, 0xFF000002u, 3u), 3u + 2u + 255u * 255u);
  EXPECT_EQ(__umulhi(0xFFFFFFFFu, 0xFFFFFFFFu), 0xFFFFFFFEu);
}

TEST(IntrinsicsTest, ConversionsRoundToEvenAndSaturate) {
  EXPECT_EQ(__float2int_rn(2.5f), 2);
  EXPECT_EQ(__float2int_rn(-3.5f), -4);
  EXPECT_EQ(__float2int_rz(-3.9f), -3);
  EXPECT_EQ(__float2int_rd(-3.1f), -4);
  EXPECT_EQ(__float2int_rn(3e9f), std::numeric_limits<int>::max());
  EXPECT_EQ(__float2int_rn(-3e9f), std::numeric_limits<int>::min());
  EXPECT_EQ(__float2int_rn(std::numeric_limits<float>::quiet_NaN()), 0);
  EXPECT_EQ(__float2uint_rn(-1.0f), 0u);
  EXPECT_EQ(__saturatef(std::numeric_limits<float>::quiet_NaN()), 0.0f);
}

TEST(IntrinsicsTest, AtomicsReturnTheOldValueAndLoseNoUpdate) {
  ForEachOrder([] {
    int sum = 0, high = -1, low = 1000, slot = -1, cas = 0;
    unsigned bits = 0, mask = kAll;
    float total = 0.0f;
    unsigned long long wide = 0;
    std::vector<int> seen(96, 0);
    RunKernel(dim3(2), dim3(16, 3), 0, [&] {
      const auto i = static_cast<int>(threadIdx.x + 16 * threadIdx.y + 48 * blockIdx.x);
      ++seen[static_cast<size_t>(atomicAdd(&sum, 1))];
      atomicMax(&high, i);
      atomicMin(&low, i);
      atomicOr(&bits, 1u << i % 32);
      atomicAnd(&mask, ~(1u << i % 7));
      atomicAdd(&total, 0.5f);
      atomicAdd(&wide, 1ull << 33);
      atomicExch(&slot, i);
      // A counter by compare and swap.
      for (int old = cas;;) {
        const int found = atomicCAS(&cas, old, old + 1);
        if (found == old) break;
        old = found;
      }
    });
    EXPECT_EQ(seen, std::vector<int>(96, 1));  // every old value once
    EXPECT_EQ(sum, 96);
    EXPECT_EQ(high, 95);
    EXPECT_EQ(low, 0);
    EXPECT_EQ(bits, kAll);
    EXPECT_EQ(mask, ~0x7Fu);
    EXPECT_EQ(total, 48.0f);
    EXPECT_EQ(wide, 96ull << 33);
    EXPECT_GE(slot, 0);
    EXPECT_EQ(cas, 96);
  });
}

}  // namespace
}  // namespace quantd::cuda_emulated
