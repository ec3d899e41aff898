// ServingStatistics: counts and durations of all requests since the start, as KServe's
// ModelStatistics has them. Hears the engine and passes on what it hears. Thread-safe.
#pragma once

#include <chrono>
#include <cstdint>
#include <mutex>

#include "engine/engine.h"

namespace quantd {

class ServingStatistics : public EngineObserver {
 public:
  /// Requests, and the seconds of all of them together.
  struct Total {
    uint64_t count = 0;
    double seconds = 0;
  };
  struct Snapshot {
    Total success, fail;  // from submitted to finished; failed: cancelled, too late or an error
    // Of the successful ones; the counts are equal.
    Total queue;                   // until first scheduled
    Total prefill;                 // from there to the first token
    Total decode;                  // from there to the last one
    Total rest;                    // what is left
    uint64_t steps = 0;            // of the engine
    int64_t last_finished_ms = 0;  // since 1970; 0: none was
  };

  /// `next`, which may be null, hears everything, too, and must outlive this.
  explicit ServingStatistics(EngineObserver* next) : next_(next) {}

  void OnFirstToken(double seconds_since_submit) override;
  void OnInterTokenLatency(double seconds) override;
  void OnStep(int32_t tokens) override;
  void OnFinished(const Finished& finished) override;

  Snapshot Read() const;

 private:
  EngineObserver* const next_;
  mutable std::mutex mutex_;
  Snapshot totals_;
};

}  // namespace quantd
