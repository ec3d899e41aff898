// HttpServer on cpp-httplib, which throws: everything it may throw ends here.
#include "server/http/http_server.h"

#include <httplib.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <condition_variable>
#include <deque>
#include <exception>
#include <functional>
#include <mutex>
#include <system_error>
#include <thread>
#include <utility>

#include "kernels/status.h"
#include "server/config.h"

namespace quantd {
namespace {

using Clock = std::chrono::steady_clock;

// A connection that ends at a time, whatever comes through it: the library bounds each read only,
// so that a client which sends a byte a second would keep a thread for hours.
class TimedStream : public httplib::Stream {
 public:
  TimedStream(int fd, Clock::time_point end) : fd_(fd), end_(end) {}

  bool is_readable() const override { return Wait(POLLIN); }
  bool is_writable() const override { return Wait(POLLOUT); }
  ssize_t read(char* data, size_t size) override {
    return Wait(POLLIN) ? ::recv(fd_, data, size, MSG_DONTWAIT) : -1;
  }
  // All of it, as the library expects.
  ssize_t write(const char* data, size_t size) override {
    for (size_t done = 0; done < size;) {
      if (!Wait(POLLOUT)) return -1;
      const ssize_t n = ::send(fd_, data + done, size - done, MSG_DONTWAIT | MSG_NOSIGNAL);
      if (n < 0 && errno != EAGAIN && errno != EINTR) return -1;
      if (n > 0) done += static_cast<size_t>(n);
    }
    return static_cast<ssize_t>(size);
  }
  // Of a Request that no handler here looks at.
  void get_remote_ip_and_port(std::string&, int&) const override {}
  void get_local_ip_and_port(std::string&, int&) const override {}
  socket_t socket() const override { return fd_; }

 private:
  bool Wait(short events) const {
    while (true) {
      const auto left = std::chrono::ceil<std::chrono::milliseconds>(end_ - Clock::now()).count();
      if (left <= 0) return false;
      pollfd entry = {fd_, events, 0};
      const int ready = ::poll(&entry, 1, static_cast<int>(left));
      if (ready > 0) return true;  // or broken, which the next call says
      if (ready == 0 || errno != EINTR) return false;
    }
  }

  const int fd_;
  const Clock::time_point end_;
};

// A thread for each connection that is at work: idle ones must not keep a probe waiting. They are
// ended with their last connection, as few are needed most of the time.
class ThreadsAsNeeded : public httplib::TaskQueue {
 public:
  void enqueue(std::function<void()> job) override {
    std::unique_lock lock(mutex_);
    jobs_.push_back(std::move(job));
    if (jobs_.size() <= idle_ || threads_ == kMost) return wake_.notify_one();
    try {
      std::thread([this] { Run(); }).detach();
      ++threads_;
    } catch (const std::system_error&) {  // no more can be had: those there are will come to it
      if (threads_ > 0) return;
      const std::function<void()> last = std::move(jobs_.back());
      jobs_.pop_back();
      lock.unlock();
      last();
    }
  }
  void shutdown() override {
    std::unique_lock lock(mutex_);
    stopping_ = true;
    wake_.notify_all();
    wake_.wait(lock, [this] { return threads_ == 0; });
  }

 private:
  static constexpr size_t kMost = 256;

  void Run() {
    std::unique_lock lock(mutex_);
    while (true) {
      ++idle_;
      wake_.wait_for(lock, kRest, [this] { return stopping_ || !jobs_.empty(); });
      --idle_;
      if (jobs_.empty()) break;
      const std::function<void()> job = std::move(jobs_.front());
      jobs_.pop_front();
      lock.unlock();
      job();
      lock.lock();
    }
    --threads_;
    wake_.notify_all();  // under the lock: afterwards the queue may be gone
  }

  static constexpr std::chrono::seconds kRest{1};
  std::mutex mutex_;
  std::condition_variable wake_;
  std::deque<std::function<void()>> jobs_;
  size_t threads_ = 0;
  size_t idle_ = 0;  // of them
  bool stopping_ = false;
};

}  // namespace

// One request a connection, which is over in time.
struct HttpServer::Impl : httplib::Server {
  explicit Impl(Clock::duration longest) : limit(longest) {}

  bool process_and_close_socket(socket_t fd) override {
    TimedStream stream(fd, Clock::now() + limit);
    bool closed = false;
    // A header of many ranges would have the page sent as often, put together in memory.
    const auto without_ranges = [](httplib::Request& request) {
      request.headers.erase("Range");
      request.ranges.clear();
    };
    const bool ok = process_request(stream, /*close_connection=*/true, closed, without_ranges);
    ::shutdown(fd, SHUT_RDWR);
    ::close(fd);
    return ok;
  }

  const Clock::duration limit;
  std::thread thread;
};

HttpServer::HttpServer(std::chrono::milliseconds limit) : impl_(std::make_unique<Impl>(limit)) {}

HttpServer::~HttpServer() {
  if (!impl_->thread.joinable()) return;
  impl_->stop();
  impl_->thread.join();
}

absl::StatusOr<std::unique_ptr<HttpServer>> HttpServer::Start(const std::string& address,
                                                              const Serving& serving,
                                                              std::function<std::string()> metrics,
                                                              std::chrono::milliseconds limit) {
  std::string host;
  int port = 0;
  RETURN_IF_ERROR(ParseAddress(address, &host, &port));
  std::unique_ptr<HttpServer> self(new HttpServer(limit));
  httplib::Server& server = *self->impl_;
  try {
    server.new_task_queue = [] { return new ThreadsAsNeeded(); };
    // The library would add SO_REUSEPORT: a second server on the port must fail, not share it.
    server.set_socket_options([](socket_t socket) {
      const int yes = 1;
      ::setsockopt(socket, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof(yes));
    });
    server.set_payload_max_length(4096);
    server.set_exception_handler([](const httplib::Request&, httplib::Response& response,
                                    const std::exception_ptr&) { response.status = 500; });
    server.Get("/livez", [](const httplib::Request&, httplib::Response& response) {
      response.set_content("ok\n", "text/plain");
    });
    server.Get("/readyz", [&serving](const httplib::Request&, httplib::Response& response) {
      const Serving::State state = serving.announced();
      response.status = state == Serving::State::kReady ? 200 : 503;
      response.set_content(state == Serving::State::kReady     ? "ok\n"
                           : state == Serving::State::kLoading ? "loading\n"
                                                               : "draining\n",
                           "text/plain");
    });
    server.Get("/metrics", [metrics = std::move(metrics)](const httplib::Request&,
                                                          httplib::Response& response) {
      response.set_content(metrics(), "text/plain; version=0.0.4; charset=utf-8");
    });
    if (port == 0) {
      port = server.bind_to_any_port(host);
      if (port <= 0)
        return Unavailable("listen.http: {} cannot be bound (not of this machine?)", address);
    } else if (!server.bind_to_port(host, port)) {
      return Unavailable("listen.http: {} cannot be bound (in use, or not of this machine?)",
                         address);
    }
    self->impl_->thread = std::thread([&server] {
      try {
        server.listen_after_bind();
      } catch (const std::exception&) {
        // The port closes; probes then see the failure.
      }
    });
    // stop() before the accept loop runs would be forgotten.
    for (int i = 0; i < 5000 && !server.is_running(); ++i) {
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
  } catch (const std::exception& e) {
    return Internal("listen.http: {}: {}", address, e.what());
  }
  if (host.find(':') != std::string::npos) host = "[" + host + "]";
  self->address_ = fmt::format("{}:{}", host, port);
  return self;
}

}  // namespace quantd
