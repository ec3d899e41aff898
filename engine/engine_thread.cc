// The engine thread: takes the inbox, plans and launches steps, sleeps when there is nothing to do.
#include <algorithm>

#include "engine/engine_impl.h"
#include "engine/prompt_lookup.h"
#include "kernels/status.h"

namespace quantd {
namespace {

// How often a reader that is behind is asked again while nothing else runs: sinks have no way to
// wake the engine. Short against the time between two tokens, long against a wake-up.
constexpr std::chrono::milliseconds kStallPoll{2};

std::span<const int32_t> Generated(const LiveRequest& r) {
  return std::span(r.tokens).subspan(static_cast<size_t>(r.prompt_size));
}

}  // namespace

void EngineImpl::ThreadMain() {
  bool busy = false;
  while (TakeInbox(busy)) {
    HandleInbox();
    ExpireDeadlines();
    PollStalled();
    // What ended here does not wait for the step.
    Flush();
    busy = Step();
    Flush();
  }
  HandleInbox();
  FinishAll(FinishReason::kCancelled, Cancelled("the engine is shutting down"));
  if (slot_in_flight_ >= 0) {
    // The device may still write to buffers that are about to be freed; how it ended no longer
    // matters.
    backend_.Synchronize().IgnoreError();
    sampled_.assign(static_cast<size_t>(plans_[slot_in_flight_].num_logits), 0);
    scheduler_.Complete(plans_[slot_in_flight_], sampled_);
  }
  Flush();
}

bool EngineImpl::TakeInbox(bool busy) {
  taken_.submissions.clear();
  taken_.cancels.clear();
  taken_.cancel_all = false;
  std::unique_lock lock(mutex_);
  if (!busy) {
    const auto ready = [this] { return shutdown_ || !inbox_.empty(); };
    if (const auto wake = NextWake(); wake.has_value()) {
      wake_.wait_until(lock, *wake, ready);
    } else {
      wake_.wait(lock, ready);
    }
  }
  std::swap(taken_.submissions, inbox_.submissions);
  std::swap(taken_.cancels, inbox_.cancels);
  std::swap(taken_.cancel_all, inbox_.cancel_all);
  return !shutdown_;
}

std::optional<Clock::time_point> EngineImpl::NextWake() const {
  std::optional<Clock::time_point> wake;
  const auto at = [&wake](Clock::time_point t) {
    wake = wake.has_value() ? std::min(*wake, t) : t;
  };
  for (const auto& [handle, request] : live_) {
    if (request->deadline.has_value()) at(*request->deadline);
    if (request->stalled) at(Clock::now() + kStallPoll);
  }
  return wake;
}

void EngineImpl::HandleInbox() {
  for (auto& request : taken_.submissions) {
    LiveRequest& r = *request;
    live_.emplace(r.handle, std::move(request));
    scheduler_.Add(&r);
    if (failed_) {
      // Only this thread writes dead_, so it may read it without the lock.
      Finish(r, FinishReason::kError, Unavailable("the device failed: {}", Message(dead_)), {});
    }
  }
  for (const RequestHandle handle : taken_.cancels) {
    for (RequestHandle h = handle; h < handle + kMaxOutputs; ++h) {
      const auto it = live_.find(h);
      if (it == live_.end() ||
          it->second->handle - static_cast<uint64_t>(it->second->index) != handle)
        continue;
      Finish(*it->second, FinishReason::kCancelled, Cancelled("cancelled by the caller"), {});
    }
  }
  if (taken_.cancel_all) {
    const auto count = static_cast<int64_t>(live_.size());
    // Not CANCELLED, which is the caller's doing: another server may be asked.
    FinishAll(FinishReason::kCancelled,
              Unavailable("the server ended before the request was finished"));
    std::lock_guard lock(mutex_);
    drain_cancelled_ += count;
  }
}

void EngineImpl::ExpireDeadlines() {
  expired_.clear();
  scheduler_.CollectExpired(Clock::now(), &expired_);
  for (Sequence* sequence : expired_) {
    auto& request = static_cast<LiveRequest&>(*sequence);
    Finish(request, FinishReason::kCancelled,
           DeadlineExceeded("the deadline passed after {} tokens", request.completion_tokens), {});
  }
}

void EngineImpl::PollStalled() {
  for (const auto& [handle, request] : live_) request->stalled = request->sink->Stalled();
}

bool EngineImpl::Step() {
  if (failed_) return false;
  const int slot = next_slot_;
  ProposeDrafts();
  scheduler_.Next(&plans_[slot]);
  left_waiting_ = scheduler_.num_waiting() > 0;
  const bool launched = !plans_[slot].entries.empty();
  if (launched) Launch(slot);

  int complete = launched ? slot : -1;
  if (options_.pipeline_depth == 1) {
    complete = slot_in_flight_;
    slot_in_flight_ = launched ? slot : -1;
    if (launched) next_slot_ ^= 1;
  }
  if (complete < 0) return launched;
  const absl::Status status = backend_.Wait(tickets_[complete]);
  if (absl::IsResourceExhausted(status)) {
    FailStep(complete, status);
    return true;
  }
  if (!status.ok()) {
    Die(status);
    return false;
  }
  Complete(complete);
  return true;
}

void EngineImpl::ProposeDrafts() {
  for (const auto& [handle, request] : live_) {
    LiveRequest& r = *request;
    if (r.max_drafts == 0 || r.stalled || r.state != Sequence::State::kRunning) continue;
    if (r.pending_samples > 0 || r.remaining() != 1 || r.completion_tokens == 0) continue;
    const auto draft = LookUpDraft(r.tokens, static_cast<size_t>(r.max_drafts));
    r.drafts.assign(draft.begin(), draft.end());
  }
}

void EngineImpl::FillParams(const StepEntry& entry, int32_t row, SampleParams* params) {
  auto& r = static_cast<LiveRequest&>(*entry.sequence);
  // Of the token that is drawn, or known already.
  const int32_t position = entry.first + entry.count - entry.num_logits + row + 1;
  // A drawn token's own logprob comes with the list, so 0 asks for a list of one.
  const auto list = [](int32_t logprobs) { return logprobs < 0 ? 0 : std::max(logprobs, 1); };
  if (position < r.prompt_size) {
    *params = {.temperature = 0.0f,
               .num_logprobs = list(r.sampling.prompt_logprobs),
               .forced_id = r.tokens[static_cast<size_t>(position)]};
    return;
  }
  *params = {
      .temperature = r.sampling.temperature,
      .top_k = r.sampling.top_k,
      .top_p = r.sampling.top_p,
      .min_p = r.sampling.min_p,
      .seed = r.seed,
      .sequence_index = static_cast<uint32_t>(r.index),
      .position = static_cast<uint32_t>(position),
      .num_logprobs = list(r.sampling.logprobs),
  };
  r.control.Apply(position - r.prompt_size, Generated(r), params);
}

void EngineImpl::Launch(int slot) {
  const StepPlan& plan = plans_[slot];
  const Clock::time_point now = Clock::now();
  const std::span<SampleParams> params = buffers_->params(slot);
  for (const StepEntry& entry : plan.entries) {
    auto& r = static_cast<LiveRequest&>(*entry.sequence);
    if (!r.first_scheduled.has_value()) {
      r.first_scheduled = now;
      counts_.prompt_tokens += r.prompt_size;
      left_line_.emplace_back(r.place, true);
    }
    for (int32_t row = 0; row < entry.num_logits; ++row) {
      FillParams(entry, row, &params[static_cast<size_t>(entry.logit_row + row)]);
    }
  }
  buffers_->Fill(plan, slot);
  backend_.Run({.owner = owner_, .shape = buffers_->shape()},
               [this] { loaded_.model->Forward(buffers_->batch(), *kv_, buffers_->logits()); });
  buffers_->Sample(slot);
  tickets_[slot] = backend_.Record();
}

void EngineImpl::FailStep(int slot, const absl::Status& status) {
  const StepPlan& plan = plans_[slot];
  for (const StepEntry& entry : plan.entries) {
    if (entry.sequence->state == Sequence::State::kFinished) continue;
    Finish(static_cast<LiveRequest&>(*entry.sequence), FinishReason::kError, status, {},
           /*keep_cached=*/false);
  }
  sampled_.assign(static_cast<size_t>(plan.num_logits), 0);
  scheduler_.Complete(plan, sampled_);
  ++counts_.steps;
}

void EngineImpl::FinishAll(FinishReason reason, const absl::Status& status) {
  while (!live_.empty()) Finish(*live_.begin()->second, reason, status, {});
}

void EngineImpl::Die(const absl::Status& status) {
  failed_ = true;
  {
    std::lock_guard lock(mutex_);
    dead_ = status;
  }
  FinishAll(FinishReason::kError, Unavailable("the device failed: {}", Message(status)));
  // Nothing that was launched will be completed; the backend may forget its results.
  backend_.Synchronize().IgnoreError();
  slot_in_flight_ = -1;
  for (const auto& request : finished_) request->steps_in_flight = 0;
}

}  // namespace quantd
