// Requests in the log: each that has ended, or was refused, is a line with its id. What clients
// sent is only in it when log.prompts says so.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "absl/status/status.h"

namespace quantd {

/// One request that has ended.
struct RequestLine {
  std::string id;      // the caller's name for it, or the server's
  std::string caller;  // of the API key
  std::string peer;  // gRPC's address of it, "ipv4:10.0.0.7:40112"; of a call that may not come in
  std::string status;  // gRPC's name: "OK", "CANCELLED"
  std::string error;   // the status's message
  std::string finish_reason;
  int32_t priority = 0;
  int64_t prompt_tokens = 0;
  int64_t cached_tokens = 0;
  int64_t completion_tokens = 0;
  int64_t max_tokens = 0;
  std::optional<double> first_token_seconds;  // since the request was read
  double seconds = 0;
  std::optional<std::string> prompt = {};  // as text; with log.prompts
  std::string output = {};
};

/// What the log says of an error: of a request that is invalid only what is wrong, not the value,
/// which is the client's text, unless `prompts`. Empty for OK.
std::string ErrorForLog(const absl::Status& status, bool prompts);
/// Logs it at level info.
void LogRequest(const RequestLine& line);
/// The line as text: "request r1: OK, 5 + 16 tokens, ..." and as a JSON object's members.
std::string ToText(const RequestLine& line);
std::string ToJsonMembers(const RequestLine& line);

}  // namespace quantd
