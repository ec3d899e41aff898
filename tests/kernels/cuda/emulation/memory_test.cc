// Global memory, its guards and limits, and cp.async.
#include <cstring>
#include <numeric>
#include <vector>

#include "kernels/cuda/emulation/testing.h"
#include "tests/kernels/cuda/emulation/emulation_testing.h"

namespace quantd::cuda_emulated {
namespace {

// Copies 64 threads x 16 bytes through shared memory, `stages` groups deep, and returns what thread
// t found of its neighbour's piece in each of `steps` steps.
std::vector<int> CopyThrough(const int* source, int steps, bool wait, bool barrier) {
  std::vector<int> got(static_cast<size_t>(steps) * 64);
  RunKernel(1, 64, 2 * 64 * 16, [&] {
    DYN_SMEM(int, s);
    const auto t = static_cast<int>(threadIdx.x);
    const auto issue = [&](int step) {
      if (step < steps) CpAsync16(s + (step % 2 * 64 + t) * 4, source + (step * 64 + t) * 4);
      CpAsyncCommit();
    };
    issue(0);
    for (int step = 0; step < steps; ++step) {
      issue(step + 1);
      if (wait) CpAsyncWait<1>();
      __syncthreads();
      got[static_cast<size_t>(step * 64 + t)] = s[(step % 2 * 64 + (t ^ 33)) * 4 + 1];
      if (barrier) __syncthreads();
    }
  });
  return got;
}

class AsyncCopyTest : public testing::Test {
 protected:
  static constexpr int kSteps = 5;
  AsyncCopyTest() : source_(kSteps * 64 * 4) {
    std::iota(source_.data(), source_.data() + kSteps * 64 * 4, 0);
    for (int i = 0; i < kSteps * 64; ++i) {
      const int step = i / 64, t = i % 64;
      right_.push_back((step * 64 + (t ^ 33)) * 4 + 1);
    }
  }
  DeviceArray<int> source_;
  std::vector<int> right_;
};

TEST_F(AsyncCopyTest, APipelineWithItsWaitsIsRight) {
  ForEachOrder([&] { EXPECT_EQ(CopyThrough(source_.data(), kSteps, true, true), right_); });
}

TEST_F(AsyncCopyTest, AMissingWaitGivesWrongResults) {
  ForEachOrder([&] { EXPECT_NE(CopyThrough(source_.data(), kSteps, false, true), right_); });
}

TEST_F(AsyncCopyTest, RefillingAStageThatOthersStillReadGivesWrongResults) {
  ForEachOrder([&] { EXPECT_NE(CopyThrough(source_.data(), kSteps, true, false), right_); });
}

TEST_F(AsyncCopyTest, BytesBeyondTheSourceBecomeZero) {
  RunKernel(1, 1, 64, [&] {
    DYN_SMEM(unsigned char, s);
    CpAsync16(s, source_.data() + 8, 5);
    CpAsync16(s + 16, source_.data() + 8, 0);
    CpAsyncCommit();
    EXPECT_EQ(s[0], 0xCD);
    CpAsyncWait<0>();
    EXPECT_EQ(s[0], 8);
    EXPECT_EQ(s[4], 9);
    for (int i = 5; i < 32; ++i) EXPECT_EQ(s[i], 0) << i;
    CpAsync4(s, source_.data() + 8);
    CpAsync4(s + 4, source_.data() + 9, 0);
    CpAsyncCommit();
    CpAsyncWait<0>();
    EXPECT_EQ(s[0], 8);
    for (int i = 4; i < 8; ++i) EXPECT_EQ(s[i], 0) << i;
    EXPECT_EQ(s[8], 0) << "four bytes a copy";
  });
}

TEST_F(AsyncCopyTest, WaitingLeavesTheLatestGroupsAndWhatIsNotCommitted) {
  RunKernel(1, 1, 64, [&] {
    DYN_SMEM(int, s);
    for (int i = 0; i < 3; ++i) {
      CpAsync16(s + 4 * i, source_.data() + 4 * i);
      CpAsyncCommit();
    }
    CpAsync16(s + 12, source_.data() + 12);
    const int poison = s[12];
    CpAsyncWait<2>();
    EXPECT_EQ(s[0], 0);
    EXPECT_EQ(s[4], poison);
    CpAsyncWait<0>();
    EXPECT_EQ(s[4], 4);
    EXPECT_EQ(s[8], 8);
    EXPECT_EQ(s[12], poison);
    CpAsyncCommit();
    CpAsyncWait<0>();
    EXPECT_EQ(s[12], 12);
  });
}

TEST_F(AsyncCopyTest, CopiesOfOneThreadAreNotWaitedForByAnother) {
  ForEachOrder([&] {
    int seen = 0;
    RunKernel(1, 2, 32, [&] {
      DYN_SMEM(int, s);
      if (threadIdx.x == 0) {
        CpAsync16(s, source_.data() + 4);
        CpAsyncCommit();
      }
      __syncthreads();
      if (threadIdx.x == 1) {
        CpAsyncWait<0>();
        seen = s[0];
      }
    });
    EXPECT_NE(seen, 4);
  });
}

using AsyncCopyDeathTest = AsyncCopyTest;

TEST_F(AsyncCopyDeathTest, AddressesAreChecked) {
  const int* const end = source_.data() + kSteps * 64 * 4;
  const auto copy = [&](int shared_offset, const void* from, int bytes) {
    RunKernel(1, 1, 64, [&] {
      DYN_SMEM(char, s);
      CpAsync16(s + shared_offset, from, bytes);
    });
  };
  EXPECT_DEATH(copy(4, source_.data(), 16), "cp.async.*shared address.*not aligned to 16");
  EXPECT_DEATH(copy(64, source_.data(), 16), "cp.async.*bytes 64 to 80 of 64");
  EXPECT_DEATH(copy(0, source_.data() + 1, 16), "cp.async.*global address.*not aligned to 16");
  EXPECT_DEATH(copy(0, end, 16), "cp.async.*is not device memory|of an allocation of 5120");
  alignas(16) char host[16] = {};
  EXPECT_DEATH(copy(0, host, 16), "cp.async.*is not device memory");
  EXPECT_DEATH(copy(0, source_.data(), 17), "17 source bytes");
  copy(0, end, 0);  // reads nothing
}

TEST(GlobalMemoryTest, AllocationsAreAlignedAndPoisoned) {
  for (size_t bytes : {1, 100, 256, 5000}) {
    const DeviceArray<unsigned char> array(bytes);
    EXPECT_EQ(reinterpret_cast<uintptr_t>(array.data()) % 256, 0u);
    EXPECT_EQ(array.Values(), std::vector<unsigned char>(bytes, 0xCD));
  }
}

TEST(GlobalMemoryTest, MemoryIsLimitedAndCounted) {
  const size_t before = DeviceBytesInUse();
  SetDeviceMemory(before + 1000);
  void* const a = DeviceAllocate(600);
  EXPECT_NE(a, nullptr);
  EXPECT_EQ(DeviceAllocate(401), nullptr);
  EXPECT_EQ(DeviceAllocate(~size_t{0}), nullptr);
  EXPECT_EQ(OpenDevice()->free_memory, 400);
  EXPECT_EQ(OpenDevice()->total_memory, static_cast<int64_t>(before + 1000));
  void* const b = DeviceAllocate(400);
  EXPECT_NE(b, nullptr);
  DeviceFree(a);
  DeviceFree(b);
  DeviceFree(nullptr);
  EXPECT_EQ(DeviceBytesInUse(), before);
  SetDeviceMemory(size_t{4} << 30);
}

TEST(GlobalMemoryTest, TheNthAllocationFailsWhenAsked) {
  FailAllocation(2);
  void* const a = DeviceAllocate(8);
  EXPECT_NE(a, nullptr);
  EXPECT_EQ(DeviceAllocate(8), nullptr);
  void* const c = DeviceAllocate(8);
  EXPECT_NE(c, nullptr);
  DeviceFree(a);
  DeviceFree(c);
}

TEST(GlobalMemoryTest, LoadStreamingReadsSixteenBytes) {
  const DeviceArray<uint32_t> array({1, 2, 3, 4, 5, 6, 7, 8});
  uint4 v{};
  RunKernel(1, 1, 0, [&] { v = LoadStreaming(array.data() + 4); });
  EXPECT_EQ(std::vector<uint32_t>({v.x, v.y, v.z, v.w}), std::vector<uint32_t>({5, 6, 7, 8}));
}

TEST(GlobalMemoryDeathTest, LoadStreamingChecksItsAddress) {
  const DeviceArray<uint32_t> array(8);
  const auto load = [](const void* p) { RunKernel(1, 1, 0, [=] { LoadStreaming(p); }); };
  load(array.data() + 4);  // remembered: the checks below must still be made
  EXPECT_DEATH(load(array.data() + 2), "not aligned to 16");
  EXPECT_DEATH(load(array.data() + 8), "is not device memory");
  void* const freed = DeviceAllocate(64);
  load(freed);
  DeviceFree(freed);
  EXPECT_DEATH(load(freed), "is not device memory");
}

TEST(GlobalMemoryDeathTest, WritesOutsideAnAllocationAreReported) {
  const auto write = [](int64_t at) {
    Stream stream = CreateStream();
    auto* const p = static_cast<volatile char*>(DeviceAllocate(100));
    p[at] = 1;
    (void)Synchronize(stream);
  };
  EXPECT_DEATH(write(100), "byte 100 of an allocation of 100 was written|heap-buffer-overflow");
  EXPECT_DEATH(write(-1), "byte -1 of an allocation of 100 was written|heap-buffer-overflow");
}

TEST(GlobalMemoryDeathTest, FreeingWhatIsNotAllocatedIsABug) {
  EXPECT_DEATH(
      {
        void* const p = DeviceAllocate(8);
        DeviceFree(p);
        DeviceFree(p);
      },
      "no device memory or was freed before");
  EXPECT_DEATH(PinnedFree(DeviceAllocate(8)), "no pinned memory");
}

}  // namespace
}  // namespace quantd::cuda_emulated
