// StallWatch: gives up on a client that does not take what gRPC holds for it, so that answers that
// nobody reads do not stay for ever. Thread-safe.
#pragma once

#include <grpcpp/grpcpp.h>

#include <mutex>
#include <optional>

#include "engine/request.h"

namespace quantd {

class StallWatch {
 public:
  /// `patience`: how many times the limit a client may take.
  explicit StallWatch(grpc::CallbackServerContext* context, int patience = 1)
      : context_(context), patience_(patience) {}

  /// gRPC holds something for the client from now on.
  void Begin() {
    std::lock_guard lock(mutex_);
    since_ = Clock::now();
  }
  /// It was taken.
  void End() {
    std::lock_guard lock(mutex_);
    since_.reset();
  }
  /// The context is going away.
  void Detach() {
    std::lock_guard lock(mutex_);
    context_ = nullptr;
  }
  /// Of the watchdog.
  void CheckStall(Clock::time_point now, Clock::duration limit) {
    std::lock_guard lock(mutex_);
    if (context_ == nullptr || !since_.has_value() || now - *since_ < patience_ * limit) return;
    context_->TryCancel();
  }

 private:
  std::mutex mutex_;
  grpc::CallbackServerContext* context_;
  const int patience_;
  std::optional<Clock::time_point> since_;
};

}  // namespace quantd
