// Faults: what is wrong with a file, all of it in one message. Used while loading, by one thread.
#pragma once

#include <cstddef>
#include <string>
#include <utility>

#include "kernels/status.h"

namespace quantd {

class Faults {
 public:
  template <typename... Args>
  void Add(fmt::format_string<Args...> f, Args&&... args) {
    // A file can have a fault in each of a million merges; the first ones tell what is wrong.
    if (++count_ > kListed) return;
    text_ += fmt::format("\n  {}", fmt::format(f, std::forward<Args>(args)...));
  }
  bool empty() const { return count_ == 0; }
  /// OK without faults, else DATA_LOSS listing them under `path`.
  absl::Status ToStatus(const std::string& path) const {
    if (empty()) return absl::OkStatus();
    const std::string more =
        count_ > kListed ? fmt::format("\n  and {} more", count_ - kListed) : std::string();
    return DataLoss("{}: {} fault{}:{}{}", path, count_, count_ == 1 ? "" : "s", text_, more);
  }

 private:
  static constexpr size_t kListed = 16;
  size_t count_ = 0;
  std::string text_;
};

}  // namespace quantd
