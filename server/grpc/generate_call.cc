// GenerateCall: see the header for the picture.
#include "server/grpc/generate_call.h"

#include <algorithm>
#include <utility>

#include "kernels/status.h"
#include "server/grpc/convert.h"
#include "server/grpc/error_details.h"

namespace quantd {
namespace {

// What each field says by itself was checked before: here they are too much together, or one that
// the message begins with contradicts the model.
std::string FieldOf(const absl::Status& status, bool too_long) {
  const std::string message = Message(status);
  if (!message.starts_with("the ")) return "sampling." + message.substr(0, message.find(' '));
  return too_long ? "prompt" : "sampling.max_tokens";
}

}  // namespace

bool GenerateCall::active() const {
  std::lock_guard lock(mutex_);
  return port_ != nullptr && !finished_;
}

void GenerateCall::Submit(Engine* engine, Request request) {
  {
    std::lock_guard lock(mutex_);
    if (port_ == nullptr || finished_) return;
    if (meter_ != nullptr) meter_->OnSubmit(static_cast<int64_t>(request.prompt_ids.size()));
    unfinished_ = request.sampling.n;
    outputs_.resize(static_cast<size_t>(request.sampling.n));
  }
  const bool too_long = static_cast<int64_t>(request.prompt_ids.size()) >= engine->max_model_len();
  const absl::StatusOr<RequestHandle> handle =
      engine->Submit(std::move(request), shared_from_this());
  if (!handle.ok()) {
    const absl::Status& status = handle.status();
    const bool invalid = status.code() == absl::StatusCode::kInvalidArgument;
    Fail(invalid ? WithField(status, FieldOf(status, too_long)) : status,
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

void GenerateCall::SetMeter(std::unique_ptr<CallMeter> meter) {
  std::lock_guard lock(mutex_);
  meter_ = std::move(meter);
  if (finished_) EndMeter(absl::CancelledError("cancelled by the client"));
}

void GenerateCall::Fail(const absl::Status& status, bool retry_pushback) {
  {
    std::lock_guard lock(mutex_);
    if (finished_) return;
    FinishLocked({}, status, retry_pushback);
  }
  CancelInEngine();
}

void GenerateCall::OnUpdate(RequestUpdate update) {
  const absl::Status failure = update.status;
  {
    std::lock_guard lock(mutex_);
    if (update.finish_reason.has_value() && --unfinished_ == 0) ended_ = true;
    if (meter_ != nullptr) meter_->OnComputed(update);
    if (finished_ || port_ == nullptr) return;
    const bool cut_off = update.finish_reason == FinishReason::kCancelled ||
                         update.finish_reason == FinishReason::kError;
    if (cut_off && end_.ok()) {
      end_ = failure.ok() ? absl::CancelledError("the request was cancelled") : failure;
    }
    if (meter_ != nullptr) meter_->OnUpdate(update);
    std::optional<RequestUpdate>& waiting = outputs_[static_cast<size_t>(update.index)];
    if (waiting.has_value()) {
      Merge(std::move(update), &*waiting);
    } else {
      waiting = std::move(update);
    }
    NoteBacklog();
    Pump();
    if (failure.ok() || ended_) return;
  }
  Fail(failure);  // one of several outputs has failed, so the call has
}

bool GenerateCall::Stalled() const {
  return streaming_ && backlog_.load(std::memory_order_relaxed) >= backlog_limit_;
}

void GenerateCall::NoteBacklog() {
  int64_t tokens = 0;
  for (const auto& waiting : outputs_) {
    if (waiting.has_value()) tokens += static_cast<int64_t>(waiting->tokens.size());
  }
  backlog_.store(tokens, std::memory_order_relaxed);
}

int GenerateCall::NextOutput() const {
  const auto n = static_cast<int>(outputs_.size());
  for (int i = 1; i <= n; ++i) {  // in turn
    const int output = (last_written_ + i) % n;
    const auto& waiting = outputs_[static_cast<size_t>(output)];
    if (!waiting.has_value()) continue;
    if (waiting->finish_reason.has_value() || !waiting->text.empty() || !waiting->tokens.empty() ||
        !waiting->prompt_tokens.empty()) {
      return output;
    }
  }
  return -1;
}

RequestUpdate GenerateCall::Take(int output) {
  std::optional<RequestUpdate>& waiting = outputs_[static_cast<size_t>(output)];
  RequestUpdate update = std::move(*waiting);
  waiting.reset();
  last_written_ = output;
  NoteBacklog();
  return update;
}

void GenerateCall::Pump() {
  if (finished_ || writing_) return;
  if (!streaming_ && !ended_) return;
  const int output = NextOutput();
  if (output < 0) return;
  const auto waiting = std::count_if(outputs_.begin(), outputs_.end(),
                                     [](const auto& update) { return update.has_value(); });
  if (!ended_ || (streaming_ && waiting > 1)) {
    writing_ = true;
    progress_ = Clock::now();
    port_->Write(Take(output));
    return;
  }
  std::vector<RequestUpdate> updates;
  for (size_t i = 0; i < outputs_.size(); ++i) {
    if (outputs_[i].has_value()) updates.push_back(Take(static_cast<int>(i)));
  }
  // A stream still gets what was made before the failure; a call that collects gets all or nothing.
  const bool send =
      end_.ok() || (streaming_ && !(updates[0].text.empty() && updates[0].tokens.empty()));
  if (!send) updates.clear();
  FinishLocked(std::move(updates), end_, false);
}

void GenerateCall::FinishLocked(std::vector<RequestUpdate> updates, const absl::Status& status,
                                bool retry_pushback) {
  finished_ = true;
  for (auto& waiting : outputs_) waiting.reset();
  backlog_.store(0, std::memory_order_relaxed);
  progress_ = Clock::now();
  EndMeter(status);
  if (port_ != nullptr) port_->Finish(std::move(updates), status, retry_pushback);
}

void GenerateCall::EndMeter(const absl::Status& status) {
  if (meter_ == nullptr || std::exchange(metered_, true)) return;
  meter_->OnEnd(status);
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
    EndMeter(absl::CancelledError("the client is gone"));
    for (auto& waiting : outputs_) waiting.reset();
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

}  // namespace quantd
