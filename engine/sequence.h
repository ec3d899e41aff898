// Sequence: the mutable progress of one request, as the scheduler sees it.
//
// Owned by the engine (engine_impl.h derives LiveRequest from it); written by Scheduler only,
// except `stalled`, `held` and `drafts`. Engine thread only.
//
// Two counts make it possible to plan a step before the one before has been completed:
//   confirmed <= scheduled <= tokens.size() + pending_samples
// `scheduled` positions are planned into steps, `confirmed` ones have their KV written. A token
// drawn by a step that is not completed yet has a position but no id on the host: it is a pending
// sample.
#pragma once

#include <chrono>
#include <cstdint>
#include <optional>
#include <vector>

#include "engine/block_pool.h"

namespace quantd {

struct Sequence {
  enum class State : uint8_t { kWaiting, kRunning, kFinished };

  // What was asked; fixed once added to the scheduler.
  int32_t priority = 0;  // smaller runs first
  double tag = 0;        // smaller runs first among equal priorities: its tenant's share so far
  uint64_t arrival = 0;  // order of submission: first come first served among equal tags
  int32_t prompt_size = 0;
  int32_t max_size = 0;  // prompt + max_tokens
  bool use_prefix_cache = true;
  bool wants_prompt_logits = false;  // of every position of the prompt
  bool needs_tokens = false;  // no step while a sample is pending: the next draw depends on its id
  std::optional<std::chrono::steady_clock::time_point> deadline;

  // Progress.
  std::vector<int32_t> tokens;  // prompt, then the tokens drawn and completed so far
  int32_t scheduled = 0;        // positions planned into steps
  int32_t confirmed = 0;        // positions whose KV is written
  int32_t pending_samples = 0;  // drawn by steps not completed yet: at most one a step
  int32_t sample_row = 0;       // row of logits the latest pending sample is drawn from
  int32_t steps_in_flight = 0;  // planned steps not completed that name this sequence
  uint32_t epoch = 0;  // preemptions so far: steps planned before one do not count as progress
  std::vector<int32_t> drafts;  // guesses of the tokens to come, for the next step to verify
  int32_t cached_tokens = 0;    // of the prompt, found in the prefix cache when first admitted
  bool admitted_before = false;
  bool stalled = false;  // its reader is behind: gets no steps
  bool held = false;     // not admitted yet: another sequence computes the same prompt first
  State state = State::kWaiting;
  BlockTable blocks;

  /// Tokens that exist, those without an id on the host included.
  int32_t known() const { return static_cast<int32_t>(tokens.size()) + pending_samples; }
  /// Positions that could be computed now. A sequence whose last sample is on its way has none
  /// left.
  int32_t remaining() const {
    if (known() >= max_size || (needs_tokens && pending_samples > 0)) return 0;
    return known() - scheduled;
  }
};

}  // namespace quantd
