// GenerateCall: the state of one Generate or GenerateStream call, shared by its gRPC reactor, the
// engine (whose sink it is) and the tokenizer's worker. No gRPC type in it.
//
//   engine thread --OnUpdate--> [a merged update of each output] --Port::Write--> one write in
//   flight
//
// While a write is in flight, later updates are merged, which loses nothing; when the waiting
// tokens exceed the backlog limit the engine gives the request no more steps (Stalled). A writer
// that makes no progress for the stall limit ends the call.
//
// Threads: any. One mutex guards all state and is held while the port is called, so that the port
// (a gRPC reactor) cannot be destroyed meanwhile: its OnDone calls Detach first. The engine is
// never called with the mutex held.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "engine/engine.h"
#include "server/grpc/call_meter.h"
#include "server/grpc/registry.h"

namespace quantd {

class GenerateCall : public RequestSink, public std::enable_shared_from_this<GenerateCall> {
 public:
  /// What a reactor offers. Called with the call's mutex held; must not call back.
  class Port {
   public:
    virtual ~Port() = default;
    /// Starts the one write in flight; OnWriteDone follows.
    virtual void Write(RequestUpdate update) = 0;
    /// Sends `updates` and ends the call: of a stream at most one, of a call that collects one for
    /// each output, in order, or none. `retry_pushback`: tell the client when to try again.
    virtual void Finish(std::vector<RequestUpdate> updates, const absl::Status& status,
                        bool retry_pushback) = 0;
    /// Gives up on a client that does not even read the end of its call.
    virtual void Abort() = 0;
  };

  /// `streaming`: write updates as they come; otherwise collect them for Finish.
  GenerateCall(Port* port, bool streaming, int64_t backlog_tokens)
      : streaming_(streaming), backlog_limit_(backlog_tokens), port_(port) {}

  // ---- the request's way in ----
  /// False once the call has ended: preparing the request further is wasted.
  bool active() const;
  /// Hands the request to `engine`, which must outlive this.
  void Submit(Engine* engine, Request request);
  /// Before Submit.
  void SetMeter(std::unique_ptr<CallMeter> meter);
  /// Ends the call. Later calls do nothing.
  void Fail(const absl::Status& status, bool retry_pushback = false);

  // ---- the engine ----
  void OnUpdate(RequestUpdate update) override;
  bool Stalled() const override;

  // ---- the reactor ----
  void OnWriteDone(bool ok);
  void OnCancel() { Fail(absl::CancelledError("cancelled by the client")); }
  /// The port is going away.
  void Detach();

  // ---- the watchdog ----
  void CheckStall(Clock::time_point now, Clock::duration limit);

 private:
  // With mutex_.
  void Pump();
  void EndMeter(const absl::Status& status);
  void FinishLocked(std::vector<RequestUpdate> updates, const absl::Status& status,
                    bool retry_pushback);
  // The output to write next, -1: none.
  int NextOutput() const;
  RequestUpdate Take(int output);
  void NoteBacklog();
  void CancelInEngine();  // without mutex_

  const bool streaming_;
  const int64_t backlog_limit_;
  std::atomic<int64_t> backlog_{0};  // tokens in outputs_, for Stalled

  mutable std::mutex mutex_;
  Port* port_;                        // null after Detach
  std::unique_ptr<CallMeter> meter_;  // may be null
  bool metered_ = false;              // its OnEnd was called
  bool writing_ = false;              // a write is in flight
  bool finished_ = false;             // Port::Finish was called
  bool ended_ = false;                // the engine has said its last
  // Of each output, the merged updates that were not written yet.
  std::vector<std::optional<RequestUpdate>> outputs_ = std::vector<std::optional<RequestUpdate>>(1);
  int32_t unfinished_ = 1;                     // outputs whose last update has not come
  absl::Status end_;                           // why an output was cut off: the call's end
  int last_written_ = 0;                       // output
  Clock::time_point progress_ = Clock::now();  // when a write was last started or done
  Engine* engine_ = nullptr;                   // set with handle_
  RequestHandle handle_ = 0;
};

/// The calls that are not done.
using CallRegistry = Registry<GenerateCall>;

}  // namespace quantd
