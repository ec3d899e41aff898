// Scheduler: planning and completing steps. See scheduler.h.
#include "engine/scheduler.h"

#include <algorithm>

#include "kernels/check.h"

namespace quantd {
namespace {

bool Before(const Sequence* a, const Sequence* b) {
  if (a->priority != b->priority) return a->priority < b->priority;
  return a->tag != b->tag ? a->tag < b->tag : a->arrival < b->arrival;
}

void Insert(std::vector<Sequence*>* list, Sequence* sequence) {
  list->insert(std::upper_bound(list->begin(), list->end(), sequence, Before), sequence);
}

void Erase(std::vector<Sequence*>* list, Sequence* sequence) {
  const auto it = std::find(list->begin(), list->end(), sequence);
  QUANTD_CHECK(it != list->end());
  list->erase(it);
}

}  // namespace

Scheduler::Scheduler(const SchedulerOptions& options, BlockPool* pool)
    : options_(options), pool_(*pool) {
  running_.reserve(static_cast<size_t>(options.max_num_seqs));
  order_.reserve(static_cast<size_t>(options.max_num_seqs));
}

void Scheduler::Add(Sequence* sequence) {
  QUANTD_CHECK(!sequence->tokens.empty() && sequence->max_size > sequence->prompt_size);
  QUANTD_CHECK(pool_.BlocksFor(sequence->max_size - 1) <= pool_.num_usable());
  sequence->state = Sequence::State::kWaiting;
  Insert(&waiting_, sequence);
}

void Scheduler::Finish(Sequence* sequence, bool keep_cached) {
  if (sequence->state == Sequence::State::kFinished) return;
  Erase(sequence->state == Sequence::State::kRunning ? &running_ : &waiting_, sequence);
  pool_.Release(&sequence->blocks, keep_cached);
  sequence->state = Sequence::State::kFinished;
}

bool Scheduler::Full(const StepPlan& plan) const {
  return plan.num_tokens >= options_.max_num_batched_tokens ||
         static_cast<int32_t>(plan.entries.size()) >= options_.max_num_seqs;
}

void Scheduler::Next(StepPlan* plan) {
  plan->Clear();
  const int64_t preemptions_before = preemptions_;
  PlanRunning(/*decoding=*/true, plan);
  PlanRunning(/*decoding=*/false, plan);
  // Who was just preempted would only take back the blocks it gave.
  if (preemptions_ == preemptions_before) Admit(plan);

  for (StepEntry& entry : plan->entries) {
    Sequence& s = *entry.sequence;
    entry.epoch = s.epoch;
    entry.samples = entry.first + entry.count - entry.drafts == s.known();
    if (entry.samples) entry.num_logits = std::max(entry.num_logits, 1);
    if (entry.num_logits > 0) {
      entry.logit_row = plan->num_logits;
      plan->num_logits += entry.num_logits;
    }
    if (entry.samples) {
      if (s.pending_samples > 0) entry.feedback_row = s.sample_row;
      s.sample_row = entry.logit_row + entry.num_logits - 1;
      ++s.pending_samples;
    }
    s.scheduled += entry.count;
    ++s.steps_in_flight;
  }
}

void Scheduler::PlanRunning(bool decoding, StepPlan* plan) {
  order_.assign(running_.begin(), running_.end());
  for (Sequence* s : order_) {
    if (Full(*plan)) return;
    if (s->state != Sequence::State::kRunning || s->stalled) continue;  // preempted in this pass
    const int32_t remaining = s->remaining();
    if (remaining == 0 || (remaining == 1) != decoding) continue;
    const int32_t count = FittingCount(*s, remaining, *plan);
    if (!EnsureBlocks(s, s->scheduled + count, plan)) continue;
    const int32_t drafts = decoding ? FittingDrafts(s, *plan) : 0;
    AddEntry(s, count + drafts, drafts, plan);
  }
}

int32_t Scheduler::SpareLogits(const StepPlan& plan) const {
  return std::max(0, options_.max_logits - options_.max_num_seqs - plan.extra_logits);
}

int32_t Scheduler::FittingCount(const Sequence& sequence, int32_t count,
                                const StepPlan& plan) const {
  count = std::min(count, options_.max_num_batched_tokens - plan.num_tokens);
  const bool all_logits =
      sequence.wants_prompt_logits && sequence.scheduled < sequence.prompt_size - 1;
  return all_logits ? std::min(count, 1 + SpareLogits(plan)) : count;
}

int32_t Scheduler::FittingDrafts(Sequence* sequence, const StepPlan& plan) {
  // The token behind the last draft still has to be within max_size.
  const int32_t drafts = std::min({static_cast<int32_t>(sequence->drafts.size()), SpareLogits(plan),
                                   options_.max_num_batched_tokens - plan.num_tokens - 1,
                                   sequence->max_size - 1 - sequence->known()});
  if (drafts <= 0) return 0;
  return pool_.Grow(&sequence->blocks, sequence->scheduled + 1 + drafts) ? drafts : 0;
}

void Scheduler::AddEntry(Sequence* sequence, int32_t count, int32_t drafts, StepPlan* plan) {
  StepEntry& entry = plan->entries.emplace_back();
  entry = {.sequence = sequence, .first = sequence->scheduled, .count = count, .drafts = drafts};
  if (drafts > 0) {
    entry.num_logits = drafts + 1;
  } else if (sequence->wants_prompt_logits && entry.first < sequence->prompt_size - 1) {
    entry.num_logits = count;
  }
  plan->extra_logits += std::max(0, entry.num_logits - 1);
  plan->num_tokens += count;
}

bool Scheduler::EnsureBlocks(Sequence* sequence, int32_t num_tokens, StepPlan* plan) {
  while (!pool_.Grow(&sequence->blocks, num_tokens)) {
    if (PreemptStalled(plan)) continue;
    Sequence* victim = running_.back();
    Preempt(victim, plan);
    if (victim == sequence) return false;
  }
  return true;
}

bool Scheduler::PreemptStalled(StepPlan* plan) {
  for (size_t i = running_.size(); i-- > 0;) {
    if (!running_[i]->stalled) continue;
    Preempt(running_[i], plan);
    return true;
  }
  return false;
}

void Scheduler::Preempt(Sequence* sequence, StepPlan* plan) {
  for (size_t i = 0; i < plan->entries.size(); ++i) {
    if (plan->entries[i].sequence != sequence) continue;
    plan->num_tokens -= plan->entries[i].count;
    plan->extra_logits -= std::max(0, plan->entries[i].num_logits - 1);
    plan->entries.erase(plan->entries.begin() + static_cast<std::ptrdiff_t>(i));
    break;
  }
  Erase(&running_, sequence);
  pool_.Release(&sequence->blocks);
  sequence->scheduled = sequence->confirmed = 0;
  ++sequence->epoch;
  sequence->state = Sequence::State::kWaiting;
  Insert(&waiting_, sequence);
  ++preemptions_;
}

void Scheduler::Admit(StepPlan* plan) {
  // Stalled sequences keep their blocks but not their slot: slow readers must not shut others out.
  auto active = std::count_if(running_.begin(), running_.end(),
                              [](const Sequence* s) { return !s->stalled; });
  for (size_t i = 0; i < waiting_.size();) {
    Sequence* s = waiting_[i];
    // One preempted with a sample on its way waits for that token's id.
    if (s->stalled || s->held || s->pending_samples > 0) {
      ++i;
      continue;
    }
    if (active >= options_.max_num_seqs || Full(*plan) || !TryAdmit(s, plan)) return;
    ++active;
    // TryAdmit may have put preempted ones in front: find the place again.
    i = static_cast<size_t>(std::upper_bound(waiting_.begin(), waiting_.end(), s, Before) -
                            waiting_.begin());
  }
}

bool Scheduler::TryAdmit(Sequence* sequence, StepPlan* plan) {
  // Room for everything known and one more token, beside what admitted prompts still have to take:
  // otherwise the newcomer would be preempted before it has made anything.
  const int32_t total = pool_.BlocksFor(std::min(sequence->known() + 1, sequence->max_size - 1));
  while (true) {
    int32_t promised = 0;
    for (const Sequence* s : running_) {
      if (s->stalled) continue;
      promised +=
          std::max(0, pool_.BlocksFor(s->known()) - static_cast<int32_t>(s->blocks.blocks.size()));
    }
    const BlockPool::PrefixMatch match =
        sequence->use_prefix_cache ? pool_.Peek(sequence->tokens) : BlockPool::PrefixMatch{};
    if (total - match.blocks <= pool_.num_free() - match.idle - promised) break;
    if (!PreemptStalled(plan)) return false;
  }

  if (sequence->use_prefix_cache) {
    sequence->scheduled = pool_.TakePrefix(sequence->tokens, &sequence->blocks);
  }
  sequence->confirmed = sequence->scheduled;
  if (!sequence->admitted_before) {
    sequence->admitted_before = true;
    sequence->cached_tokens = sequence->scheduled;
    if (sequence->use_prefix_cache) {
      prefix_queries_ += sequence->prompt_size;
      prefix_hits_ += sequence->scheduled;
    }
  }
  Erase(&waiting_, sequence);
  sequence->state = Sequence::State::kRunning;
  Insert(&running_, sequence);

  const int32_t count = FittingCount(*sequence, sequence->remaining(), *plan);
  QUANTD_CHECK(pool_.Grow(&sequence->blocks, sequence->scheduled + count));
  AddEntry(sequence, count, 0, plan);
  return true;
}

int32_t Scheduler::AcceptedDrafts(const StepEntry& entry, std::span<const int32_t> sampled) {
  const std::vector<int32_t>& drafts = entry.sequence->drafts;
  int32_t accepted = 0;
  while (accepted < entry.drafts && sampled[static_cast<size_t>(entry.logit_row + accepted)] ==
                                        drafts[static_cast<size_t>(accepted)]) {
    ++accepted;
  }
  return accepted;
}

void Scheduler::Complete(const StepPlan& plan, std::span<const int32_t> sampled) {
  QUANTD_CHECK(static_cast<int32_t>(sampled.size()) == plan.num_logits);
  for (const StepEntry& entry : plan.entries) {
    Sequence& s = *entry.sequence;
    --s.steps_in_flight;
    if (s.state == Sequence::State::kFinished) continue;
    const int32_t refused = entry.drafts - AcceptedDrafts(entry, sampled);
    if (entry.samples) {
      const auto end = static_cast<size_t>(entry.logit_row + entry.num_logits - refused);
      for (size_t row = end - 1 - static_cast<size_t>(entry.drafts - refused); row < end; ++row) {
        s.tokens.push_back(sampled[row]);
      }
      --s.pending_samples;
      s.drafts.clear();
    }
    if (entry.epoch != s.epoch) continue;
    // What was computed for a wrong guess is computed again, in the same place.
    s.confirmed = entry.first + entry.count - refused;
    s.scheduled -= refused;
    if (s.use_prefix_cache) pool_.Register(s.tokens, s.confirmed, &s.blocks);
  }
}

void Scheduler::CollectExpired(std::chrono::steady_clock::time_point now,
                               std::vector<Sequence*>* expired) const {
  for (const auto* list : {&running_, &waiting_}) {
    for (Sequence* s : *list) {
      if (s->deadline.has_value() && *s->deadline <= now) expired->push_back(s);
    }
  }
}

}  // namespace quantd
