// HttpServer on cpp-httplib, which throws: everything it may throw ends here.
#include "server/http/http_server.h"

#include <httplib.h>

#include <chrono>
#include <exception>
#include <thread>
#include <utility>

#include "kernels/status.h"
#include "server/config.h"

namespace quantd {

struct HttpServer::Impl {
  httplib::Server server;
  std::thread thread;
};

HttpServer::HttpServer() : impl_(std::make_unique<Impl>()) {}

HttpServer::~HttpServer() {
  if (!impl_->thread.joinable()) return;
  impl_->server.stop();
  impl_->thread.join();
}

absl::StatusOr<std::unique_ptr<HttpServer>> HttpServer::Start(
    const std::string& address, const Serving& serving, std::function<std::string()> metrics) {
  std::string host;
  int port = 0;
  RETURN_IF_ERROR(ParseAddress(address, &host, &port));
  std::unique_ptr<HttpServer> self(new HttpServer());
  httplib::Server& server = self->impl_->server;
  try {
    // Few, short requests: connections are not kept, so that an idle one does not hold a thread.
    server.new_task_queue = [] { return new httplib::ThreadPool(16); };
    server.set_keep_alive_max_count(1);
    // The library would add SO_REUSEPORT: a second server on the port must fail, not share it.
    server.set_socket_options([](socket_t socket) {
      const int yes = 1;
      ::setsockopt(socket, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof(yes));
    });
    server.set_read_timeout(2, 0);
    server.set_write_timeout(5, 0);
    server.set_payload_max_length(4096);
    server.set_exception_handler([](const httplib::Request&, httplib::Response& response,
                                    const std::exception_ptr&) { response.status = 500; });
    server.Get("/livez", [](const httplib::Request&, httplib::Response& response) {
      response.set_content("ok\n", "text/plain");
    });
    server.Get("/readyz", [&serving](const httplib::Request&, httplib::Response& response) {
      const Serving::State state = serving.state();
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
