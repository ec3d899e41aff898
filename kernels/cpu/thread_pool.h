// ThreadPool: splits one op over the cores. The caller takes part and takes whatever chunks nobody
// else has taken, so a core that is withdrawn costs its share of the work and never a stall.
//
// Workers spin briefly after a job (ops of a step follow each other within microseconds), then park
// on a futex. No allocation per job. Run may be called from any thread; while one job is in flight
// a second caller runs its own chunks alone.
//
//   pool.Run(chunks, [&](int64_t chunk, int worker) { ... });   // worker: 0 .. num_threads() - 1
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <thread>
#include <type_traits>
#include <vector>

namespace quantd {

/// Threads this process may keep busy: its affinity mask, cut down to the cgroup's CPU quota (v1 or
/// v2, rounded up). At least 1.
int AvailableThreads();

class ThreadPool {
 public:
  /// Starts num_threads - 1 workers; the caller of Run is the other one.
  explicit ThreadPool(int num_threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int num_threads() const { return static_cast<int>(workers_.size()) + 1; }

  /// Calls body(chunk, worker) once for every chunk in [0, num_chunks); returns when all have
  /// returned.
  template <typename Body>
  void Run(int64_t num_chunks, const Body& body) {
    RunErased(
        num_chunks,
        [](const void* context, int64_t chunk, int worker) {
          (*static_cast<const Body*>(context))(chunk, worker);
        },
        &body);
  }

 private:
  using Function = void (*)(const void* context, int64_t chunk, int worker);

  void RunErased(int64_t num_chunks, Function function, const void* context);
  void WorkerLoop(int worker);
  /// Takes and runs chunks of the current job until none is left.
  void Drain(int worker);

  // A job is published by storing its ticket: the chunks not yet taken. A successful decrement
  // makes the job's fields stable: the job cannot end before that chunk is counted in done_.
  Function function_ = nullptr;
  const void* context_ = nullptr;
  int64_t num_chunks_ = 0;
  alignas(64) std::atomic<int64_t> remaining_{0};
  alignas(64) std::atomic<int64_t> done_{0};
  alignas(64) std::atomic<uint32_t> epoch_{0};
  std::atomic<int> parked_{0};
  std::atomic<bool> stop_{false};
  std::atomic_flag busy_ = ATOMIC_FLAG_INIT;  // a job is in flight
  std::vector<std::thread> workers_;
};

}  // namespace quantd
