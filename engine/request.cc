// ValidateSampling: the limits of request.h's field comments, checked in one place for every front
// end.
#include "engine/request.h"

#include <cmath>
#include <string_view>

#include "engine/text/utf8.h"
#include "kernels/status.h"

namespace quantd {
namespace {

constexpr size_t kMaxStopStrings = 16;
constexpr size_t kMaxStopBytes = 256;
constexpr int32_t kMaxLogprobs = 20;

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
  if (p.stop.size() > kMaxStopStrings) {
    return InvalidArgument("stop has {} strings, allowed: at most {}", p.stop.size(),
                           kMaxStopStrings);
  }
  for (size_t i = 0; i < p.stop.size(); ++i) {
    if (p.stop[i].empty() || p.stop[i].size() > kMaxStopBytes) {
      return InvalidArgument("stop[{}] has {} bytes, allowed: 1 to {}", i, p.stop[i].size(),
                             kMaxStopBytes);
    }
    if (const size_t at = ValidUtf8Prefix(p.stop[i]); at != p.stop[i].size()) {
      return InvalidArgument("stop[{}] is not valid UTF-8 at byte {}", i, at);
    }
  }
  for (size_t i = 0; i < p.stop_token_ids.size(); ++i) {
    const int32_t id = p.stop_token_ids[i];
    if (id < 0 || id >= vocab_size) {
      return InvalidArgument("stop_token_ids[{}] is {}, allowed: 0 to {}", i, id, vocab_size - 1);
    }
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
  return absl::OkStatus();
}

}  // namespace quantd
