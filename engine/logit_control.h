// LogitControl: what a request's options do to the logits of each of its draws, beside temperature
// and filters: biases, penalties for what was said, tokens that may not or alone may be drawn.
//
// Definitions (vLLM's; docs/requests.md): repetition_penalty concerns tokens of prompt and output,
// presence_penalty and frequency_penalty those of the output alone. A bad word is a sequence of
// tokens: its last one is not drawn where the output ends with those before it.
//
// A copy shares what does not change, which may be as long as the vocabulary. One thread at a time.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "engine/request.h"
#include "kernels/sampling.h"

namespace quantd {

/// How many tokens may be drawn: of `allowed` (empty: any, told as SIZE_MAX), those not in
/// `banned`.
size_t NumLeft(std::span<const int32_t> allowed, std::span<const int32_t> banned);

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
  // Tokens that may not be drawn, and how many of the allowed ones that leaves.
  struct Banned {
    std::vector<int32_t> ids;
    size_t left = 0;
  };
  // What all draws have in common.
  struct Lists {
    std::vector<std::vector<int32_t>> bad_words;  // of several tokens
    Banned always;
    Banned before_min;                   // those and the stop ids
    std::vector<int32_t> allowed_ids;    // ascending; empty: all
    std::vector<uint32_t> allowed_mask;  // of allowed_ids
  };
  LogitEdit& EditOf(int32_t token);

  float repetition_penalty_ = 1.0f;
  float presence_penalty_ = 0.0f;
  float frequency_penalty_ = 0.0f;
  int32_t min_tokens_ = 0;
  bool needs_tokens_ = false;
  std::shared_ptr<const Lists> lists_ = std::make_shared<Lists>();
  std::vector<int32_t> banned_;  // of the next draw, where bad words add to those of lists_
  std::vector<LogitEdit> edits_;
  std::vector<int32_t> counts_;                 // of each edit's token in the output
  absl::flat_hash_map<int32_t, size_t> place_;  // of a token's edit
};

}  // namespace quantd
