// Sampling of one row of logits: the definition every backend's Backend::Sample follows.
//
// Order: edits -> allowed and banned ids -> temperature -> top_k -> min_p -> top_p -> one draw.
// Greedy (temperature 0) takes the largest logit, lowest id on ties. The random number of a draw is
// Philox4x32-10 of (seed, index of n, position), so that a seed gives the same tokens on every
// backend, in any batch, and after preemption.
#pragma once

#include <array>
#include <cstdint>
#include <span>

namespace quantd {

/// What biases and penalties make of one logit x: with y = x + bias, and y / repetition_penalty (y
/// times it where y is not above 0) if `repeated`, y - penalty. In f32, each operation rounded.
struct LogitEdit {
  int32_t token_id = 0;
  float bias = 0.0f;
  float penalty = 0.0f;  // presence and frequency
  int32_t repeated = 0;  // 1: repetition_penalty applies
};

/// EditedLogit of the definition above.
inline float EditedLogit(float x, const LogitEdit& edit, float repetition_penalty) {
  float y = x + edit.bias;
  if (edit.repeated != 0) y = y > 0.0f ? y / repetition_penalty : y * repetition_penalty;
  return y - edit.penalty;
}

/// How to draw one token from one row of logits.
struct SampleParams {
  float temperature = 1.0f;  // 0: greedy
  int32_t top_k = 0;         // 0: off
  float top_p = 1.0f;        // (0, 1]
  float min_p = 0.0f;        // [0, 1]
  uint64_t seed = 0;
  uint32_t sequence_index = 0;               // which of a request's n sequences
  uint32_t position = 0;                     // of the token to be drawn, prompt included
  int32_t num_logprobs = 0;                  // how many of the most likely tokens to report
  std::span<const int32_t> banned_ids = {};  // never drawn (stop ids before min_tokens)
  // Bit id % 32 of word id / 32: may be drawn. Empty: all may.
  std::span<const uint32_t> allowed_mask = {};
  std::span<const LogitEdit> edits = {};  // ids differ from each other
  float repetition_penalty = 1.0f;
  int32_t forced_id = -1;  // >= 0: "drawn" whatever the logits, for its logprob
};

struct TokenLogprob {
  int32_t token_id = 0;
  float logprob = 0.0f;  // natural logarithm, of the model's own distribution (before temperature)
};

struct SampleResult {
  int32_t token_id = 0;
  float logprob = 0.0f;         // of token_id, as in TokenLogprob; set when num_logprobs > 0
  std::span<TokenLogprob> top;  // caller's room for num_logprobs entries; filled, most likely first
  bool finite = true;           // LogitsAreSound of the row
};

/// Philox4x32-10 (Salmon et al., SC 2011): four 32-bit random words of (counter, key).
std::array<uint32_t, 4> Philox4x32(std::array<uint32_t, 4> counter, std::array<uint32_t, 2> key);

/// The uniform number in [0, 1) of a draw, 24 bits.
float UniformOf(uint64_t seed, uint32_t sequence_index, uint32_t position);

/// False when a logit is NaN or +inf: the computation broke. -inf is a legitimate "never".
bool LogitsAreSound(std::span<const float> logits);

/// Draws from `logits` [vocab], which are as before when it returns. `scratch` has room for 2 *
/// vocab entries of TokenLogprob and is overwritten. NaN logits count as -inf; a row with no finite
/// logit gives token 0.
void SampleRow(std::span<float> logits, const SampleParams& params, std::span<TokenLogprob> scratch,
               SampleResult& result);

}  // namespace quantd
