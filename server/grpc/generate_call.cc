// GenerateCall: see the header for the picture.
#include "server/grpc/generate_call.h"

#include <utility>

#include "kernels/status.h"
#include "server/grpc/convert.h"
#include "server/grpc/error_details.h"

namespace quantd {

bool GenerateCall::active() const {
  std::lock_guard lock(mutex_);
  return port_ != nullptr && !finished_;
}

void GenerateCall::Submit(Engine* engine, Request request) {
  if (!active()) return;
  const bool too_long = static_cast<int64_t>(request.prompt_ids.size()) >= engine->max_model_len();
  const absl::StatusOr<RequestHandle> handle =
      engine->Submit(std::move(request), shared_from_this());
  if (!handle.ok()) {
    const absl::Status& status = handle.status();
    // What each field says by itself was checked before: here they are too much together.
    const bool invalid = status.code() == absl::StatusCode::kInvalidArgument;
    Fail(invalid ? WithField(status, too_long ? "prompt" : "sampling.max_tokens") : status,
         status.code() == absl::StatusCode::kResourceExhausted);
    return;
  }
  bool gone = false;
  {
    std::lock_guard lock(mutex_);
    engine_ = engine;
    handle_ = *handle;
    gone = finished_ && !ended_;  // cancelled while it was being submitted
  }
  if (gone) CancelInEngine();
}

void GenerateCall::Fail(const absl::Status& status, bool retry_pushback) {
  {
    std::lock_guard lock(mutex_);
    if (finished_) return;
    FinishLocked(std::nullopt, status, retry_pushback);
  }
  CancelInEngine();
}

void GenerateCall::OnUpdate(RequestUpdate update) {
  std::lock_guard lock(mutex_);
  if (update.finish_reason.has_value()) ended_ = true;
  if (finished_ || port_ == nullptr) return;
  if (waiting_.has_value()) {
    Merge(std::move(update), &*waiting_);
  } else {
    waiting_ = std::move(update);
  }
  backlog_.store(static_cast<int64_t>(waiting_->tokens.size()), std::memory_order_relaxed);
  Pump();
}

bool GenerateCall::Stalled() const {
  return streaming_ && backlog_.load(std::memory_order_relaxed) >= backlog_limit_;
}

void GenerateCall::Pump() {
  if (finished_ || writing_ || !waiting_.has_value()) return;
  if (!streaming_ && !ended_) return;
  RequestUpdate update = std::move(*waiting_);
  waiting_.reset();
  backlog_.store(0, std::memory_order_relaxed);
  if (ended_) {
    absl::Status status = update.status;
    const bool cut_off = update.finish_reason == FinishReason::kCancelled ||
                         update.finish_reason == FinishReason::kError;
    if (cut_off && status.ok()) status = absl::CancelledError("the request was cancelled");
    const bool send =
        status.ok() || (streaming_ && !(update.text.empty() && update.tokens.empty()));
    FinishLocked(send ? std::optional(std::move(update)) : std::nullopt, status, false);
    return;
  }
  if (update.text.empty() && update.tokens.empty()) return;
  writing_ = true;
  progress_ = Clock::now();
  port_->Write(std::move(update));
}

void GenerateCall::FinishLocked(std::optional<RequestUpdate> update, const absl::Status& status,
                                bool retry_pushback) {
  finished_ = true;
  waiting_.reset();
  backlog_.store(0, std::memory_order_relaxed);
  progress_ = Clock::now();
  if (port_ != nullptr) port_->Finish(std::move(update), status, retry_pushback);
}

void GenerateCall::OnWriteDone(bool ok) {
  {
    std::lock_guard lock(mutex_);
    writing_ = false;
    progress_ = Clock::now();
    if (ok) {
      Pump();
      return;
    }
  }
  Fail(absl::CancelledError("the client is gone"));
}

void GenerateCall::Detach() {
  {
    std::lock_guard lock(mutex_);
    port_ = nullptr;
    finished_ = true;
    waiting_.reset();
  }
  CancelInEngine();
}

void GenerateCall::CheckStall(Clock::time_point now, Clock::duration limit) {
  {
    std::lock_guard lock(mutex_);
    if (port_ == nullptr || now - progress_ < limit) return;
    if (finished_) {  // its end is stuck behind data that the client does not read
      port_->Abort();
      return;
    }
    if (!writing_) return;
  }
  Fail(ResourceExhausted("reader stalled: nothing was read for {:.1f} s",
                         std::chrono::duration<double>(limit).count()));
}

void GenerateCall::CancelInEngine() {
  Engine* engine = nullptr;
  RequestHandle handle = 0;
  {
    std::lock_guard lock(mutex_);
    if (ended_ || engine_ == nullptr) return;
    engine = std::exchange(engine_, nullptr);
    handle = handle_;
  }
  engine->Cancel(handle);
}

void CallRegistry::Add(std::shared_ptr<GenerateCall> call) {
  std::lock_guard lock(mutex_);
  calls_.insert(std::move(call));
}

void CallRegistry::Remove(const std::shared_ptr<GenerateCall>& call) {
  std::lock_guard lock(mutex_);
  calls_.erase(call);
}

std::vector<std::shared_ptr<GenerateCall>> CallRegistry::Snapshot() const {
  std::lock_guard lock(mutex_);
  return {calls_.begin(), calls_.end()};
}

int64_t CallRegistry::size() const {
  std::lock_guard lock(mutex_);
  return static_cast<int64_t>(calls_.size());
}

}  // namespace quantd
