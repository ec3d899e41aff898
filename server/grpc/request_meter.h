// RequestMeter: charges a request to its API key, and writes its line to the log.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "server/config.h"
#include "server/grpc/call_meter.h"
#include "server/grpc/convert.h"
#include "server/request_log.h"
#include "server/security/api_keys.h"

namespace quantd {

class RequestMeter final : public CallMeter {
 public:
  /// `key`, which has begun the request, may be null.
  RequestMeter(const ServerConfig& config, std::shared_ptr<KeyUse> key,
               const PreparedRequest& prepared);
  ~RequestMeter() override;  // ends the request, if OnEnd has not

  void OnSubmit(int64_t prompt_tokens) override;
  void OnUpdate(const RequestUpdate& update) override;
  void OnComputed(const RequestUpdate& update) override;
  void OnEnd(const absl::Status& status) override;

 private:
  void Release();

  const bool log_;
  const bool log_prompts_;
  const std::shared_ptr<KeyUse> key_;
  const int32_t outputs_;
  bool released_ = false;
  std::vector<int32_t> charged_prompt_;  // tokens, of each output
  RequestLine line_;
  const Clock::time_point begun_ = Clock::now();
  std::optional<Clock::time_point> first_token_;
};

}  // namespace quantd
