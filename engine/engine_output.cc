// What a finished step means for its requests: tokens, text, stopping, statistics, updates to
// sinks.
#include <algorithm>

#include "engine/engine_impl.h"
#include "kernels/status.h"

namespace quantd {
namespace {

bool Contains(const std::vector<int32_t>& ids, int32_t id) {
  return std::find(ids.begin(), ids.end(), id) != ids.end();
}

// `logprobs` as in SamplingParams.
TokenOutput ToOutput(const SampleResult& result, int32_t logprobs) {
  TokenOutput token;
  token.token_id = result.token_id;
  if (logprobs < 0) return token;
  token.logprob = result.logprob;
  const auto count = std::min(result.top.size(), static_cast<size_t>(logprobs));
  token.top.assign(result.top.begin(), result.top.begin() + static_cast<std::ptrdiff_t>(count));
  return token;
}

std::span<const SampleResult> RowsOf(std::span<const SampleResult> results,
                                     const StepEntry& entry) {
  return results.subspan(static_cast<size_t>(entry.logit_row),
                         static_cast<size_t>(entry.num_logits));
}

}  // namespace

void EngineImpl::Complete(int slot) {
  const StepPlan& plan = plans_[slot];
  const std::span<const SampleResult> results = buffers_->results(slot);
  sampled_.clear();
  for (int32_t row = 0; row < plan.num_logits; ++row) {
    sampled_.push_back(results[static_cast<size_t>(row)].token_id);
  }
  // Both before Complete, which forgets drafts and registers blocks.
  accepted_.clear();
  for (const StepEntry& entry : plan.entries) {
    accepted_.push_back(Scheduler::AcceptedDrafts(entry, sampled_));
    counts_.draft_tokens += entry.drafts;
    counts_.accepted_draft_tokens += accepted_.back();
  }
  for (size_t i = 0; i < plan.entries.size(); ++i) {
    const StepEntry& entry = plan.entries[i];
    auto& r = static_cast<LiveRequest&>(*entry.sequence);
    r.computed_prompt_tokens =
        std::max(r.computed_prompt_tokens,
                 std::min(entry.first + entry.count, r.prompt_size) - r.cached_tokens);
    if (r.state == Sequence::State::kFinished || entry.num_logits == 0) continue;
    const int32_t used = entry.num_logits - (entry.drafts - accepted_[i]);
    const auto rows = RowsOf(results, entry).first(static_cast<size_t>(used));
    if (std::all_of(rows.begin(), rows.end(), [](const auto& row) { return row.finite; })) continue;
    // KV that leads to NaN is nothing to share.
    Finish(r, FinishReason::kError,
           Internal("non-finite logits at position {}", entry.first + entry.count - 1), {},
           /*keep_cached=*/false);
  }
  scheduler_.Complete(plan, sampled_);
  ++counts_.steps;
  if (observer_ != nullptr) observer_->OnStep(plan.num_tokens);
  const Clock::time_point now = Clock::now();
  for (size_t i = 0; i < plan.entries.size(); ++i) {
    const StepEntry& entry = plan.entries[i];
    auto& r = static_cast<LiveRequest&>(*entry.sequence);
    if (r.state == Sequence::State::kFinished || entry.num_logits == 0) continue;
    const std::span<const SampleResult> rows = RowsOf(results, entry);
    if (r.wants_prompt_logits) EmitPromptLogprobs(r, entry, rows);
    if (!entry.samples) continue;
    const auto first = static_cast<size_t>(entry.num_logits - entry.drafts - 1);
    for (size_t row = first; row <= first + static_cast<size_t>(accepted_[i]); ++row) {
      EmitToken(r, rows[row], now);
      if (r.state == Sequence::State::kFinished) break;  // a token before the last ended it
    }
  }
}

void EngineImpl::EmitPromptLogprobs(LiveRequest& request, const StepEntry& entry,
                                    std::span<const SampleResult> results) {
  RequestUpdate update;
  update.index = request.index;
  for (size_t row = 0; row < results.size(); ++row) {
    const int32_t position =
        entry.first + entry.count - entry.num_logits + static_cast<int32_t>(row) + 1;
    // After a preemption the first ones come again.
    if (position >= request.prompt_size || position <= request.prompt_logprobs_known) continue;
    request.prompt_logprobs_known = position;
    update.prompt_tokens.push_back(ToOutput(results[row], request.sampling.prompt_logprobs));
  }
  if (update.prompt_tokens.empty()) return;
  update.usage = request.usage();
  outbox_.push_back({request.sink, std::move(update)});
}

bool EngineImpl::IsEos(int32_t token) const {
  return std::binary_search(eos_ids_.begin(), eos_ids_.end(), token);
}

void EngineImpl::EmitToken(LiveRequest& request, const SampleResult& result,
                           Clock::time_point now) {
  const SamplingParams& sampling = request.sampling;
  RequestUpdate update;
  update.index = request.index;
  const TokenOutput& token = update.tokens.emplace_back(ToOutput(result, sampling.logprobs));
  const bool before_min = request.completion_tokens < sampling.min_tokens;
  ++request.completion_tokens;
  request.control.Push(token.token_id);
  if (request.completion_tokens == 1) ReleaseOutputs(request);
  ++counts_.generation_tokens;
  NoteLatency(request, now);

  // A token that ends the request is reported, but is no text.
  const bool eos = !before_min && !sampling.ignore_eos && IsEos(token.token_id);
  const bool stop_id = !before_min && Contains(request.stop_ids, token.token_id);
  bool stop_string = false;
  if (!eos && !stop_id) stop_string = Decode(request, token.token_id, &update);
  if (eos || stop_id || stop_string) {
    if (stop_string) {
      update.stop_reason = request.decoder->matched_stop();
    } else if (!eos) {
      update.stop_reason = fmt::format("{}", token.token_id);
    }
    Finish(request, FinishReason::kStop, absl::OkStatus(), std::move(update));
  } else if (request.completion_tokens >= sampling.max_tokens) {
    Finish(request, FinishReason::kLength, absl::OkStatus(), std::move(update));
  } else {
    update.usage = request.usage();
    outbox_.push_back({request.sink, std::move(update)});
  }
}

void EngineImpl::ReleaseOutputs(const LiveRequest& leader) {
  if (leader.index != 0) return;
  for (int32_t i = 1; i < leader.sampling.n; ++i) {
    const auto it = live_.find(leader.handle + static_cast<uint64_t>(i));
    if (it != live_.end()) it->second->held = false;
  }
}

bool EngineImpl::Decode(LiveRequest& request, int32_t token, RequestUpdate* update) {
  if (!request.decoder.has_value()) return false;
  const SamplingParams& sampling = request.sampling;
  if (!request.seeks_stop_strings && request.completion_tokens > sampling.min_tokens) {
    // Stop strings are looked for from here on, or from the end of a code point that an earlier
    // token began.
    StreamDecoder copy = *request.decoder;
    std::string withheld;
    copy.Finish(&withheld);
    if (withheld.empty()) {
      request.decoder->SetStopStrings(sampling.stop);
      request.seeks_stop_strings = true;
    }
  }
  return request.decoder->Push(token, &update->text);
}

void EngineImpl::NoteLatency(LiveRequest& request, Clock::time_point now) {
  if (!request.first_token.has_value()) {
    request.first_token = now;
    if (observer_ != nullptr) observer_->OnFirstToken(Seconds(now - request.submitted));
  } else if (observer_ != nullptr) {
    observer_->OnInterTokenLatency(Seconds(now - request.last_token));
  }
  request.last_token = now;
}

void EngineImpl::Finish(LiveRequest& request, FinishReason reason, absl::Status status,
                        RequestUpdate update, bool keep_cached) {
  scheduler_.Finish(&request, keep_cached);
  ReleaseOutputs(request);
  // Text held back for a stop string that now cannot come is certain.
  if (request.decoder.has_value() && request.decoder->matched_stop().empty()) {
    request.decoder->Finish(&update.text);
  }
  update.index = request.index;
  update.usage = request.usage();
  update.finish_reason = reason;
  update.status = std::move(status);
  outbox_.push_back({std::move(request.sink), std::move(update)});

  ++ended_;
  const Clock::time_point now = Clock::now();
  if (!request.first_scheduled.has_value()) {
    left_line_.emplace_back(request.place, false);
  } else if (request.first_token.has_value()) {
    served_.emplace_back(
        request.place,
        Admission::Served{
            .computed_prompt_tokens = request.computed_prompt_tokens,
            .completion_tokens = request.completion_tokens,
            .prefill_seconds = Seconds(*request.first_token - *request.first_scheduled),
            .decode_seconds = Seconds(now - *request.first_token),
        });
  }
  if (observer_ != nullptr) {
    EngineObserver::Finished finished;
    finished.reason = reason;
    finished.usage = request.usage();
    finished.max_tokens = request.sampling.max_tokens;
    finished.queue_seconds = Seconds(request.first_scheduled.value_or(now) - request.submitted);
    if (request.first_token.has_value()) {
      finished.prefill_seconds = Seconds(*request.first_token - *request.first_scheduled);
      finished.decode_seconds = Seconds(request.last_token - *request.first_token);
    } else if (request.first_scheduled.has_value()) {
      finished.prefill_seconds = Seconds(now - *request.first_scheduled);
    }
    finished.total_seconds = Seconds(now - request.submitted);
    observer_->OnFinished(finished);
  }

  const auto it = live_.find(request.handle);
  QUANTD_CHECK(it != live_.end());
  finished_.push_back(std::move(it->second));
  live_.erase(it);
}

void EngineImpl::Flush() {
  EngineStats stats = counts_;
  stats.waiting = scheduler_.num_waiting();
  stats.running = scheduler_.num_running();
  stats.kv_blocks_total = pool_.num_usable();
  stats.kv_blocks_free = pool_.num_free();
  stats.prefix_cache_queries = scheduler_.prefix_queries();
  stats.prefix_cache_hits = scheduler_.prefix_hits();
  stats.preemptions = scheduler_.preemptions();
  stats.replayed_steps = backend_.step_counts().replayed - replayed_before_;
  {
    std::lock_guard lock(mutex_);
    stats_ = stats;
    for (const auto& [place, to_run] : left_line_) admission_.Leave(place, to_run);
    for (const auto& [place, served] : served_) admission_.Note(place, served);
    load_ = {.running = scheduler_.num_running(), .full = left_waiting_};
  }
  left_line_.clear();
  served_.clear();
  // Without the lock: a sink may call Submit or Cancel.
  for (Delivery& delivery : outbox_) delivery.sink->OnUpdate(std::move(delivery.update));
  outbox_.clear();
  std::erase_if(finished_, [](const auto& request) { return request->steps_in_flight == 0; });
  if (ended_ == 0) return;
  {
    std::lock_guard lock(mutex_);
    unfinished_ -= ended_;
    ended_ = 0;
  }
  idle_.notify_all();
}

}  // namespace quantd
