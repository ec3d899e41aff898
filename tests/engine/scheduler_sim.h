// SchedulerSim: a scheduler with fake sequences, and a picture of what every step computed.
//
// One row a request, one column a step: positions of the prompt are plain, those of drawn tokens
// stand in parentheses, * marks that logits were wanted, ~ that the last token was fed back from
// the step before, x that the request was preempted while the step was planned, . that it did
// nothing, nothing that it had not come or was done.
//
//   Req 0: 0,1,2,3*  | (4)*
//   Req 1: 0,1       | 2*
#pragma once

#include <fmt/format.h>

#include <algorithm>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "engine/scheduler.h"

namespace quantd {

class SchedulerSim {
 public:
  struct Options {
    int32_t num_blocks = 100;  // usable
    int32_t block_size = 4;
    int32_t max_num_seqs = 4;
    int32_t budget = 8;
    int depth = 0;
  };

  explicit SchedulerSim(const Options& options)
      : depth_(options.depth),
        pool_(options.num_blocks + 1, options.block_size, 0),
        scheduler_({options.max_num_seqs, options.budget}, &pool_) {}

  Sequence& Add(int32_t prompt, int32_t max_tokens, int32_t priority = 0,
                int32_t first_token = -1) {
    auto s = std::make_unique<Sequence>();
    const auto id = static_cast<int32_t>(sequences_.size());
    s->arrival = static_cast<uint64_t>(id) + 1;
    s->priority = priority;
    s->prompt_size = prompt;
    s->max_size = prompt + max_tokens;
    // By default no two prompts share a token.
    const int32_t base = first_token >= 0 ? first_token : 1000 * (id + 1);
    for (int32_t i = 0; i < prompt; ++i) s->tokens.push_back(base + i);
    sequences_.push_back(std::move(s));
    came_.push_back(cells_);
    stop_at_.push_back(-1);
    preempted_.push_back(0);
    rows_.emplace_back(static_cast<size_t>(cells_), "");
    scheduler_.Add(sequences_.back().get());
    return *sequences_.back();
  }
  /// The request's token at `position` is an end of sequence.
  void StopAt(size_t request, int32_t position) { stop_at_[request] = position; }
  void Finish(size_t request) { scheduler_.Finish(sequences_[request].get()); }

  /// Plans a step and completes what the depth allows. False when there was nothing to do.
  bool Step() {
    StepPlan& plan = plans_[slot_];
    scheduler_.Next(&plan);
    const bool launched = !plan.entries.empty();
    Draw(plan, launched);
    if (on_plan) on_plan(plan);
    if (depth_ == 0) {
      if (launched) Complete(plan);
      return launched;
    }
    const int previous = in_flight_;
    in_flight_ = launched ? slot_ : -1;
    if (launched) slot_ ^= 1;
    if (previous >= 0) Complete(plans_[previous]);
    return launched || previous >= 0;
  }
  void Run(int limit = 1000) {
    while (Step()) {
      if (--limit == 0) break;
    }
  }

  std::string Picture() const {
    std::vector<size_t> width(static_cast<size_t>(cells_), 0);
    for (const auto& row : rows_) {
      for (size_t c = 0; c < row.size(); ++c) width[c] = std::max(width[c], row[c].size());
    }
    std::string picture;
    for (size_t r = 0; r < rows_.size(); ++r) {
      std::string line = fmt::format("Req {}:", r);
      for (size_t c = 0; c < rows_[r].size(); ++c) {
        line += fmt::format("{} {:<{}}", c == 0 ? "" : " |", rows_[r][c], width[c]);
      }
      line.erase(line.find_last_not_of(" |") + 1);
      picture += line + "\n";
    }
    return picture;
  }

  BlockPool& pool() { return pool_; }
  Scheduler& scheduler() { return scheduler_; }
  Sequence& sequence(size_t i) { return *sequences_[i]; }
  size_t size() const { return sequences_.size(); }
  bool AllFinished() const {
    return std::all_of(sequences_.begin(), sequences_.end(),
                       [](const auto& s) { return s->state == Sequence::State::kFinished; });
  }

  std::function<void(const StepPlan&)> on_plan;  // after Next, before Complete

 private:
  size_t IndexOf(const Sequence* s) const { return static_cast<size_t>(s->arrival) - 1; }

  void Draw(const StepPlan& plan, bool launched) {
    std::vector<std::string> column(sequences_.size());
    for (size_t i = 0; i < sequences_.size(); ++i) {
      const Sequence& s = *sequences_[i];
      if (s.state != Sequence::State::kFinished) column[i] = s.epoch > preempted_[i] ? "x" : ".";
      preempted_[i] = s.epoch;
    }
    for (const StepEntry& e : plan.entries) {
      const Sequence& s = *e.sequence;
      std::string cell;
      for (int32_t p = e.first; p < e.first + e.count; ++p) {
        if (p > e.first) cell += ",";
        cell += p < s.prompt_size ? fmt::format("{}", p) : fmt::format("({})", p);
      }
      if (e.feedback_row >= 0) cell += "~";
      if (e.logit_row >= 0) cell += "*";
      column[IndexOf(&s)] = cell;
    }
    if (!launched) return;  // a step that is only a completion has no column
    ++cells_;
    for (size_t i = 0; i < column.size(); ++i) rows_[i].push_back(column[i]);
  }

  void Complete(const StepPlan& plan) {
    std::vector<int32_t> sampled(static_cast<size_t>(plan.num_logits));
    for (const StepEntry& e : plan.entries) {
      if (e.logit_row < 0) continue;
      sampled[static_cast<size_t>(e.logit_row)] =
          static_cast<int32_t>(IndexOf(e.sequence)) * 100000 + 50000 + e.first + e.count;
    }
    scheduler_.Complete(plan, sampled);
    for (const StepEntry& e : plan.entries) {
      Sequence& s = *e.sequence;
      if (s.state == Sequence::State::kFinished || e.logit_row < 0) continue;
      const auto size = static_cast<int32_t>(s.tokens.size());
      if (size >= s.max_size || size - 1 == stop_at_[IndexOf(&s)]) scheduler_.Finish(&s);
    }
  }

  const int depth_;
  BlockPool pool_;
  Scheduler scheduler_;
  std::vector<std::unique_ptr<Sequence>> sequences_;
  std::vector<int> came_;
  std::vector<int32_t> stop_at_;
  std::vector<uint32_t> preempted_;
  std::vector<std::vector<std::string>> rows_;
  int cells_ = 0;
  StepPlan plans_[2];
  int slot_ = 0;
  int in_flight_ = -1;
};

}  // namespace quantd
