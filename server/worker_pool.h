// WorkerPool: a few threads and a bounded queue, for work that may take longer than a gRPC reaction
// may (tokenizing). Thread-safe.
#pragma once

#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

namespace quantd {

class WorkerPool {
 public:
  WorkerPool(int threads, size_t max_queued);
  ~WorkerPool();  // runs what is queued, then joins

  /// What became of a job: it waits; or it was dropped, because all places are taken, or because
  /// its owner would have more of them than are left for others.
  enum class Answer : uint8_t { kQueued, kFull, kShareTaken };
  /// `owner`: empty for a job that is nobody's, which has no share.
  Answer Submit(const std::string& owner, std::function<void()> job);
  /// Waits until nothing is queued and nothing runs, but not beyond `until`.
  void WaitUntilIdle(std::chrono::steady_clock::time_point until);

 private:
  struct Job {
    std::string owner;
    std::function<void()> run;
  };
  void Loop();

  const size_t max_queued_;
  std::mutex mutex_;
  std::condition_variable wake_;
  std::deque<Job> queue_;
  std::map<std::string, size_t> waiting_;  // jobs in the queue, by owner
  size_t running_ = 0;                     // jobs
  std::condition_variable idle_;
  bool stopping_ = false;
  std::vector<std::thread> threads_;
};

}  // namespace quantd
