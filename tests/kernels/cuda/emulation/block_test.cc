// Barriers of a block, schedules, shared memory, and the reports of what a kernel does wrong.
#include <numeric>
#include <set>
#include <thread>
#include <vector>

#include "kernels/cuda/emulation/shared_memory.h"
#include "tests/kernels/cuda/emulation/emulation_testing.h"

namespace quantd::cuda_emulated {
namespace {

TEST(BlockTest, EveryThreadOfEveryBlockRunsOnceWithItsIndices) {
  ForEachOrder([] {
    const dim3 grid(3, 2, 2), block(5, 4, 3);
    std::vector<int> runs(3 * 2 * 2 * 5 * 4 * 3, 0);
    RunKernel(grid, block, 0, [&] {
      ASSERT_EQ(gridDim.x * gridDim.y * gridDim.z, 12u);
      const unsigned b = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
      const unsigned t = (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
      ++runs[b * 60 + t];
    });
    EXPECT_EQ(runs, std::vector<int>(720, 1));
  });
}

TEST(BlockTest, SyncthreadsMakesWritesOfTheWholeBlockVisible) {
  ForEachOrder([] {
    std::vector<int> got(200);
    RunKernel(1, 200, 200 * sizeof(int), [&] {
      DYN_SMEM(int, s);
      const auto t = static_cast<int>(threadIdx.x);
      for (int step = 0; step < 3; ++step) {
        s[t] = t * 10 + step;
        __syncthreads();
        got[threadIdx.x] = s[(t + 67) % 200];
        __syncthreads();
      }
    });
    for (int t = 0; t < 200; ++t) {
      EXPECT_EQ(got[static_cast<size_t>(t)], (t + 67) % 200 * 10 + 2);
    }
  });
}

TEST(BlockTest, ReducingBarriersCountEveryThread) {
  ForEachOrder([] {
    RunKernel(2, 70, 0, [] {
      const auto t = static_cast<int>(threadIdx.x);
      EXPECT_EQ(__syncthreads_count(t % 7 == 0), 10);
      EXPECT_EQ(__syncthreads_or(t == 69), 1);
      EXPECT_EQ(__syncthreads_or(t == 70), 0);
      EXPECT_EQ(__syncthreads_and(t < 70), 1);
      EXPECT_EQ(__syncthreads_and(t < 69), 0);
    });
  });
}

TEST(BlockTest, ThreadsThatReturnedAreNotWaitedForAtTheBarrier) {
  ForEachOrder([] {
    std::vector<int> counts(100, -1);
    RunKernel(1, 100, 0, [&] {
      if (threadIdx.x >= 40) return;
      counts[threadIdx.x] = __syncthreads_count(1);
      if (threadIdx.x >= 10) return;
      __syncthreads();
      counts[threadIdx.x] = __syncthreads_count(1) + 1000;
    });
    for (size_t t = 0; t < 100; ++t) EXPECT_EQ(counts[t], t < 10 ? 1010 : t < 40 ? 40 : -1) << t;
  });
}

TEST(BlockTest, WarpsMayPassBarriersAtDifferentLines) {
  ForEachOrder([] {
    std::vector<int> got(64);
    RunKernel(1, 64, 8, [&] {
      DYN_SMEM(int, s);
      if (threadIdx.x < 32) {
        if (threadIdx.x == 0) s[0] = 7;
        __syncthreads();
      } else {
        __syncthreads();
      }
      got[threadIdx.x] = s[0];
    });
    EXPECT_EQ(got, std::vector<int>(64, 7));
  });
}

// Rotates 64 values by `by` places `steps` times; right only with both barriers.
std::vector<int> Rotate(unsigned by, int steps, bool first_barrier, bool second_barrier) {
  std::vector<int> got(64);
  RunKernel(1, 64, 64 * sizeof(int), [&] {
    DYN_SMEM(int, s);
    const unsigned t = threadIdx.x;
    int v = static_cast<int>(t);
    for (int i = 0; i < steps; ++i) {
      s[t] = v;
      if (first_barrier) __syncthreads();
      v = s[(t + by) % 64];
      if (second_barrier) __syncthreads();
    }
    got[t] = v;
  });
  return got;
}

TEST(BlockTest, AMissingBarrierGivesWrongResults) {
  std::vector<int> right(64);
  for (int i = 0; i < 64; ++i) right[static_cast<size_t>(i)] = (i + 3 * 5) % 64;
  std::set<std::vector<int>> without_first, without_second;
  ForEachOrder([&] {
    EXPECT_EQ(Rotate(5, 3, true, true), right);
    without_first.insert(Rotate(5, 3, false, true));
    without_second.insert(Rotate(5, 3, true, false));
  });
  EXPECT_FALSE(without_first.contains(right));
  EXPECT_FALSE(without_second.contains(right));
  EXPECT_GE(without_first.size(), 4u) << "orders should differ";
  EXPECT_GE(without_second.size(), 4u) << "orders should differ";
}

TEST(BlockTest, AMissingSyncwarpGivesWrongResults) {
  ForEachOrder([] {
    for (bool synchronize : {true, false}) {
      std::vector<int> got(32);
      RunKernel(1, 32, 32 * sizeof(int), [&] {
        DYN_SMEM(int, s);
        s[threadIdx.x] = static_cast<int>(threadIdx.x);
        if (synchronize) __syncwarp();
        got[threadIdx.x] = s[threadIdx.x ^ 1];
      });
      int wrong = 0;
      for (int i = 0; i < 32; ++i) wrong += got[static_cast<size_t>(i)] != (i ^ 1);
      EXPECT_EQ(wrong == 0, synchronize);
    }
  });
}

TEST(BlockTest, TheSameSeedRepeatsTheSameSchedule) {
  const auto trace = [](uint64_t seed) {
    SetScheduleOrder({ScheduleOrder::Kind::kRandom, seed});
    std::vector<unsigned> order;
    RunKernel(3, 64, 0, [&] {
      for (int i = 0; i < 3; ++i) {
        order.push_back(blockIdx.x * 64 + threadIdx.x);
        __syncwarp();
      }
    });
    SetScheduleOrder({});
    return order;
  };
  EXPECT_EQ(trace(5), trace(5));
  EXPECT_NE(trace(5), trace(6));
}

TEST(BlockTest, BlocksRunInTheOrderAskedFor) {
  const auto blocks = [](ScheduleOrder order) {
    SetScheduleOrder(order);
    std::vector<unsigned> seen;
    RunKernel(dim3(4, 5), 1, 0, [&] { seen.push_back(blockIdx.y * 4 + blockIdx.x); });
    SetScheduleOrder({});
    return seen;
  };
  std::vector<unsigned> ascending(20);
  std::iota(ascending.begin(), ascending.end(), 0u);
  EXPECT_EQ(blocks({ScheduleOrder::Kind::kForward, 0}), ascending);
  EXPECT_EQ(blocks({ScheduleOrder::Kind::kReverse, 0}),
            std::vector<unsigned>(ascending.rbegin(), ascending.rend()));
  auto shuffled = blocks({ScheduleOrder::Kind::kRandom, 1});
  EXPECT_NE(shuffled, ascending);
  std::sort(shuffled.begin(), shuffled.end());
  EXPECT_EQ(shuffled, ascending);
}

TEST(BlockTest, AnAtomicIsAPointOfPreemptionInRandomOrder) {
  // A read, an atomic on something else, a write: updates get lost as they would on a device.
  const auto lost = [](ScheduleOrder order) {
    SetScheduleOrder(order);
    int racy = 0, other = 0;
    RunKernel(1, 64, 0, [&] {
      const int old = racy;
      atomicAdd(&other, 1);
      racy = old + 1;
    });
    SetScheduleOrder({});
    return 64 - racy;
  };
  EXPECT_GT(lost({ScheduleOrder::Kind::kRandom, 1}), 0);
}

TEST(BlockTest, SharedMemoryIsPoisonedForEveryBlockAndAligned) {
  RunKernel(3, 1, 1000, [] {
    DYN_SMEM(unsigned char, s);
    EXPECT_EQ(reinterpret_cast<uintptr_t>(s) % 1024, 0u);
    for (int i = 0; i < 1000; ++i) ASSERT_EQ(s[i], 0xCD) << blockIdx.x << " " << i;
    for (int i = 0; i < 1000; ++i) s[i] = 1;
  });
}

TEST(BlockTest, StaticSharedMemoryIsSharedByTheBlock) {
  ForEachOrder([] {
    std::vector<int> got(96);
    RunKernel(2, 96, 0, [&] {
      __shared__ int s[96];
      s[threadIdx.x] = static_cast<int>(threadIdx.x + 100 * blockIdx.x);
      __syncthreads();
      got[threadIdx.x] += s[95 - threadIdx.x];
    });
    for (size_t t = 0; t < 96; ++t) EXPECT_EQ(got[t], static_cast<int>(2 * (95 - t) + 100));
  });
}

TEST(BlockTest, SharedAddressesReachDynamicAndStaticMemoryWithOffsets) {
  RunKernel(1, 1, 64, [] {
    DYN_SMEM(uint32_t, dynamic);
    __shared__ __align__(16) uint32_t fixed[4];
    dynamic[5] = 55;
    fixed[3] = 33;
    EXPECT_EQ(LoadShared(SharedAddress(dynamic) + 20), 55u);
    EXPECT_EQ(LoadShared(SharedAddress(&dynamic[6]) - 4), 55u);
    EXPECT_EQ(LoadShared(SharedAddress(fixed) + 12), 33u);
    EXPECT_EQ(SharedAddress(dynamic) % 1024, 0u);
    EXPECT_EQ(SharedAddress(fixed) % 16, 0u);
  });
}

TEST(BlockTest, TwoOperatingSystemThreadsRunGridsAtTheSameTime) {
  const auto work = [](int salt, std::vector<int>* got) {
    for (int repeat = 0; repeat < 20; ++repeat) {
      RunKernel(2, 64, 64 * sizeof(int), [&] {
        DYN_SMEM(int, s);
        __shared__ int fixed[64];
        s[threadIdx.x] = salt + static_cast<int>(threadIdx.x);
        fixed[threadIdx.x] = salt;
        __syncthreads();
        (*got)[threadIdx.x] = s[63 - threadIdx.x] + fixed[threadIdx.x ^ 1];
      });
    }
  };
  std::vector<int> a(64), b(64);
  std::thread other(work, 1000, &b);
  work(0, &a);
  other.join();
  for (int t = 0; t < 64; ++t) {
    EXPECT_EQ(a[static_cast<size_t>(t)], 63 - t);
    EXPECT_EQ(b[static_cast<size_t>(t)], 2000 + 63 - t);
  }
}

// ---- what is reported ----
TEST(BlockDeathTest, ADeadlockSaysWhoWaitsWhere) {
  const auto kernel = [] {
    if (threadIdx.x < 40) {
      __syncthreads();
    } else {
      __syncwarp(threadIdx.x < 64 ? 0xFFFFFF01u : ~0u);
    }
  };
  EXPECT_DEATH(RunKernel(1, 96, 0, kernel),
               "kernel TestKernel, block \\(0, 0, 0\\): deadlock: 64 of 96 threads wait and none "
               "can run(.|\n)*threads 0-39 wait in __syncthreads at .*block_test.cc:[0-9]+"
               "\n  threads 40-63 wait in __syncwarp\\(mask 0xffffff01\\)");
}

TEST(BlockDeathTest, ABarrierThatPartOfAWarpSkipsIsReported) {
  const auto kernel = [] {
    if (threadIdx.x % 2 == 0) {
      __syncthreads();
    } else {
      __syncthreads();
    }
  };
  EXPECT_DEATH(RunKernel(1, 32, 0, kernel), "__syncthreads by part of a warp");
}

TEST(BlockDeathTest, WritesPastSharedMemoryAreReported) {
  const auto past = [] {
    DYN_SMEM(volatile char, s);
    s[100 + threadIdx.x] = 1;
  };
  EXPECT_DEATH(RunKernel(1, 1, 100, past), "past its 100 bytes of dynamic shared|use-after-poison");
  const auto before = [] {
    DYN_SMEM(volatile char, s);
    s[-1] = 1;
  };
  EXPECT_DEATH(RunKernel(1, 1, 100, before), "before its dynamic shared|use-after-poison");
}

TEST(BlockDeathTest, SharedAddressesAreChecked) {
  EXPECT_DEATH(RunKernel(1, 1, 64,
                         [] {
                           DYN_SMEM(char, s);
                           LoadShared(SharedAddress(s) + 61);
                         }),
               "outside the 64 bytes");
  EXPECT_DEATH(RunKernel(1, 1, 64,
                         [] {
                           DYN_SMEM(char, s);
                           LoadShared(SharedAddress(s) + 2);
                         }),
               "not aligned to 4");
  EXPECT_DEATH(RunKernel(1, 1, 64,
                         [] {
                           int local = 0;
                           SharedAddress(&local);
                         }),
               "is not shared memory");
}

int Recurse(volatile char* below, int depth) {
  volatile char local[4096] = {};
  if (below != nullptr) local[0] = below[0];
  return depth == 0 ? local[0] : Recurse(local, depth - 1) + local[1];
}

TEST(BlockDeathTest, AStackOverflowIsReported) {
  EXPECT_DEATH(RunKernel(1, 32, 0, [] { Recurse(nullptr, 1000); }),
               "stack overflow|stack-overflow");
}

TEST(BlockDeathTest, AnUnknownOrderInTheEnvironmentIsRefused) {
  // A process of its own: the environment is read once.
  ::testing::GTEST_FLAG(death_test_style) = "threadsafe";
  EXPECT_EXIT(
      {
        setenv("QUANTD_EMULATION_ORDER", "sideways", 1);
        RunKernel(1, 1, 0, [] {});
      },
      testing::KilledBySignal(SIGABRT), "sideways is none of forward, reverse, random:SEED");
}

}  // namespace
}  // namespace quantd::cuda_emulated
