// Serving: what gRPC and HTTP read of the server's state: loading, ready or draining, and the model
// once there is one. Written by the main flow (server/serve.cc), read by any thread, without locks.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "engine/engine.h"
#include "engine/plan/memory_plan.h"
#include "engine/text/chat_template.h"

namespace quantd {

class ServingStatistics;

/// A loaded model. The pointees outlive every call that was made while the server was ready.
struct ServedModel {
  std::string name;
  Engine* engine = nullptr;
  const Tokenizer* tokenizer = nullptr;
  const Backend* backend = nullptr;
  DType compute_dtype = DType::kBF16;
  DType kv_dtype = DType::kBF16;
  const MemoryPlan* plan = nullptr;               // null where nothing was planned
  int64_t driver_bytes = 0;                       // DriverBytes, once it was loaded
  const ChatTemplate* chat_template = nullptr;    // null where the model has none that can be used
  const ServingStatistics* statistics = nullptr;  // null where nobody counts
};

/// What became of calls before the engine, for metrics.
struct CallCounts {
  struct OfKey {
    std::string name;
    int64_t requests = 0;  // begun
    int64_t refused = 0;   // beyond what the key may
    int64_t tokens = 0;    // of prompts and outputs
    int64_t live = 0;
  };
  int64_t live = 0;             // that generate and are not done
  int64_t unauthenticated = 0;  // turned away without a known key
  int64_t forbidden = 0;        // turned away with one that is not for the model or the method
  int64_t refused_texts = 0;    // too many were waiting to be tokenized
  std::optional<int64_t> tls_expires;  // of the certificate in use, seconds since 1970
  std::vector<OfKey> by_key;
};

class Serving {
 public:
  enum class State : uint8_t { kLoading, kReady, kDraining };

  State state() const { return state_.load(std::memory_order_acquire); }
  /// For probes: draining already when load balancers should look elsewhere.
  State announced() const {
    return ends_.load(std::memory_order_acquire) ? State::kDraining : state();
  }
  /// Null while loading.
  const ServedModel* model() const { return model_.load(std::memory_order_acquire); }
  /// 0 to 1.
  double load_progress() const { return load_progress_.load(std::memory_order_relaxed); }
  double uptime_seconds() const {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count();
  }

  void SetLoadProgress(double share) { load_progress_.store(share, std::memory_order_relaxed); }
  /// Once. `model` must outlive this. Does not undo SetDraining.
  void SetReady(const ServedModel* model) {
    model_.store(model, std::memory_order_release);
    State expected = State::kLoading;
    state_.compare_exchange_strong(expected, State::kReady);
  }
  /// What probes are to say from here on, while requests are still taken: kDraining.
  void AnnounceEnd() { ends_.store(true, std::memory_order_release); }
  void SetDraining() { state_.store(State::kDraining, std::memory_order_release); }

 private:
  const std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
  std::atomic<State> state_{State::kLoading};
  std::atomic<bool> ends_{false};
  std::atomic<const ServedModel*> model_{nullptr};
  std::atomic<double> load_progress_{0.0};
};

}  // namespace quantd
