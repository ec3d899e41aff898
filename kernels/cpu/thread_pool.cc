// The pool's workers and the two places Linux says how many there should be.
#include "kernels/cpu/thread_pool.h"

#include <immintrin.h>
#include <sched.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <fstream>
#include <string>

namespace quantd {
namespace {

/// A worker that finds nothing for this long parks. Longer than the gap between two ops of a decode
/// step (some microseconds), far shorter than a scheduler's time slice.
constexpr std::chrono::microseconds kSpinTime{60};
constexpr int kPausesPerClockRead = 32;

/// CPUs of the cgroup's quota, or 0 when there is none. Only the root of the mounted hierarchy is
/// read: inside a container that is the container's own cgroup.
double QuotaCpus() {
  if (std::ifstream v2("/sys/fs/cgroup/cpu.max"); v2) {
    std::string quota;
    double period = 0;
    if (v2 >> quota >> period && quota != "max" && period > 0) {
      return std::strtod(quota.c_str(), nullptr) / period;
    }
    return 0;
  }
  for (const char* dir : {"/sys/fs/cgroup/cpu", "/sys/fs/cgroup/cpu,cpuacct"}) {
    std::ifstream quota_file(std::string(dir) + "/cpu.cfs_quota_us");
    std::ifstream period_file(std::string(dir) + "/cpu.cfs_period_us");
    double quota = 0;
    double period = 0;
    if (quota_file >> quota && period_file >> period && quota > 0 && period > 0)
      return quota / period;
  }
  return 0;
}

}  // namespace

int AvailableThreads() {
  int threads = static_cast<int>(std::thread::hardware_concurrency());
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof(set), &set) == 0) threads = CPU_COUNT(&set);
  if (const double quota = QuotaCpus(); quota > 0) {
    threads = std::min(threads, static_cast<int>(std::ceil(quota)));
  }
  return std::max(threads, 1);
}

ThreadPool::ThreadPool(int num_threads) {
  workers_.reserve(static_cast<size_t>(std::max(num_threads - 1, 0)));
  for (int i = 1; i < num_threads; ++i) workers_.emplace_back([this, i] { WorkerLoop(i); });
}

ThreadPool::~ThreadPool() {
  stop_.store(true);
  epoch_.fetch_add(1);
  epoch_.notify_all();
  for (std::thread& t : workers_) t.join();
}

void ThreadPool::Drain(int worker) {
  int64_t left = remaining_.load(std::memory_order_acquire);
  while (left > 0) {
    if (!remaining_.compare_exchange_weak(left, left - 1, std::memory_order_acq_rel,
                                          std::memory_order_acquire)) {
      continue;
    }
    function_(context_, num_chunks_ - left, worker);
    done_.fetch_add(1, std::memory_order_release);
    left = remaining_.load(std::memory_order_acquire);
  }
}

void ThreadPool::WorkerLoop(int worker) {
  uint32_t seen = 0;
  while (true) {
    const auto spin_until = std::chrono::steady_clock::now() + kSpinTime;
    bool expired = false;
    while (epoch_.load(std::memory_order_acquire) == seen && !expired) {
      for (int i = 0; i < kPausesPerClockRead && epoch_.load(std::memory_order_relaxed) == seen;
           ++i) {
        _mm_pause();
      }
      expired = std::chrono::steady_clock::now() > spin_until;
    }
    if (epoch_.load() == seen) {
      parked_.fetch_add(1);
      epoch_.wait(seen);
      parked_.fetch_sub(1);
    }
    seen = epoch_.load(std::memory_order_acquire);
    if (stop_.load()) return;
    Drain(worker);
  }
}

void ThreadPool::RunErased(int64_t num_chunks, Function function, const void* context) {
  if (num_chunks <= 0) return;
  // A nested or concurrent caller works alone, as worker 0 of its own job.
  if (num_chunks == 1 || workers_.empty() || busy_.test_and_set(std::memory_order_acquire)) {
    for (int64_t chunk = 0; chunk < num_chunks; ++chunk) function(context, chunk, 0);
    return;
  }
  function_ = function;
  context_ = context;
  num_chunks_ = num_chunks;
  done_.store(0, std::memory_order_relaxed);
  remaining_.store(num_chunks, std::memory_order_release);
  epoch_.fetch_add(1);
  if (parked_.load() > 0) epoch_.notify_all();
  Drain(0);
  // Only chunks already being worked on are left. A worker that lost its core in the middle of one
  // needs this core's time, so give it away after a short spin.
  for (int spins = 0; done_.load(std::memory_order_acquire) != num_chunks; ++spins) {
    if (spins < 4000) {
      _mm_pause();
    } else {
      std::this_thread::yield();
    }
  }
  busy_.clear(std::memory_order_release);
}

}  // namespace quantd
