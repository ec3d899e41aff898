// ThreadPool: every chunk once, from any thread, many short jobs, and with workers asleep.
#include "kernels/cpu/thread_pool.h"

#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <thread>
#include <vector>

namespace quantd {
namespace {

TEST(ThreadPool, RunsEveryChunkOnceWhateverTheNumberOfThreads) {
  for (int threads : {1, 2, 5}) {
    ThreadPool pool(threads);
    EXPECT_EQ(pool.num_threads(), threads);
    for (int64_t chunks : {0, 1, 2, 7, 1000}) {
      std::vector<std::atomic<int>> count(static_cast<size_t>(chunks));
      std::atomic<bool> bad_worker = false;
      pool.Run(chunks, [&](int64_t chunk, int worker) {
        ++count[static_cast<size_t>(chunk)];
        if (worker < 0 || worker >= threads) bad_worker = true;
      });
      for (const auto& c : count)
        EXPECT_EQ(c.load(), 1) << threads << " threads, " << chunks << " chunks";
      EXPECT_FALSE(bad_worker);
    }
  }
}

TEST(ThreadPool, JobsFollowEachOtherWithoutMixingTheirChunks) {
  ThreadPool pool(4);
  for (int64_t job = 0; job < 20000; ++job) {
    std::atomic<int64_t> sum = 0;
    pool.Run(5, [&sum, job](int64_t chunk, int) { sum += job + chunk; });
    ASSERT_EQ(sum.load(), 5 * job + 10);
  }
}

TEST(ThreadPool, WakesWorkersThatHaveParked) {
  ThreadPool pool(3);
  for (int i = 0; i < 5; ++i) {
    std::this_thread::sleep_for(std::chrono::milliseconds(2));  // longer than workers spin
    // Every chunk waits until all three run at once, so parked workers must wake.
    std::atomic<int> running = 0;
    pool.Run(3, [&](int64_t, int) {
      ++running;
      while (running.load() < 3) std::this_thread::yield();
    });
    EXPECT_EQ(running.load(), 3);
  }
}

TEST(ThreadPool, TwoCallersAtOnceBothFinish) {
  ThreadPool pool(3);
  std::atomic<int64_t> total = 0;
  const auto call = [&] {
    for (int i = 0; i < 2000; ++i) pool.Run(4, [&](int64_t, int) { ++total; });
  };
  std::thread other(call);
  call();
  other.join();
  EXPECT_EQ(total.load(), 2 * 2000 * 4);
}

TEST(ThreadPool, SomeThreadIsAlwaysAvailable) { EXPECT_GE(AvailableThreads(), 1); }

}  // namespace
}  // namespace quantd
