// LineLimit: how often a line of the log that strangers can cause is worth writing.
#pragma once

#include <cstdint>
#include <mutex>
#include <optional>
#include <utility>

#include "engine/request.h"

namespace quantd {

class LineLimit {
 public:
  /// At most `most` lines a second.
  explicit LineLimit(int most) : most_(most) {}

  /// Whether to write one at `now`: how many were left out since the last, or nothing to leave it
  /// out, too. Thread-safe.
  std::optional<int64_t> Admit(Clock::time_point now) {
    std::lock_guard lock(mutex_);
    if (now - begun_ >= std::chrono::seconds(1)) {
      begun_ = now;
      lines_ = 0;
    }
    if (lines_ >= most_) {
      ++left_out_;
      return std::nullopt;
    }
    ++lines_;
    return std::exchange(left_out_, 0);
  }

 private:
  const int most_;
  std::mutex mutex_;
  Clock::time_point begun_;  // of the second that is counted
  int lines_ = 0;
  int64_t left_out_ = 0;
};

}  // namespace quantd
