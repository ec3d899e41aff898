// Memory bandwidth and resident memory. See machine.h.
#include "tests/bench/engine/machine.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <fstream>
#include <memory>
#include <string>
#include <thread>
#include <vector>

namespace quantd {
namespace {

uint64_t Sum(const uint64_t* data, size_t count) {
  // Eight sums keep enough loads in flight that the adds do not limit the reads.
  uint64_t sums[8] = {};
  for (size_t i = 0; i + 8 <= count; i += 8) {
    for (size_t j = 0; j < 8; ++j) sums[j] += data[i + j];
  }
  uint64_t total = 0;
  for (const uint64_t s : sums) total += s;
  return total;
}

/// A memory figure of /proc/self/status; 0 where there is none.
int64_t StatusBytes(const std::string& key) {
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);) {
    if (line.rfind(key, 0) == 0) return std::stoll(line.substr(key.size())) * 1024;
  }
  return 0;
}

}  // namespace

double MeasureReadBandwidth(int threads) {
  constexpr size_t kBytes = size_t{1} << 30;
  constexpr int kPasses = 5;
  const size_t count = kBytes / sizeof(uint64_t);
  std::unique_ptr<uint64_t[]> data(new uint64_t[count]);
  std::fill_n(data.get(), count, uint64_t{1});
  double best = 0.0;
  std::atomic<uint64_t> sink{0};
  for (int pass = 0; pass < kPasses; ++pass) {
    const auto start = std::chrono::steady_clock::now();
    std::vector<std::thread> workers;
    for (int t = 0; t < threads; ++t) {
      const size_t first = count * static_cast<size_t>(t) / static_cast<size_t>(threads);
      const size_t last = count * static_cast<size_t>(t + 1) / static_cast<size_t>(threads);
      workers.emplace_back([&, first, last] { sink += Sum(data.get() + first, last - first); });
    }
    for (std::thread& worker : workers) worker.join();
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
    best = std::max(best, static_cast<double>(kBytes) / seconds.count());
  }
  return best;
}

int64_t PeakResidentBytes() { return StatusBytes("VmHWM:"); }
int64_t ResidentBytes() { return StatusBytes("VmRSS:"); }

bool ResetPeakResident() {
  std::ofstream clear("/proc/self/clear_refs");
  clear << "5";  // proc(5): resets the peak resident set size
  clear.close();
  return static_cast<bool>(clear);
}

}  // namespace quantd
