#include "server/kserve/statistics.h"

#include <algorithm>

namespace quantd {

void ServingStatistics::OnFirstToken(double seconds_since_submit) {
  if (next_ != nullptr) next_->OnFirstToken(seconds_since_submit);
}

void ServingStatistics::OnInterTokenLatency(double seconds) {
  if (next_ != nullptr) next_->OnInterTokenLatency(seconds);
}

void ServingStatistics::OnStep(int32_t tokens) {
  {
    std::lock_guard lock(mutex_);
    ++totals_.steps;
  }
  if (next_ != nullptr) next_->OnStep(tokens);
}

void ServingStatistics::OnFinished(const Finished& f) {
  const auto now = std::chrono::system_clock::now().time_since_epoch();
  const auto add = [](Total& total, double seconds) {
    ++total.count;
    total.seconds += std::max(seconds, 0.0);
  };
  {
    std::lock_guard lock(mutex_);
    Snapshot& t = totals_;
    t.last_finished_ms = std::chrono::duration_cast<std::chrono::milliseconds>(now).count();
    if (f.reason == FinishReason::kStop || f.reason == FinishReason::kLength) {
      add(t.success, f.total_seconds);
      add(t.queue, f.queue_seconds);
      add(t.prefill, f.prefill_seconds);
      add(t.decode, f.decode_seconds);
      add(t.rest, f.total_seconds - f.queue_seconds - f.prefill_seconds - f.decode_seconds);
    } else {
      add(t.fail, f.total_seconds);
    }
  }
  if (next_ != nullptr) next_->OnFinished(f);
}

ServingStatistics::Snapshot ServingStatistics::Read() const {
  std::lock_guard lock(mutex_);
  return totals_;
}

}  // namespace quantd
