// Streams, events and graphs of the emulated runtime, and the list of kernels.
#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <thread>
#include <vector>

#include "gmock/gmock.h"
#include "kernels/cuda/emulation/testing.h"
#include "tests/kernels/cuda/emulation/emulation_testing.h"

namespace quantd::cuda_emulated {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

template <typename T, int kFactor>
__global__ void MultiplyAdd(T* __restrict__ x, T add, int n) {
  const auto i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (i < n) x[i] = x[i] * kFactor + add;
}
__global__ void LaunchedByOneTest() {}

class RuntimeTest : public testing::Test {
 protected:
  RuntimeTest() { ClearDeviceFailures(); }
  ~RuntimeTest() override {
    DestroyStream(a_);
    DestroyStream(b_);
    PinnedFree(host_);
    ClearDeviceFailures();
  }
  void Launch(int add, Stream stream) {
    LAUNCH((MultiplyAdd<int, 10>), 2, 3, 0, stream, x_.data(), add, 4);
  }
  Stream a_ = CreateStream();
  Stream b_ = CreateStream();
  DeviceArray<int> x_{std::vector<int>{1, 2, 3, 4}};
  int* host_ = static_cast<int*>(PinnedAllocate(4 * sizeof(int)));
};

TEST_F(RuntimeTest, WorkRunsInOrderWhenTheHostWaits) {
  Launch(1, a_);
  Launch(2, a_);
  EXPECT_THAT(x_.Values(), ElementsAre(1, 2, 3, 4)) << "nothing runs before the host waits";
  EXPECT_TRUE(Synchronize(a_).ok());
  EXPECT_THAT(x_.Values(), ElementsAre(112, 212, 312, 412));
  EXPECT_TRUE(Synchronize(a_).ok());
  EXPECT_THAT(x_.Values(), ElementsAre(112, 212, 312, 412)) << "once";
}

TEST_F(RuntimeTest, ArgumentsAreCopiedAtTheLaunch) {
  int add = 5;
  Launch(add, a_);
  add = 7;
  EXPECT_TRUE(Synchronize(a_).ok());
  EXPECT_THAT(x_.Values(), ElementsAre(15, 25, 35, 45));
}

TEST_F(RuntimeTest, APinnedBufferReusedTooEarlyIsAWrongResult) {
  std::fill_n(host_, 4, 5);
  CopyAsync(x_.data(), host_, 16, a_);
  std::fill_n(host_, 4, 6);
  EXPECT_TRUE(Synchronize(a_).ok());
  EXPECT_THAT(x_.Values(), ElementsAre(6, 6, 6, 6));
}

TEST_F(RuntimeTest, AResultReadTooEarlyIsAWrongResult) {
  std::fill_n(host_, 4, 0);
  CopyAsync(host_, x_.data(), 16, a_);
  EXPECT_EQ(host_[0], 0);
  EXPECT_TRUE(Synchronize(a_).ok());
  EXPECT_EQ(host_[3], 4);
}

TEST_F(RuntimeTest, PageableMemoryIsCopiedBeforeTheCallReturns) {
  std::vector<int> host = {9, 8, 7, 6};
  Launch(0, a_);
  CopyAsync(x_.data(), host.data(), 16, a_);
  host.assign(4, 0);
  EXPECT_THAT(x_.Values(), ElementsAre(9, 8, 7, 6));
}

TEST_F(RuntimeTest, FillSetsBytes) {
  FillAsync(x_.data() + 1, 0x01, 8, a_);
  EXPECT_TRUE(Synchronize(a_).ok());
  EXPECT_THAT(x_.Values(), ElementsAre(1, 0x01010101, 0x01010101, 4));
}

TEST_F(RuntimeTest, StreamsAreIndependent) {
  Launch(1, a_);
  EXPECT_TRUE(Synchronize(b_).ok());
  EXPECT_THAT(x_.Values(), ElementsAre(1, 2, 3, 4));
}

TEST_F(RuntimeTest, AnEventIsAPlaceInItsStream) {
  Event event = CreateEvent();
  EXPECT_TRUE(Wait(event).ok()) << "never recorded: at once";
  Launch(1, a_);
  Record(event, a_);
  Launch(2, a_);
  EXPECT_TRUE(Wait(event).ok());
  EXPECT_THAT(x_.Values(), ElementsAre(11, 21, 31, 41)) << "what came after it has not run";
  Record(event, a_);
  EXPECT_TRUE(Wait(event).ok());
  EXPECT_THAT(x_.Values(), ElementsAre(112, 212, 312, 412)) << "the latest Record counts";
  DestroyEvent(event);
}

TEST_F(RuntimeTest, AStreamWaitsForTheLatestRecordAtTheTimeOfTheCall) {
  Event event = CreateEvent();
  Launch(1, a_);
  Record(event, a_);
  WaitOn(b_, event);
  Launch(2, a_);
  Record(event, a_);
  Launch(5, b_);
  EXPECT_TRUE(Synchronize(b_).ok());
  EXPECT_THAT(x_.Values(), ElementsAre(115, 215, 315, 415)) << "1 on a, then 5 on b, 2 not yet";
  EXPECT_TRUE(Synchronize(a_).ok());
  EXPECT_THAT(x_.Values(), ElementsAre(1152, 2152, 3152, 4152));
  DestroyEvent(event);
}

TEST_F(RuntimeTest, WaitsBetweenStreamsChain) {
  Event one = CreateEvent(), two = CreateEvent();
  Launch(1, a_);
  Record(one, a_);
  WaitOn(b_, one);
  Launch(2, b_);
  Record(two, b_);
  WaitOn(a_, two);
  Launch(3, a_);
  EXPECT_TRUE(Synchronize(a_).ok());
  EXPECT_THAT(x_.Values(), ElementsAre(1123, 2123, 3123, 4123));
  DestroyEvent(one);
  DestroyEvent(two);
}

TEST_F(RuntimeTest, AnEventOutlivesItsStream) {
  Event event = CreateEvent();
  Stream gone = CreateStream();
  Launch(1, gone);
  Record(event, gone);
  DestroyStream(gone);
  EXPECT_THAT(x_.Values(), ElementsAre(11, 21, 31, 41)) << "destroying drains";
  EXPECT_TRUE(Wait(event).ok());
  DestroyEvent(event);
}

TEST_F(RuntimeTest, FreeingMemoryWaitsForItsUsers) {
  auto* const y = static_cast<int*>(DeviceAllocate(16));
  CopyAsync(y, x_.data(), 16, a_);
  CopyAsync(x_.data() + 2, y, 8, a_);
  DeviceFree(y);
  EXPECT_THAT(x_.Values(), ElementsAre(1, 2, 1, 2));
}

TEST_F(RuntimeTest, AGraphRunsWhatWasRecordedAsOftenAsItIsLaunched) {
  BeginCapture(a_);
  Launch(1, a_);
  CopyAsync(host_, x_.data(), 16, a_);
  Graph graph = EndCapture(a_);
  ASSERT_NE(graph, nullptr);
  EXPECT_TRUE(Synchronize(a_).ok());
  EXPECT_THAT(x_.Values(), ElementsAre(1, 2, 3, 4)) << "recording runs nothing";
  LaunchGraph(graph, a_);
  LaunchGraph(graph, b_);
  Event event = CreateEvent();
  Record(event, a_);
  DestroyGraph(graph);
  EXPECT_TRUE(Wait(event).ok());
  EXPECT_THAT(x_.Values(), ElementsAre(11, 21, 31, 41));
  EXPECT_TRUE(Synchronize(b_).ok());
  EXPECT_THAT(x_.Values(), ElementsAre(111, 211, 311, 411));
  EXPECT_EQ(host_[3], 411);
  DestroyEvent(event);
}

TEST_F(RuntimeTest, WhatCannotBeCapturedGivesNoGraph) {
  std::vector<int> pageable(4);
  Event event = CreateEvent();
  Record(event, b_);
  const std::vector<std::function<void()>> breaking = {
      [&] { (void)Synchronize(b_); },
      [&] { DeviceFree(DeviceAllocate(4)); },
      [&] { CopyAsync(x_.data(), pageable.data(), 16, a_); },
      [&] { WaitOn(a_, event); },
      [&] {
        Record(event, a_);
        WaitOn(b_, event);
      },
  };
  for (size_t i = 0; i < breaking.size(); ++i) {
    BeginCapture(a_);
    Launch(1, a_);
    breaking[i]();
    EXPECT_EQ(EndCapture(a_), nullptr) << i;
  }
  BeginCapture(a_);
  std::thread([] { DeviceFree(DeviceAllocate(4)); }).join();  // another thread's business
  Record(event, a_);
  WaitOn(a_, event);
  Graph graph = EndCapture(a_);
  EXPECT_NE(graph, nullptr);
  DestroyGraph(graph);
  DestroyEvent(event);
}

TEST_F(RuntimeTest, AnInvalidLaunchIsTheFirstError) {
  EXPECT_TRUE(FirstError().ok());
  LAUNCH((MultiplyAdd<int, 10>), 1, 1025, 0, a_, x_.data(), 1, 4);
  LAUNCH((MultiplyAdd<int, 10>), dim3(1, 65536), 1, 0, a_, x_.data(), 1, 4);
  EXPECT_EQ(FirstError().code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(
      std::string(FirstError().message()),
      HasSubstr("MultiplyAdd<int, 10>: invalid configuration: grid (1, 1, 1), block (1025"));
  EXPECT_FALSE(Synchronize(a_).ok());
  for (const dim3 grid : {dim3(0), dim3(1, 0), dim3(1, 1, 65536)}) {
    ClearDeviceFailures();
    LAUNCH((MultiplyAdd<int, 10>), grid, 1, 0, a_, x_.data(), 1, 4);
    EXPECT_FALSE(FirstError().ok());
  }
  ClearDeviceFailures();
  LAUNCH((MultiplyAdd<int, 10>), 1, 32, 227 * 1024 + 1, a_, x_.data(), 1, 4);
  EXPECT_FALSE(FirstError().ok());
}

TEST_F(RuntimeTest, AFailedDeviceRunsNothingMoreAndSaysSo) {
  Event event = CreateEvent();
  Launch(1, a_);
  Record(event, a_);
  InjectDeviceFailure("an uncorrectable ECC error");
  for (const absl::Status& status : {Synchronize(a_), Wait(event), FirstError()}) {
    EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
    EXPECT_THAT(std::string(status.message()), HasSubstr("ECC"));
  }
  EXPECT_THAT(x_.Values(), ElementsAre(1, 2, 3, 4));
  DestroyEvent(event);
}

TEST_F(RuntimeTest, TheDeviceSaysWhatItIs) {
  SetMultiprocessors(7);
  const auto facts = OpenDevice();
  ASSERT_TRUE(facts.ok());
  EXPECT_EQ(facts->multiprocessors, 7);
  EXPECT_EQ(facts->max_shared_memory, 227 * 1024);
  SetSharedMemory(99 * 1024);
  EXPECT_EQ(OpenDevice()->max_shared_memory, 99 * 1024);
  SetSharedMemory(227 * 1024);
  EXPECT_EQ(OpenDevice(1).status().code(), absl::StatusCode::kUnavailable);
  SetMultiprocessors(4);
}

TEST_F(RuntimeTest, TwoThreadsUseTheirOwnStreams) {
  std::vector<std::thread> threads;
  std::vector<std::vector<int>> results(2);
  for (size_t t = 0; t < 2; ++t) {
    threads.emplace_back([&results, t] {
      const DeviceArray<int> x(std::vector<int>(100, static_cast<int>(t)));
      Stream stream = CreateStream();
      for (int i = 0; i < 50; ++i) {
        LAUNCH((MultiplyAdd<int, 1>), 4, 32, 0, stream, x.data(), 2, 100);
        ASSERT_TRUE(Synchronize(stream).ok());
      }
      DestroyStream(stream);
      results[t] = x.Values();
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(results[0], std::vector<int>(100, 100));
  EXPECT_EQ(results[1], std::vector<int>(100, 101));
}

using RuntimeDeathTest = RuntimeTest;

TEST_F(RuntimeDeathTest, MisuseIsReported) {
  EXPECT_DEATH(Launch(1, nullptr), "is no stream");
  EXPECT_DEATH(
      {
        Stream gone = CreateStream();
        DestroyStream(gone);
        (void)Synchronize(gone);
      },
      "is no stream");
  EXPECT_DEATH(CopyAsync(x_.data() + 2, host_, 16, a_),
               "CopyAsync: bytes 8 to 24 of an allocation");
  EXPECT_DEATH(FillAsync(x_.data() + 4, 0, 1, a_), "FillAsync.*not device memory");
  int host = 0;
  EXPECT_DEATH(CopyAsync(&host, host_, 4, a_), "neither is device memory");
}

// ---- the list of kernels ----
uint64_t LaunchesOf(const std::string& name) {
  for (const KernelLaunches& kernel : RegisteredKernels()) {
    if (kernel.name == name) return kernel.launches;
  }
  ADD_FAILURE() << name << " is not registered";
  return 0;
}

TEST_F(RuntimeTest, KernelsAreRegisteredBeforeTheyAreLaunchedAndLaunchesCounted) {
  const uint64_t before = LaunchesOf("LaunchedByOneTest");
  const uint64_t other = LaunchesOf("MultiplyAdd<int, 10>");
  LAUNCH(LaunchedByOneTest, 1, 1, 0, a_);
  EXPECT_EQ(LaunchesOf("LaunchedByOneTest"), before) << "it has not run yet";
  EXPECT_TRUE(Synchronize(a_).ok());
  EXPECT_EQ(LaunchesOf("LaunchedByOneTest"), before + 1);
  EXPECT_EQ(LaunchesOf("MultiplyAdd<int, 10>"), other);
}

TEST(KernelNameTest, NamespacesAndTheRestOfThePrettyFunctionGo) {
  EXPECT_EQ(KernelNameOf("constexpr std::string_view PrettyNameOfKernel() [with auto Kernel = "
                         "quantd::cuda_emulated::{anonymous}::Foo<quantd::BF16, 8>; "
                         "std::string_view = std::basic_string_view<char>]"),
            "Foo<BF16, 8>");
  EXPECT_EQ(KernelNameOf("auto f() [with auto Kernel = Bar<int [4]>]"), "Bar<int [4]>");
}

TEST_F(RuntimeTest, CoverageIsWrittenAtExit) {
  const std::filesystem::path folder =
      std::filesystem::temp_directory_path() / ("quantd_coverage_" + std::to_string(getpid()));
  std::filesystem::create_directory(folder);
  EXPECT_EXIT(
      {
        setenv("QUANTD_KERNEL_COVERAGE", folder.c_str(), 1);
        Launch(1, a_);
        (void)Synchronize(a_);
        std::exit(0);
      },
      testing::ExitedWithCode(0), "");
  std::string text;
  for (const auto& entry : std::filesystem::directory_iterator(folder)) {
    EXPECT_THAT(entry.path().filename().string(), HasSubstr("launched."));
    std::ifstream file(entry.path());
    text.append(std::istreambuf_iterator<char>(file), {});
  }
  EXPECT_THAT(text, HasSubstr("MultiplyAdd<int, 10>\n"));
  EXPECT_EQ(text.find("LaunchedByOneTest\n") != std::string::npos,
            LaunchesOf("LaunchedByOneTest") != 0);
  std::filesystem::remove_all(folder);
}

}  // namespace
}  // namespace quantd::cuda_emulated
