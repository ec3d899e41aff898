// WorkerPool: one mutex, one queue.
#include "server/worker_pool.h"

#include <utility>

namespace quantd {

WorkerPool::WorkerPool(int threads, size_t max_queued) : max_queued_(max_queued) {
  for (int i = 0; i < threads; ++i) threads_.emplace_back([this] { Loop(); });
}

WorkerPool::~WorkerPool() {
  {
    std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  wake_.notify_all();
  for (std::thread& thread : threads_) thread.join();
}

WorkerPool::Answer WorkerPool::Submit(const std::string& owner, std::function<void()> job) {
  {
    std::lock_guard lock(mutex_);
    if (queue_.size() >= max_queued_) return Answer::kFull;
    if (!owner.empty()) {
      size_t& own = waiting_[owner];
      // The first one is always let in.
      if (own > 0 && own + 1 > max_queued_ - queue_.size()) return Answer::kShareTaken;
      ++own;
    }
    queue_.push_back({owner, std::move(job)});
  }
  wake_.notify_one();
  return Answer::kQueued;
}

void WorkerPool::WaitUntilIdle(std::chrono::steady_clock::time_point until) {
  std::unique_lock lock(mutex_);
  idle_.wait_until(lock, until, [this] { return queue_.empty() && running_ == 0; });
}

void WorkerPool::Loop() {
  std::unique_lock lock(mutex_);
  while (true) {
    wake_.wait(lock, [this] { return stopping_ || !queue_.empty(); });
    if (queue_.empty()) return;
    Job job = std::move(queue_.front());
    queue_.pop_front();
    if (const auto own = waiting_.find(job.owner); own != waiting_.end() && --own->second == 0) {
      waiting_.erase(own);
    }
    ++running_;
    lock.unlock();
    job.run();
    job.run = nullptr;  // what it holds is released without the lock
    lock.lock();
    if (--running_ == 0 && queue_.empty()) idle_.notify_all();
  }
}

}  // namespace quantd
