// Scheduler: which sequences compute which positions in the next step.
//
// Pure logic over Sequence and BlockPool: no device, model, tokenizer or clock. One call of Next
// plans one step, one call of Complete tells how it ended; Complete of step n may come after Next
// of step n+1 (pipeline depth 1), and steps are executed in the order they were planned.
//
// Policy: continuous batching with chunked prefill under a token budget. Running sequences go
// first, those that decode before those that prefill, each by (priority, tag, arrival). Then
// waiting ones are admitted in that order while a slot, blocks and budget are left. When blocks run
// out the worst running sequence (stalled ones first, then the largest priority value, then the
// newest) is preempted: it gives all its blocks back and computes again later, from the prefix
// cache where it can. The best running sequence is never a victim of others, so somebody always
// advances.
//
// Engine thread only.
#pragma once

#include <chrono>
#include <cstdint>
#include <span>
#include <vector>

#include "engine/block_pool.h"
#include "engine/sequence.h"

namespace quantd {

struct SchedulerOptions {
  int32_t max_num_seqs = 16;
  int32_t max_num_batched_tokens = 512;
  int32_t max_logits = 0;  // rows of logits of a step; 0: max_num_seqs, which is the least
};

/// Positions [first, first + count) of one sequence. The tokens of the last `drafts` ones are
/// guesses: Sequence::drafts.
struct StepEntry {
  Sequence* sequence = nullptr;  // not owned
  int32_t first = 0;
  int32_t count = 0;
  int32_t drafts = 0;
  // Rows [logit_row, logit_row + num_logits) of the step's logits are those of the last positions.
  int32_t num_logits = 0;
  int32_t logit_row = -1;
  bool samples = false;  // the rows behind the last known token draw new ones
  int32_t feedback_row =
      -1;              // row of the previous step's samples its last token is; -1: id is known
  uint32_t epoch = 0;  // of the sequence when planned
};

/// One step. Reused from step to step to keep its memory.
struct StepPlan {
  std::vector<StepEntry> entries;
  int32_t num_tokens = 0;
  int32_t num_logits = 0;
  int32_t extra_logits = 0;  // beyond one an entry

  void Clear() {
    entries.clear();
    num_tokens = num_logits = extra_logits = 0;
  }
};

class Scheduler {
 public:
  /// `pool` must outlive the scheduler.
  Scheduler(const SchedulerOptions& options, BlockPool* pool);

  /// Takes a sequence (not its ownership) as waiting. The pool must be able to hold it alone.
  void Add(Sequence* sequence);
  /// Ends a sequence in any state and gives its blocks back at once: steps run in order, so a step
  /// in flight is done with them before a later one writes there. The sequence must stay alive
  /// until `steps_in_flight` is 0. `keep_cached` false: its KV is not to be trusted.
  void Finish(Sequence* sequence, bool keep_cached = true);

  /// Plans the next step; no entries when nobody can advance. At most one earlier step may be
  /// incomplete.
  void Next(StepPlan* plan);
  /// How many drafts of `entry` are what was drawn: the tokens of its rows up to there and one more
  /// are the sequence's.
  static int32_t AcceptedDrafts(const StepEntry& entry, std::span<const int32_t> sampled);
  /// `plan` was executed; `sampled` [num_logits] are the tokens it drew. Every unfinished sequence
  /// of the plan gets its tokens appended. What was computed for a sequence finished meanwhile is
  /// dropped; one preempted meanwhile keeps its token, as that does not depend on its blocks.
  void Complete(const StepPlan& plan, std::span<const int32_t> sampled);

  /// Adds the unfinished sequences whose deadline is not after `now` to `*expired`.
  void CollectExpired(std::chrono::steady_clock::time_point now,
                      std::vector<Sequence*>* expired) const;

  int32_t num_waiting() const { return static_cast<int32_t>(waiting_.size()); }
  int32_t num_running() const { return static_cast<int32_t>(running_.size()); }
  int64_t preemptions() const { return preemptions_; }
  int64_t prefix_queries() const {
    return prefix_queries_;
  }                                                     // tokens looked up at first admissions
  int64_t prefix_hits() const { return prefix_hits_; }  // of these, found

 private:
  // Gives every running sequence that can advance, decoding ones or prefilling ones, its entry.
  void PlanRunning(bool decoding, StepPlan* plan);
  void Admit(StepPlan* plan);
  // True when `sequence` was made running with an entry in `plan`.
  bool TryAdmit(Sequence* sequence, StepPlan* plan);
  // Makes the blocks of `sequence` cover `num_tokens`, preempting others; false when it was
  // preempted itself.
  bool EnsureBlocks(Sequence* sequence, int32_t num_tokens, StepPlan* plan);
  void Preempt(Sequence* sequence, StepPlan* plan);
  // `count` positions, of which the last `drafts` are guesses.
  void AddEntry(Sequence* sequence, int32_t count, int32_t drafts, StepPlan* plan);
  // At most `count` positions from where `sequence` stands: no more than there are rows of logits
  // for, if it wants them all.
  int32_t FittingCount(const Sequence& sequence, int32_t count, const StepPlan& plan) const;
  // Drafts of `sequence` for which there are rows, tokens and blocks without taking anybody's.
  int32_t FittingDrafts(Sequence* sequence, const StepPlan& plan);
  // Rows of logits beyond one for each sequence that may run.
  int32_t SpareLogits(const StepPlan& plan) const;
  // Preempts the worst stalled running sequence; false when there is none.
  bool PreemptStalled(StepPlan* plan);
  bool Full(const StepPlan& plan) const;

  const SchedulerOptions options_;
  BlockPool& pool_;
  std::vector<Sequence*> waiting_;  // by (priority, tag, arrival)
  std::vector<Sequence*> running_;  // by (priority, tag, arrival)
  std::vector<Sequence*> order_;    // running_ as it was when a pass over it began
  int64_t preemptions_ = 0;
  int64_t prefix_queries_ = 0;
  int64_t prefix_hits_ = 0;
};

}  // namespace quantd
