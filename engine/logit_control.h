// LogitControl: what a request's options do to the logits of each of its draws, beside temperature
// and filters: biases, penalties for what was said, tokens that may not or alone may be drawn.
//
// Definitions (vLLM's; docs/requests.md): repetition_penalty concerns tokens of prompt and output,
// presence_penalty and frequency_penalty those of the output alone. A bad word is a sequence of
// tokens: its last one is not drawn where the output ends with those before it.
//
// One thread at a time.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "engine/request.h"
#include "kernels/sampling.h"

namespace quantd {

/// True when a token may be drawn: one of `allowed` (empty: any) is not in `banned`.
bool LeavesSome(std::span<const int32_t> allowed, std::span<const int32_t> banned);

class LogitControl {
 public:
  LogitControl() = default;
  /// `prompt`: its tokens. `bad_words`: token sequences, none empty. `stop_ids`: not drawn before
  /// min_tokens.
  LogitControl(const SamplingParams& sampling, std::span<const int32_t> prompt,
               std::vector<std::vector<int32_t>> bad_words, std::vector<int32_t> stop_ids,
               int64_t vocab_size);

  /// `token` was generated.
  void Push(int32_t token);
  /// Sets what `params` hold about the draw of output token `index`, counted from 0; `generated`:
  /// the tokens of the output that are known, all before it if needs_tokens(). The lists stay as
  /// they are until the next call; without needs_tokens() for good, so that several draws of one
  /// step have theirs.
  void Apply(int32_t index, std::span<const int32_t> generated, SampleParams* params);

  /// True when a draw depends on which token the draw before it gave.
  bool needs_tokens() const { return needs_tokens_; }

 private:
  LogitEdit& EditOf(int32_t token);

  float repetition_penalty_ = 1.0f;
  float presence_penalty_ = 0.0f;
  float frequency_penalty_ = 0.0f;
  int32_t min_tokens_ = 0;
  bool needs_tokens_ = false;
  std::vector<std::vector<int32_t>> bad_words_;  // of several tokens
  std::vector<int32_t> banned_always_;
  std::vector<int32_t> banned_before_min_;  // those and the stop ids
  std::vector<int32_t> allowed_ids_;        // ascending; empty: all
  std::vector<uint32_t> allowed_mask_;      // of allowed_ids_
  std::vector<int32_t> banned_;  // of the next draw, where bad words add to the lists above
  std::vector<LogitEdit> edits_;
  std::vector<int32_t> counts_;                 // of each edit's token in the output
  absl::flat_hash_map<int32_t, size_t> place_;  // of a token's edit
};

}  // namespace quantd
