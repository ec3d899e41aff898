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
      outputs_(prepared.request.sampling.n),
      charged_prompt_(static_cast<size_t>(outputs_)) {
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
  if (key_ != nullptr && !std::exchange(released_, true)) key_->End(outputs_);
}

void RequestMeter::OnSubmit(int64_t prompt_tokens) { line_.prompt_tokens = prompt_tokens; }

void RequestMeter::OnUpdate(const RequestUpdate& update) {
  if (!update.tokens.empty() && !first_token_.has_value()) first_token_ = Clock::now();
  line_.completion_tokens += static_cast<int64_t>(update.tokens.size());
  line_.cached_tokens = std::max<int64_t>(line_.cached_tokens, update.usage.cached_tokens);
  if (update.finish_reason.has_value()) line_.finish_reason = ToString(*update.finish_reason);
  if (log_prompts_) line_.output += update.text;
}

void RequestMeter::OnComputed(const RequestUpdate& update) {
  if (key_ == nullptr) return;
  int32_t& charged = charged_prompt_[static_cast<size_t>(update.index)];
  const int32_t prompt = update.usage.computed_prompt_tokens -
                         std::exchange(charged, update.usage.computed_prompt_tokens);
  const int64_t tokens = prompt + static_cast<int64_t>(update.tokens.size());
  if (tokens > 0) key_->Charge(tokens, Clock::now());
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
