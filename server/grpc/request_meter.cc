#include "server/grpc/request_meter.h"

#include <algorithm>
#include <utility>

#include "kernels/status.h"

namespace quantd {

RequestMeter::RequestMeter(const ServerConfig& config, std::shared_ptr<KeyUse> key,
                           const PreparedRequest& prepared)
    : log_(config.log.requests),
      log_prompts_(config.log.requests && config.log.prompts),
      key_(std::move(key)),
      outputs_(prepared.request.sampling.n) {
  if (!log_) return;
  line_.id = prepared.request.id;
  line_.caller = prepared.request.tenant;
  line_.priority = prepared.request.priority;
  line_.max_tokens = prepared.request.sampling.max_tokens;
  if (!log_prompts_) return;
  line_.prompt = prepared.text;
  for (const ChatMessage& message : prepared.messages) {
    *line_.prompt += message.role + ": " + message.content.value_or("") + "\n";
  }
}

RequestMeter::~RequestMeter() { Release(); }

void RequestMeter::Release() {
  if (key_ != nullptr) std::exchange(key_, nullptr)->End(outputs_);
}

void RequestMeter::OnSubmit(int64_t prompt_tokens) { line_.prompt_tokens = prompt_tokens; }

void RequestMeter::OnUpdate(const RequestUpdate& update) {
  const auto tokens = static_cast<int64_t>(update.tokens.size());
  if (tokens > 0) {
    const Clock::time_point now = Clock::now();
    // A prompt has been computed, as far as it was not cached, when its first token is there.
    const int64_t prompt =
        first_token_.has_value() ? 0 : line_.prompt_tokens - update.usage.cached_tokens;
    if (!first_token_.has_value()) first_token_ = now;
    if (key_ != nullptr) key_->Charge(prompt + tokens, now);
  }
  line_.completion_tokens += tokens;
  line_.cached_tokens = std::max<int64_t>(line_.cached_tokens, update.usage.cached_tokens);
  if (update.finish_reason.has_value()) line_.finish_reason = ToString(*update.finish_reason);
  if (log_prompts_) line_.output += update.text;
}

void RequestMeter::OnEnd(const absl::Status& status) {
  Release();
  if (!log_) return;
  line_.status = absl::StatusCodeToString(status.code());
  line_.error = ErrorForLog(status, log_prompts_);
  line_.seconds = Seconds(Clock::now() - begun_);
  if (first_token_.has_value()) line_.first_token_seconds = Seconds(*first_token_ - begun_);
  LogRequest(line_);
}

}  // namespace quantd
