// ValidateSampling: the limits of request.h's field comments, checked in one place for every front
// end.
#include "engine/request.h"

#include <algorithm>
#include <cmath>
#include <string_view>

#include "engine/text/utf8.h"
#include "kernels/status.h"

namespace quantd {
namespace {

constexpr size_t kMaxStopStrings = 16;
constexpr size_t kMaxStopBytes = 256;
constexpr size_t kMaxStopTokenIds = 1024;  // each is looked at with every token
constexpr int32_t kMaxLogprobs = 20;
constexpr size_t kMaxLogitBias = 1024;
constexpr float kMaxBias = 100.0f;
constexpr size_t kMaxBadWords = 128;
constexpr size_t kMaxBadWordBytes = 256;

// At most `most` strings of 1 to `bytes` bytes of UTF-8.
absl::Status CheckStrings(const char* field, const std::vector<std::string>& strings, size_t most,
                          size_t bytes) {
  if (strings.size() > most) {
    return InvalidArgument("{} has {} strings, allowed: at most {}", field, strings.size(), most);
  }
  for (size_t i = 0; i < strings.size(); ++i) {
    if (strings[i].empty() || strings[i].size() > bytes) {
      return InvalidArgument("{}[{}] has {} bytes, allowed: 1 to {}", field, i, strings[i].size(),
                             bytes);
    }
    if (const size_t at = ValidUtf8Prefix(strings[i]); at != strings[i].size()) {
      return InvalidArgument("{}[{}] is not valid UTF-8 at byte {}", field, i, at);
    }
  }
  return absl::OkStatus();
}

absl::Status CheckPenalty(const char* field, float penalty) {
  if (penalty >= -2.0f && penalty <= 2.0f) return absl::OkStatus();
  return InvalidArgument("{} is {}, allowed: -2 to 2", field, penalty);
}

absl::Status CheckTokenChoice(const SamplingParams& p, int64_t vocab_size) {
  if (p.logit_bias.size() > kMaxLogitBias) {
    return InvalidArgument("logit_bias has {} entries, allowed: at most {}", p.logit_bias.size(),
                           kMaxLogitBias);
  }
  for (const auto& [id, bias] : p.logit_bias) {
    if (id < 0 || id >= vocab_size) {
      return InvalidArgument("logit_bias[{}] is of no token, allowed: ids 0 to {}", id,
                             vocab_size - 1);
    }
    if (!(std::fabs(bias) <= kMaxBias)) {
      return InvalidArgument("logit_bias[{}] is {}, allowed: -{} to {}", id, bias, kMaxBias,
                             kMaxBias);
    }
  }
  if (static_cast<int64_t>(p.allowed_token_ids.size()) > vocab_size) {
    return InvalidArgument("allowed_token_ids has {} ids, allowed: at most the vocabulary's {}",
                           p.allowed_token_ids.size(), vocab_size);
  }
  for (size_t i = 0; i < p.allowed_token_ids.size(); ++i) {
    const int32_t id = p.allowed_token_ids[i];
    if (id < 0 || id >= vocab_size) {
      return InvalidArgument("allowed_token_ids[{}] is {}, allowed: 0 to {}", i, id,
                             vocab_size - 1);
    }
  }
  return CheckStrings("bad_words", p.bad_words, kMaxBadWords, kMaxBadWordBytes);
}

}  // namespace

std::string_view ToString(FinishReason reason) {
  switch (reason) {
    case FinishReason::kStop: return "stop";
    case FinishReason::kLength: return "length";
    case FinishReason::kCancelled: return "cancelled";
    case FinishReason::kError: return "error";
  }
  return "";
}

absl::Status ValidateSampling(const SamplingParams& p, int64_t vocab_size) {
  // Comparisons are written so that NaN fails them.
  if (!(p.temperature >= 0.0f) || !std::isfinite(p.temperature)) {
    return InvalidArgument("temperature is {}, allowed: 0 (greedy) or a positive finite number",
                           p.temperature);
  }
  if (!(p.top_p > 0.0f && p.top_p <= 1.0f)) {
    return InvalidArgument("top_p is {}, allowed: above 0, at most 1", p.top_p);
  }
  if (p.top_k < 0) return InvalidArgument("top_k is {}, allowed: 0 (off) or more", p.top_k);
  if (!(p.min_p >= 0.0f && p.min_p <= 1.0f)) {
    return InvalidArgument("min_p is {}, allowed: 0 to 1", p.min_p);
  }
  if (p.max_tokens < 1)
    return InvalidArgument("max_tokens is {}, allowed: 1 or more", p.max_tokens);
  if (p.min_tokens < 0 || p.min_tokens > p.max_tokens) {
    return InvalidArgument("min_tokens is {}, allowed: 0 to max_tokens ({})", p.min_tokens,
                           p.max_tokens);
  }
  RETURN_IF_ERROR(CheckStrings("stop", p.stop, kMaxStopStrings, kMaxStopBytes));
  for (size_t i = 0; i < p.stop_token_ids.size(); ++i) {
    const int32_t id = p.stop_token_ids[i];
    if (id < 0 || id >= vocab_size) {
      return InvalidArgument("stop_token_ids[{}] is {}, allowed: 0 to {}", i, id, vocab_size - 1);
    }
  }
  if (p.stop_token_ids.size() > kMaxStopTokenIds) {
    return InvalidArgument("stop_token_ids has {} ids, allowed: at most {}",
                           p.stop_token_ids.size(), kMaxStopTokenIds);
  }
  // A list as long as the vocabulary would also ban everything under min_tokens.
  if (static_cast<int64_t>(p.stop_token_ids.size()) >= vocab_size) {
    return InvalidArgument("stop_token_ids has {} ids, allowed: fewer than the vocabulary's {}",
                           p.stop_token_ids.size(), vocab_size);
  }
  if (p.logprobs < -1 || p.logprobs > kMaxLogprobs) {
    return InvalidArgument("logprobs is {}, allowed: -1 (none) to {}", p.logprobs, kMaxLogprobs);
  }
  if (p.logprobs > vocab_size) {
    return InvalidArgument("logprobs is {}, allowed: at most the vocabulary's {}", p.logprobs,
                           vocab_size);
  }
  if (p.prompt_logprobs < -1 || p.prompt_logprobs > kMaxLogprobs ||
      p.prompt_logprobs > vocab_size) {
    return InvalidArgument("prompt_logprobs is {}, allowed: -1 (none) to {}", p.prompt_logprobs,
                           std::min<int64_t>(kMaxLogprobs, vocab_size));
  }
  if (p.prompt_lookup_num_tokens < -1 || p.prompt_lookup_num_tokens > kMaxDraftTokens) {
    return InvalidArgument("prompt_lookup_num_tokens is {}, allowed: -1 (the server's) to {}",
                           p.prompt_lookup_num_tokens, kMaxDraftTokens);
  }
  if (!(p.repetition_penalty > 0.0f && std::isfinite(p.repetition_penalty))) {
    return InvalidArgument("repetition_penalty is {}, allowed: a positive finite number (1: off)",
                           p.repetition_penalty);
  }
  RETURN_IF_ERROR(CheckPenalty("presence_penalty", p.presence_penalty));
  RETURN_IF_ERROR(CheckPenalty("frequency_penalty", p.frequency_penalty));
  RETURN_IF_ERROR(CheckTokenChoice(p, vocab_size));
  if (p.n < 1 || p.n > kMaxOutputs) {
    return InvalidArgument("n is {}, allowed: 1 to {}", p.n, kMaxOutputs);
  }
  return absl::OkStatus();
}

}  // namespace quantd
