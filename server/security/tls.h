// TLS of the gRPC ports: certificates from files that are read again when they are replaced.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/statusor.h"

namespace grpc {
class ServerCredentials;
}

namespace quantd {

struct TlsFiles {
  std::string certificate;  // PEM: the server's certificate, then what leads to its root
  std::string key;          // PEM, without a passphrase
  std::string client_ca;  // PEM; clients must have a certificate of one of these; empty: need none
  int64_t reload_seconds = 10;  // how often the files are looked at

  bool enabled() const { return !certificate.empty(); }
};

/// Says what is wrong with the files before a client's handshake fails on it: NOT_FOUND for one
/// that cannot be read, INVALID_ARGUMENT for one that is not PEM, a key that is not the
/// certificate's, a certificate that has expired or is not valid yet.
absl::Status CheckTlsFiles(const TlsFiles& files);

/// Credentials of a port. Later connections use the files as they are then: both have to be
/// replaced at once, as Kubernetes does with a secret. Fails as CheckTlsFiles.
absl::StatusOr<std::shared_ptr<grpc::ServerCredentials>> MakeTlsCredentials(const TlsFiles& files);

}  // namespace quantd
