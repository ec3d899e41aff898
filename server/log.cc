#include "server/log.h"

#include <fmt/chrono.h>
#include <limits.h>
#include <poll.h>
#include <signal.h>
#include <spdlog/async.h>
#include <spdlog/async_logger.h>
#include <spdlog/pattern_formatter.h>
#include <spdlog/sinks/base_sink.h>
#include <spdlog/sinks/stdout_color_sinks.h>
#include <spdlog/spdlog.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <memory>
#include <mutex>
#include <nlohmann/json.hpp>

#include "kernels/status.h"
#include "server/one_line.h"

namespace quantd {
namespace {

bool logs_json = false;  // written before threads start

// A line's payload, printable: "%*" of the pattern.
class PrintablePayload : public spdlog::custom_flag_formatter {
 public:
  void format(const spdlog::details::log_msg& msg, const std::tm&,
              spdlog::memory_buf_t& dest) override {
    const std::string text = Printable({msg.payload.data(), msg.payload.size()});
    dest.append(text.data(), text.data() + text.size());
  }
  std::unique_ptr<spdlog::custom_flag_formatter> clone() const override {
    return std::make_unique<PrintablePayload>();
  }
};

std::unique_ptr<spdlog::formatter> TextFormatter() {
  auto formatter = std::make_unique<spdlog::pattern_formatter>();
  formatter->add_flag<PrintablePayload>('*').set_pattern("%Y-%m-%dT%H:%M:%S.%e %^%l%$ %*");
  return formatter;
}

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
    } else {  // in ASCII, so that nothing in it speaks to a terminal
      line += "\"message\":" +
              nlohmann::json(payload).dump(-1, ' ', true, nlohmann::json::error_handler_t::replace);
    }
    line += "}\n";
    dest.append(line.data(), line.data() + line.size());
  }
  std::unique_ptr<spdlog::formatter> clone() const override {
    return std::make_unique<JsonFormatter>();
  }
};

// stderr where it is no terminal: a pipe that nobody reads must not stop who has something to say,
// least of all the thread that answers SIGTERM. Lines that do not fit are given up and counted.
class LossySink : public spdlog::sinks::base_sink<std::mutex> {
 protected:
  void sink_it_(const spdlog::details::log_msg& msg) override {
    if (const auto pool = spdlog::thread_pool(); pool != nullptr) {
      lost_ += static_cast<int64_t>(pool->overrun_counter() - overrun_);
      overrun_ = pool->overrun_counter();
    }
    if (!Writable()) {
      ++lost_;
      return;
    }
    if (lost_ > 0) {
      const std::string text =
          fmt::format("{} lines of the log were lost: nobody read it, or too slowly", lost_);
      lost_ = 0;
      Write(spdlog::details::log_msg(msg.time, {}, "", spdlog::level::warn, text));
    }
    Write(msg);
  }
  void flush_() override {}

 private:
  bool Writable() {
    constexpr int kPatience = 200;  // ms, once: then lines are dropped until there is room
    pollfd entry = {STDERR_FILENO, POLLOUT, 0};
    stuck_ = poll(&entry, 1, stuck_ ? 0 : kPatience) == 0;
    return !stuck_;
  }
  void Write(const spdlog::details::log_msg& msg) {
    spdlog::memory_buf_t line;
    formatter_->format(msg, line);
    // Pieces of PIPE_BUF at most: so much fits in a pipe of which poll says that there is room.
    for (size_t done = 0; done < line.size();) {
      const size_t size = std::min<size_t>(line.size() - done, PIPE_BUF);
      const ssize_t n = write(STDERR_FILENO, line.data() + done, size);
      if (n < 0 && errno != EINTR) return;
      done += n > 0 ? static_cast<size_t>(n) : 0;
      if (done < line.size() && !Writable()) return;
    }
  }

  bool stuck_ = false;
  int64_t lost_ = 0;
  size_t overrun_ = 0;  // of the queue of requests' lines, counted in lost_ already
};

}  // namespace

void UseTextLog() {
  spdlog::set_default_logger(spdlog::stderr_color_mt("quantd"));
  spdlog::set_formatter(TextFormatter());
}

bool LogsJson() { return logs_json; }

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
  spdlog::sink_ptr sink = spdlog::default_logger()->sinks().front();
  if (isatty(STDERR_FILENO) == 0) sink = std::make_shared<LossySink>();
  spdlog::set_default_logger(std::make_shared<spdlog::logger>("serve", sink));
  // From a thread of its own: these lines come from the engine's thread, which must not even wait
  // for a disk. When that one is far behind, the oldest lines are given up.
  constexpr size_t kMaxWaiting = 8192;
  // A thread inherits which signals are blocked: one that does not block SIGTERM would be ended by
  // it, and the process with it.
  sigset_t all, before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  spdlog::init_thread_pool(kMaxWaiting, 1);
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
  spdlog::drop(kRequestLogger);
  spdlog::register_logger(std::make_shared<spdlog::async_logger>(
      kRequestLogger, sink, spdlog::thread_pool(), spdlog::async_overflow_policy::overrun_oldest));
  logs_json = json;
  spdlog::set_level(spdlog::level::from_str(level));
  spdlog::flush_on(spdlog::level::info);
  if (json) {
    spdlog::set_formatter(std::make_unique<JsonFormatter>());
  } else {
    spdlog::set_formatter(TextFormatter());
  }
}

}  // namespace quantd
