// Registry: what is open, for the watchdog and for shutting down. Thread-safe.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <unordered_set>
#include <utility>
#include <vector>

namespace quantd {

template <class T>
class Registry {
 public:
  void Add(std::shared_ptr<T> entry) {
    std::lock_guard lock(mutex_);
    entries_.insert(std::move(entry));
  }
  void Remove(const std::shared_ptr<T>& entry) {
    std::lock_guard lock(mutex_);
    entries_.erase(entry);
  }
  std::vector<std::shared_ptr<T>> Snapshot() const {
    std::lock_guard lock(mutex_);
    return {entries_.begin(), entries_.end()};
  }
  int64_t size() const {
    std::lock_guard lock(mutex_);
    return static_cast<int64_t>(entries_.size());
  }

 private:
  mutable std::mutex mutex_;
  std::unordered_set<std::shared_ptr<T>> entries_;
};

}  // namespace quantd
