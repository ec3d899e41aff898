#include "server/request_log.h"

#include <spdlog/spdlog.h>

#include <algorithm>
#include <memory>
#include <nlohmann/json.hpp>

#include "engine/weights/json_dump.h"
#include "kernels/status.h"
#include "server/log.h"
#include "server/one_line.h"

namespace quantd {
namespace {

constexpr size_t kMostOfId = 256;  // bytes: a request that is refused for it can have a long one

std::string ShortId(const std::string& id) {
  return id.size() <= kMostOfId ? id : id.substr(0, kMostOfId) + "...";
}

// As it is where it can be nothing else, else in quotes: "r7 of admin: OK" is not what it says.
std::string IdInText(const std::string& id) {
  const auto plain = [](char c) {
    return (c >= '0' && c <= '9') || (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z') ||
           std::string_view("._:-/").find(c) != std::string_view::npos;
  };
  if (id.size() <= kMostOfId && std::all_of(id.begin(), id.end(), plain)) return id;
  return Printable(DumpJson(nlohmann::json(ShortId(id))));
}

}  // namespace

std::string ErrorForLog(const absl::Status& status, bool prompts) {
  std::string message = status.ok() ? "" : Message(status);
  if (prompts || status.code() != absl::StatusCode::kInvalidArgument) return message;
  const std::string_view place = std::string_view(message).substr(0, message.find(':'));
  constexpr std::string_view kAllowed = ", allowed";  // of "n is 9, allowed: 1 to 8"
  return std::string(place.substr(0, place.find(kAllowed)));
}

std::string ToText(const RequestLine& line) {
  std::string text = fmt::format("request {}", IdInText(line.id));
  if (!line.caller.empty()) text += fmt::format(" of {}", line.caller);
  text += fmt::format(": {}", line.status);
  if (!line.error.empty()) text += fmt::format(" ({})", OneLine(line.error));
  if (!line.peer.empty()) text += fmt::format(", from {}", OneLine(line.peer));
  text += fmt::format(", {} + {} tokens", line.prompt_tokens, line.completion_tokens);
  if (line.cached_tokens > 0) text += fmt::format(", {} cached", line.cached_tokens);
  if (!line.finish_reason.empty()) text += fmt::format(", {}", line.finish_reason);
  if (line.first_token_seconds.has_value()) {
    text += fmt::format(", first token after {:.3f} s", *line.first_token_seconds);
  }
  text += fmt::format(", {:.3f} s", line.seconds);
  if (line.prompt.has_value()) {
    const auto quoted = [](const std::string& t) { return Printable(DumpJson(nlohmann::json(t))); };
    text += fmt::format(", prompt {}, output {}", quoted(*line.prompt), quoted(line.output));
  }
  return text;
}

std::string ToJsonMembers(const RequestLine& line) {
  nlohmann::ordered_json object = {
      {"message", "request"},
      {"request_id", ShortId(line.id)},
      {"status", line.status},
      {"prompt_tokens", line.prompt_tokens},
      {"cached_tokens", line.cached_tokens},
      {"completion_tokens", line.completion_tokens},
      {"max_tokens", line.max_tokens},
      {"priority", line.priority},
      {"seconds", line.seconds},
  };
  if (!line.caller.empty()) object["caller"] = line.caller;
  if (!line.peer.empty()) object["peer"] = line.peer;
  if (!line.error.empty()) object["error"] = OneLine(line.error);
  if (!line.finish_reason.empty()) object["finish_reason"] = line.finish_reason;
  if (line.first_token_seconds.has_value()) {
    object["first_token_seconds"] = *line.first_token_seconds;
  }
  if (line.prompt.has_value()) {
    object["prompt"] = *line.prompt;
    object["output"] = line.output;
  }
  // In ASCII, so that nothing in it speaks to a terminal.
  const std::string text =
      object.dump(-1, ' ', true, nlohmann::ordered_json::error_handler_t::replace);
  return text.substr(1, text.size() - 2);
}

void LogRequest(const RequestLine& line) {
  const std::shared_ptr<spdlog::logger> logger = spdlog::get(kRequestLogger);
  if (logger == nullptr || !logger->should_log(spdlog::level::info)) return;
  logger->info("{}", LogsJson() ? ToJsonMembers(line) : ToText(line));
}

}  // namespace quantd
