// A client of quantd.v1.Inference and grpc.health.v1, for the command line. Calling thread only.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "quantd/v1/inference.pb.h"

namespace grpc {
class Channel;
}

namespace quantd {

/// How a server is reached.
struct ChannelOptions {
  std::string target = {};  // host:port, or a name of gRPC's: dns:///host:port, ipv4:a:1,b:2
  std::string service_config = {};  // JSON: load balancing, retries; empty: gRPC's defaults
  bool own_connection = false;      // shares none with other channels to the same server
  std::string api_key = {};         // empty: none
  // PEM. With `tls` or any of these the connection is encrypted.
  bool tls = false;
  std::string tls_ca = {};  // who may have signed the server's certificate; empty: the system's
  std::string tls_certificate = {};  // of the client, for mTLS, with its key
  std::string tls_key = {};
  std::string tls_server_name = {};  // the name in the server's certificate; empty: target's

  bool encrypted() const { return tls || !tls_ca.empty() || !tls_certificate.empty(); }
};

/// The one place where channels are made. Connects when first used; an invalid service_config
/// fails every call.
std::shared_ptr<grpc::Channel> MakeChannel(const ChannelOptions& options);

class Client {
 public:
  /// Connects when first used.
  explicit Client(const ChannelOptions& options);
  explicit Client(const std::string& target) : Client(ChannelOptions{.target = target}) {}
  ~Client();

  /// Calls `on_response` for each response of the stream. The server's status, or UNAVAILABLE
  /// naming the target when it cannot be reached.
  absl::Status GenerateStream(const v1::GenerateRequest& request,
                              const std::function<void(v1::GenerateStreamResponse)>& on_response);
  absl::StatusOr<v1::GetModelInfoResponse> GetModelInfo();
  /// The server's status; DEADLINE_EXCEEDED when there is no answer within `timeout_seconds`.
  absl::StatusOr<v1::GetServerInfoResponse> GetServerInfo(double timeout_seconds);
  /// Token ids of `text`, as the server's tokenizer has them, without its special tokens.
  absl::StatusOr<v1::TokenizeResponse> Tokenize(const std::string& text);
  /// OK when `service` ("" is the whole server) is SERVING, UNAVAILABLE when it is not or cannot be
  /// reached within `timeout_seconds`, NOT_FOUND for an unknown service.
  absl::Status CheckHealth(const std::string& service, double timeout_seconds);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace quantd
