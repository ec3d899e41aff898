// Generate: requests run to completion, synchronously. For tests, the command line and benchmarks;
// a server uses sinks of its own.
//
//   ASSIGN_OR_RETURN(GenerateResult result, Generate(*engine, std::move(request)));
//
// May be called from any thread but the engine's.
#pragma once

#include <condition_variable>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/engine.h"
#include "engine/request.h"

namespace quantd {

/// Everything a request's updates said.
struct GenerateResult {
  std::string text;
  std::vector<TokenOutput> tokens;
  Usage usage;
  FinishReason finish_reason = FinishReason::kError;
  std::string stop_reason;
  absl::Status status;  // why, for kCancelled and kError

  std::vector<int32_t> token_ids() const;
};

/// A sink that keeps what it is told. Thread-safe.
class CollectingSink : public RequestSink {
 public:
  /// Of a request with `n` outputs.
  explicit CollectingSink(int32_t n = 1) : unfinished_(n), results_(static_cast<size_t>(n)) {}
  void OnUpdate(RequestUpdate update) override;
  /// Blocks until the last update has come; the first output.
  const GenerateResult& Wait();
  /// All outputs, after Wait.
  const std::vector<GenerateResult>& results() const { return results_; }
  /// The same for at most `timeout`; null when it has not come.
  const GenerateResult* WaitFor(std::chrono::milliseconds timeout);
  /// Tokens received so far, of all outputs.
  size_t num_tokens() const;

 private:
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  int32_t unfinished_;  // outputs
  std::vector<GenerateResult> results_;
};

/// Submits and waits; the first output. Errors are Submit's; how a taken request ended is in the
/// result.
absl::StatusOr<GenerateResult> Generate(Engine& engine, Request request);
/// The same with all of a request's n outputs.
absl::StatusOr<std::vector<GenerateResult>> GenerateOutputs(Engine& engine, Request request);
/// All at once, so that they share steps; the first outputs in the order of `requests`. On an error
/// of Submit those already taken are cancelled.
absl::StatusOr<std::vector<GenerateResult>> GenerateAll(Engine& engine,
                                                        std::vector<Request> requests);

}  // namespace quantd
