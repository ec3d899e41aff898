// What is asked of the engine and what comes back. Plain values; no networking, no protobuf.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "kernels/sampling.h"

namespace quantd {

using Clock = std::chrono::steady_clock;
inline double Seconds(Clock::duration d) { return std::chrono::duration<double>(d).count(); }

/// Names and defaults are the field's (OpenAI's, vLLM's).
struct SamplingParams {
  float temperature = 1.0f;      // >= 0, finite; 0 is greedy
  float top_p = 1.0f;            // (0, 1]
  int32_t top_k = 0;             // 0: off
  float min_p = 0.0f;            // [0, 1]
  std::optional<uint64_t> seed;  // absent: drawn when the request is submitted
  int32_t max_tokens = 16;       // >= 1; prompt + max_tokens must fit the context
  int32_t min_tokens = 0;  // stop ids are not drawn, stop strings not looked for, before this many
  std::vector<std::string> stop;  // at most 16 strings of at most 256 bytes
  std::vector<int32_t> stop_token_ids;
  bool ignore_eos = false;
  int32_t logprobs =
      -1;  // -1: none; 0: of the drawn token; N: and of the N most likely (at most 20)
  bool skip_special_tokens = true;
  float repetition_penalty = 1.0f;  // > 0: divides logits of tokens of prompt and output; 1: off
  float presence_penalty = 0.0f;    // [-2, 2], off logits of tokens of the output
  float frequency_penalty = 0.0f;   // [-2, 2], the same for each time a token is there
  std::vector<std::pair<int32_t, float>> logit_bias;  // id, [-100, 100]; at most 1024, ids differ
  std::vector<int32_t> allowed_token_ids;             // nothing else is drawn; empty: all are
  std::vector<std::string> bad_words;       // not generated; at most 128 of at most 256 bytes
  bool include_stop_str_in_output = false;  // the text ends with the stop string
  int32_t n = 1;                            // outputs of one prompt, 1 to 128
  int32_t prompt_logprobs =
      -1;  // as logprobs, of the prompt's tokens but the first; no prefix cache
  // Tokens of a step that are guessed by prompt lookup and verified, 0 to 16; -1: the engine's.
  int32_t prompt_lookup_num_tokens = -1;
};

/// Most drafts of one step.
inline constexpr int32_t kMaxDraftTokens = 16;
/// Most outputs of one prompt.
inline constexpr int32_t kMaxOutputs = 128;

/// Checks every field; INVALID_ARGUMENT naming the field, its value and what is allowed.
/// `vocab_size` bounds the token ids.
absl::Status ValidateSampling(const SamplingParams& params, int64_t vocab_size);

struct Request {
  std::string id;                   // for logs; need not be unique
  std::vector<int32_t> prompt_ids;  // at least one
  SamplingParams sampling;
  int32_t priority = 0;  // smaller runs first; equal ones by their tenants' shares, then in order
  std::string tenant;    // among which the engine is shared; empty: everybody without a name
  double tenant_weight = 1;  // > 0: twice the weight, twice the share
  std::optional<Clock::time_point> deadline;
  bool bypass_prefix_cache = false;
};

enum class FinishReason : uint8_t { kStop, kLength, kCancelled, kError };
/// "stop", "length", "cancelled", "error".
std::string_view ToString(FinishReason reason);

struct TokenOutput {
  int32_t token_id = 0;
  float logprob = 0.0f;           // when asked for
  std::vector<TokenLogprob> top;  // when asked for, most likely first
};

struct Usage {
  int32_t prompt_tokens = 0;
  int32_t cached_tokens = 0;  // of the prompt, taken from the prefix cache
  int32_t completion_tokens = 0;
  int32_t computed_prompt_tokens = 0;  // of the prompt, by this output, so far
};

/// What a step made for one request. `text` is whole UTF-8 and never holds back what is certain.
struct RequestUpdate {
  int32_t index = 0;  // which of the request's n outputs this is about
  std::string text;
  std::vector<TokenOutput> tokens;
  std::vector<TokenOutput> prompt_tokens;  // with prompt_logprobs, from the second on; of output 0
  Usage usage;                             // so far
  std::optional<FinishReason> finish_reason;  // set on the last update of its output
  std::string stop_reason;                    // the stop string or id that ended it, else empty
  absl::Status status;                        // why, for kCancelled and kError
};

/// Receives a request's updates. Called from the engine thread: must return quickly and never
/// block. After the update with a finish_reason nothing more comes for that output; n of them end
/// the request.
class RequestSink {
 public:
  virtual ~RequestSink() = default;
  virtual void OnUpdate(RequestUpdate update) = 0;
  /// True while the reader is too far behind: the engine gives this request no more steps until
  /// false.
  virtual bool Stalled() const { return false; }
};

}  // namespace quantd
