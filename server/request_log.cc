#include "server/request_log.h"

#include <fmt/chrono.h>
#include <signal.h>
#include <spdlog/async.h>
#include <spdlog/async_logger.h>
#include <spdlog/formatter.h>
#include <spdlog/spdlog.h>

#include <chrono>
#include <memory>
#include <nlohmann/json.hpp>

#include "engine/weights/json_dump.h"
#include "kernels/status.h"
#include "server/one_line.h"

namespace quantd {
namespace {

// Payloads of this logger are members of a JSON object where the log is JSON.
constexpr char kRequestLogger[] = "request";

bool logs_json = false;  // written before threads start

class JsonFormatter : public spdlog::formatter {
 public:
  void format(const spdlog::details::log_msg& msg, spdlog::memory_buf_t& dest) override {
    const std::string_view payload(msg.payload.data(), msg.payload.size());
    const auto level = spdlog::level::to_string_view(msg.level);
    // UTC, to the microsecond: RFC 3339.
    const auto micros =
        std::chrono::duration_cast<std::chrono::microseconds>(msg.time.time_since_epoch()).count();
    std::string line = fmt::format(R"({{"time":"{:%Y-%m-%dT%H:%M:%S}.{:06}Z","level":"{}",)",
                                   fmt::gmtime(static_cast<time_t>(micros / 1000000)),
                                   micros % 1000000, std::string_view(level.data(), level.size()));
    if (msg.logger_name == kRequestLogger) {
      line += payload;
    } else {
      line += "\"message\":" + DumpJson(nlohmann::json(payload));
    }
    line += "}\n";
    dest.append(line.data(), line.data() + line.size());
  }
  std::unique_ptr<spdlog::formatter> clone() const override {
    return std::make_unique<JsonFormatter>();
  }
};

}  // namespace

std::string ErrorForLog(const absl::Status& status, bool prompts) {
  const std::string message = status.ok() ? "" : Message(status);
  if (prompts || status.code() != absl::StatusCode::kInvalidArgument) return message;
  return message.substr(0, message.find(':'));
}

std::string ToText(const RequestLine& line) {
  std::string text = fmt::format("request {}", OneLine(line.id));
  if (!line.caller.empty()) text += fmt::format(" of {}", line.caller);
  text += fmt::format(": {}", line.status);
  if (!line.error.empty()) text += fmt::format(" ({})", OneLine(line.error));
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
      {"request_id", line.id},
      {"status", line.status},
      {"prompt_tokens", line.prompt_tokens},
      {"cached_tokens", line.cached_tokens},
      {"completion_tokens", line.completion_tokens},
      {"max_tokens", line.max_tokens},
      {"priority", line.priority},
      {"seconds", line.seconds},
  };
  if (!line.caller.empty()) object["caller"] = line.caller;
  if (!line.error.empty()) object["error"] = line.error;
  if (!line.finish_reason.empty()) object["finish_reason"] = line.finish_reason;
  if (line.first_token_seconds.has_value()) {
    object["first_token_seconds"] = *line.first_token_seconds;
  }
  if (line.prompt.has_value()) {
    object["prompt"] = *line.prompt;
    object["output"] = line.output;
  }
  const std::string text = DumpJson(object);
  return text.substr(1, text.size() - 2);
}

void LogRequest(const RequestLine& line) {
  const std::shared_ptr<spdlog::logger> logger = spdlog::get(kRequestLogger);
  if (logger == nullptr || !logger->should_log(spdlog::level::info)) return;
  logger->info("{}", logs_json ? ToJsonMembers(line) : ToText(line));
}

void LogEnd(const absl::Status& status) {
  const std::string line = OneLine(Message(status));
  if (logs_json) {
    spdlog::set_level(spdlog::level::critical);  // also when nothing else is to be logged
    spdlog::critical("{}", line);
  } else {
    fmt::print(stderr, "quantd: {}\n", line);
  }
}

void ConfigureLog(const std::string& level, bool json) {
  // From a thread of its own: these lines come from the engine's thread, which must not wait for
  // whoever reads the log. When that one is far behind, the oldest lines are given up.
  constexpr size_t kMaxWaiting = 8192;
  // A thread inherits which signals are blocked: one that does not block SIGTERM would be ended by
  // it, and the process with it.
  sigset_t all, before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  spdlog::init_thread_pool(kMaxWaiting, 1);
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
  auto logger = std::make_shared<spdlog::async_logger>(
      kRequestLogger, spdlog::default_logger()->sinks().front(), spdlog::thread_pool(),
      spdlog::async_overflow_policy::overrun_oldest);
  spdlog::drop(kRequestLogger);
  spdlog::register_logger(logger);
  logs_json = json;
  spdlog::set_level(spdlog::level::from_str(level));
  spdlog::flush_on(spdlog::level::info);
  if (json) spdlog::set_formatter(std::make_unique<JsonFormatter>());
}

}  // namespace quantd
