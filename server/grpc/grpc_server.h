// GrpcServer: the gRPC port: quantd.v1.Inference, KServe's inference.GRPCInferenceService,
// grpc.health.v1 and reflection, with the limits that a port open to others needs. The port answers
// while the model is loading: health says NOT_SERVING and requests are UNAVAILABLE.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "server/config.h"
#include "server/serving.h"

namespace quantd {

class GrpcServer {
 public:
  /// Listens at config.listen.grpc, and at config.listen.admin if there is one. `serving` and the
  /// model in it must outlive the server. UNAVAILABLE when an address cannot be bound; what is
  /// wrong with the files of config.tls and config.security.
  static absl::StatusOr<std::unique_ptr<GrpcServer>> Start(const ServerConfig& config,
                                                           const Serving& serving);
  ~GrpcServer();  // Shutdown(0)

  /// With the port that was chosen for port 0: "127.0.0.1:50051".
  const std::string& address() const { return address_; }
  /// Of listen.admin; empty without one.
  const std::string& admin_address() const { return admin_address_; }
  /// What health checks say of "" and of the two services.
  void SetHealthy(bool healthy);
  /// Requests that generate and are not done.
  int64_t live_calls() const;
  CallCounts counts() const;
  /// Ends all of them with `status`.
  void CancelAll(const absl::Status& status);
  /// Waits until the texts that have come are tokenized, but not beyond `until`.
  void FinishTexts(std::chrono::steady_clock::time_point until);
  /// Closes the ports at once, lets open calls finish for `grace`, cancels the rest and waits for
  /// them. From a thread of the application only.
  void Shutdown(std::chrono::milliseconds grace);

 private:
  struct Impl;
  GrpcServer();
  std::unique_ptr<Impl> impl_;
  std::string address_;
  std::string admin_address_;
};

}  // namespace quantd
