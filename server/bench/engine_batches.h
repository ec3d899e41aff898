// MeasureBatch: requests given to an engine at once, without a network: how fast their prompts are
// read, how fast they are continued, how long a step takes.
#pragma once

#include <cstdint>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/engine.h"
#include "server/bench/measurement.h"

namespace quantd::bench {

/// When each step ended, and of how many rows it was. Thread-safe.
class StepTimes : public EngineObserver {
 public:
  void OnStep(int32_t tokens) override;
  /// What came since the last call.
  std::vector<std::pair<int32_t, Clock::time_point>> Take();

 private:
  std::mutex mutex_;
  std::vector<std::pair<int32_t, Clock::time_point>> steps_;
};

struct BatchOptions {
  int32_t batch = 1;        // requests at once
  int32_t input_len = 128;  // tokens of each prompt, drawn at random
  int32_t output_len = 128;
  int32_t iterations = 3;
  int32_t warmup_iterations = 1;  // not counted
  uint64_t seed = 0;
};

struct BatchResult {
  BatchOptions options;
  double prefill = 0.0;     // tokens/s: all prompts by the time to the last first token
  double decode = 0.0;      // tokens/s of steps in which every request of the batch is continued
  double output = 0.0;      // tokens/s over everything
  Summary step;             // seconds of these steps
  Summary ttft, itl, e2el;  // seconds, of requests
};

/// `steps` is the observer that `engine` was created with. Errors are Submit's, and those of
/// requests that did not end as they should.
absl::StatusOr<BatchResult> MeasureBatch(Engine& engine, StepTimes& steps,
                                         const BatchOptions& options);

}  // namespace quantd::bench
