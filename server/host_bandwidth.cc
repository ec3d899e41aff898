#include "server/host_bandwidth.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <thread>
#include <vector>

namespace quantd {
namespace {

constexpr size_t kWords = (size_t{128} << 20) / sizeof(uint64_t);
constexpr size_t kLanes = 16;  // sums that do not wait for each other
constexpr int kPasses = 3;

uint64_t Sum(const std::vector<uint64_t>& words) {
  uint64_t sums[kLanes] = {};
  for (size_t i = 0; i < words.size(); i += kLanes) {
    for (size_t lane = 0; lane < kLanes; ++lane) sums[lane] += words[i + lane];
  }
  uint64_t total = 0;
  for (const uint64_t sum : sums) total += sum;
  return total;
}

}  // namespace

double MeasureHostBandwidth(int threads) {
  using Steady = std::chrono::steady_clock;
  const auto count = static_cast<size_t>(std::max(threads, 1));
  std::vector<std::vector<uint64_t>> buffers(count);
  std::atomic<uint64_t> sink{0};  // so that the sums are needed
  const auto on_all = [&](const auto& body) {
    std::vector<std::thread> workers;
    for (size_t i = 0; i < count; ++i)
      workers.emplace_back([&body, &buffers, i] { body(buffers[i]); });
    for (std::thread& worker : workers) worker.join();
  };
  on_all([](std::vector<uint64_t>& buffer) { buffer.assign(kWords, 1); });
  double best = 0;
  for (int pass = 0; pass < kPasses; ++pass) {
    const auto start = Steady::now();
    on_all([&](const std::vector<uint64_t>& buffer) { sink += Sum(buffer); });
    const double seconds = std::chrono::duration<double>(Steady::now() - start).count();
    best = std::max(best, static_cast<double>(count * kWords * sizeof(uint64_t)) / seconds);
  }
  return best;
}

}  // namespace quantd
