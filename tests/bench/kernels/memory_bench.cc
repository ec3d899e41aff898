// Read bandwidth of this machine, with one thread and with all: the bound of every decode step.
#include <benchmark/benchmark.h>

#include <cstdint>

#include "kernels/cpu/thread_pool.h"
#include "kernels/host_memory.h"

namespace quantd {
namespace {

void BM_MemoryRead(benchmark::State& state) {
  constexpr int64_t kBytes = int64_t{1} << 30;  // beyond every cache
  constexpr int64_t kChunk = int64_t{1} << 18;
  ThreadPool pool(static_cast<int>(state.range(0)));
  MemoryAccount account;
  const Buffer buffer =
      AllocateHost(static_cast<size_t>(kBytes), MemoryComponent::kWorkspace, account).value();
  auto* words = buffer.as<uint64_t>();
  for (int64_t i = 0; i < kBytes / 8; i += 512)
    words[i] = static_cast<uint64_t>(i);  // pages of its own
  for (auto _ : state) {
    pool.Run(kBytes / kChunk, [&](int64_t chunk, int) {
      const uint64_t* p = words + chunk * (kChunk / 8);
      uint64_t sums[4] = {};
      for (int64_t i = 0; i < kChunk / 8; i += 32) {  // one word of each cache line
        for (int j = 0; j < 4; ++j) sums[j] += p[i + j * 8];
      }
      benchmark::DoNotOptimize(sums);
    });
  }
  state.SetBytesProcessed(state.iterations() * kBytes);
}

const bool kRegistered = [] {
  auto* read = benchmark::RegisterBenchmark("memory_read/threads", BM_MemoryRead);
  read->UseRealTime()->Unit(benchmark::kMillisecond)->Arg(1);
  if (AvailableThreads() > 1) read->Arg(AvailableThreads());
  return true;
}();

}  // namespace
}  // namespace quantd
