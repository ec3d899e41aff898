// Front: what the services of a server share between a call's arrival and the engine: who calls,
// whether there is a model, the workers that make texts tokens, and the calls that live with the
// watchdog over them. Nothing in it blocks. Thread-safe.
#pragma once

#include <grpcpp/grpcpp.h>

#include <atomic>
#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>

#include "server/config.h"
#include "server/grpc/convert.h"
#include "server/grpc/generate_call.h"
#include "server/grpc/registry.h"
#include "server/grpc/stall_watch.h"
#include "server/line_limit.h"
#include "server/security/api_keys.h"
#include "server/security/tls.h"
#include "server/serving.h"
#include "server/worker_pool.h"

namespace quantd {

/// Who calls.
struct Caller {
  std::shared_ptr<KeyUse> key;  // null where there are no keys

  std::string name() const { return key == nullptr ? "" : key->key().name; }
};

/// What a method is about: the model that is served, or the server itself.
enum class Access : uint8_t { kModel, kAdmin };
/// For whom a port is. Whoever reaches the administrators' may call what is theirs; what the model
/// needs is the same on both.
enum class Port : uint8_t { kClients, kAdmin };

class Front {
 public:
  /// `serving`, the model in it and `tls` must outlive the front; `keys` and `tls` may be null.
  Front(const Serving& serving, const ServerConfig& config, std::unique_ptr<KeyRing> keys,
        TlsStore* tls);
  ~Front();

  const Serving& serving() const { return serving_; }
  const ServerConfig& config() const { return config_; }

  /// The model, or UNAVAILABLE while loading or (for new work) draining.
  absl::StatusOr<const ServedModel*> Ready() const;
  /// Every method asks this first. UNAUTHENTICATED without a known key where keys are needed;
  /// PERMISSION_DENIED when the key is not for the served model, or not for administrators; either
  /// is written down with the address it came from; of a flood only the beginning of each second.
  absl::StatusOr<Caller> Identify(const grpc::CallbackServerContext& context, Access access,
                                  Port port) const;
  /// What a generation begins with: Identify and Ready. A refusal is written down under `id`.
  struct Opened {
    Caller caller;
    const ServedModel* model;
  };
  absl::StatusOr<Opened> Open(const grpc::CallbackServerContext& context, Port port,
                              const std::string& id = "") const;

  /// A name for a request that has none.
  std::string NextRequestId();
  /// The earliest of the call's own deadline, the server's limit and, if the request has one, its
  /// `timeout` from now.
  std::optional<Clock::time_point> DeadlineOf(
      const grpc::CallbackServerContext& context,
      std::optional<Clock::duration> timeout = std::nullopt) const;
  /// Sends a request on its way to `model`'s engine, charged to its caller, text through a worker
  /// first; ends `call` when it is refused. Afterwards the call's reactor may be gone at any time.
  void Start(const std::shared_ptr<GenerateCall>& call, const ServedModel& model,
             const Caller& caller, PreparedRequest prepared);

  /// Runs `job` on a worker. RESOURCE_EXHAUSTED, worth a retry, when too many are waiting: a key
  /// may have at most as many there as are left for others.
  absl::Status OnWorker(const Caller& caller, std::function<void()> job);
  /// Writes down a request that was refused before it got to Start.
  void LogRefusal(const std::string& id, const Caller& caller, const absl::Status& status,
                  const std::string& peer = "") const;
  /// The status that ends a call, with the time of the next try when that is worth one.
  grpc::Status EndOf(grpc::CallbackServerContext* context, const absl::Status& status,
                     bool retry_pushback) const;

  const KeyRing* keys() const { return keys_.get(); }
  /// Calls that were turned away for want of a key, or of the right one.
  int64_t unauthenticated() const { return unauthenticated_; }
  int64_t forbidden() const { return forbidden_; }
  /// Texts that were refused because too many were waiting to be tokenized.
  int64_t refused_texts() const { return refused_texts_; }

  /// Calls that generate and are not done.
  CallRegistry& calls() { return calls_; }
  const CallRegistry& calls() const { return calls_; }
  /// Ends all of them with `status`.
  void CancelAll(const absl::Status& status);
  /// Answers that are no GenerateCall's and may be too much for a client to take at once.
  Registry<StallWatch>& answers() { return answers_; }
  /// Waits until no text is left to be tokenized, but not beyond `until`.
  void FinishTexts(Clock::time_point until) { pool_->WaitUntilIdle(until); }

 private:
  void LogDenial(const Caller& caller, const absl::Status& status, const std::string& peer) const;
  void Watch();
  void ReloadKeys();
  void ReloadCertificate();
  void LogKeys() const;

  const Serving& serving_;
  const ServerConfig config_;
  const std::unique_ptr<KeyRing> keys_;
  TlsStore* const tls_;
  std::string keys_fault_;  // of the watchdog: told once
  std::string certificate_fault_;
  mutable std::atomic<int64_t> unauthenticated_{0};
  mutable std::atomic<int64_t> forbidden_{0};
  std::atomic<int64_t> refused_texts_{0};
  CallRegistry calls_;
  Registry<StallWatch> answers_;
  mutable LineLimit denials_;  // in the log
  std::atomic<uint64_t> next_id_{1};
  std::mutex watch_mutex_;
  std::condition_variable watch_wake_;
  bool stopping_ = false;
  std::thread watchdog_;
  std::unique_ptr<WorkerPool> pool_;  // last: its jobs use the rest
};

}  // namespace quantd
