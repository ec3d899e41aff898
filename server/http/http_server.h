// HttpServer: /livez, /readyz and /metrics on a port of its own, for probes and Prometheus.
#pragma once

#include <chrono>
#include <functional>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "server/serving.h"

namespace quantd {

class HttpServer {
 public:
  /// Listens and serves from threads of its own until destroyed. `serving` must outlive the server;
  /// `metrics` makes the /metrics page and may be called from several threads at once. UNAVAILABLE
  /// when the address cannot be bound. A connection has one request and is closed after `limit`,
  /// finished or not.
  static absl::StatusOr<std::unique_ptr<HttpServer>> Start(
      const std::string& address, const Serving& serving, std::function<std::string()> metrics,
      std::chrono::milliseconds limit = std::chrono::seconds(5));
  ~HttpServer();

  /// Where it listens, with the port that was chosen for port 0: "127.0.0.1:8080".
  const std::string& address() const { return address_; }

 private:
  struct Impl;
  explicit HttpServer(std::chrono::milliseconds limit);
  std::unique_ptr<Impl> impl_;
  std::string address_;
};

}  // namespace quantd
