// A client of quantd.v1.Inference and grpc.health.v1, for the command line. Calling thread only.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "quantd/v1/inference.pb.h"

namespace quantd {

class Client {
 public:
  /// `target` is host:port. Connects when first used.
  explicit Client(const std::string& target);
  ~Client();

  /// Calls `on_response` for each response of the stream. The server's status, or UNAVAILABLE
  /// naming the target when it cannot be reached.
  absl::Status GenerateStream(const v1::GenerateRequest& request,
                              const std::function<void(v1::GenerateStreamResponse)>& on_response);
  absl::StatusOr<v1::GetModelInfoResponse> GetModelInfo();
  /// OK when `service` ("" is the whole server) is SERVING, UNAVAILABLE when it is not or cannot be
  /// reached within `timeout_seconds`, NOT_FOUND for an unknown service.
  absl::Status CheckHealth(const std::string& service, double timeout_seconds);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace quantd
