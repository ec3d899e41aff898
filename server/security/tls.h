// TLS of the gRPC ports: a certificate from files that are read again when they are replaced.
#pragma once

#include <cstdint>
#include <list>
#include <memory>
#include <mutex>
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

/// What the files hold, checked.
struct TlsCertificate {
  std::string certificate;  // PEM
  std::string key;          // PEM
  std::string client_ca;    // PEM; empty: clients need none
  int64_t expires = 0;      // the server's, seconds since 1970

  bool operator==(const TlsCertificate&) const = default;
};

/// Says what is wrong with the files before a client's handshake fails on it: NOT_FOUND for one
/// that cannot be read, INVALID_ARGUMENT for one that is no regular file or no PEM, a key that is
/// not the certificate's, a certificate that has expired or is not valid yet.
absl::StatusOr<TlsCertificate> ReadTlsFiles(const TlsFiles& files);

/// The certificate in use. Thread-safe.
class TlsStore {
 public:
  /// Fails as ReadTlsFiles.
  static absl::StatusOr<std::unique_ptr<TlsStore>> Load(const TlsFiles& files);
  ~TlsStore();

  /// Credentials of a port: each handshake takes what was read last. The store must outlive the
  /// servers.
  std::shared_ptr<grpc::ServerCredentials> Credentials();
  /// Reads the files again. True when they hold another certificate, which is used from now on;
  /// what is wrong with them (as ReadTlsFiles) when the old one stays in use.
  absl::StatusOr<bool> Reload();
  /// When the certificate in use expires, seconds since 1970.
  int64_t expires() const;

 private:
  class Port;
  class PortCredentials;
  explicit TlsStore(const TlsFiles& files, TlsCertificate certificate);

  const TlsFiles files_;
  mutable std::mutex mutex_;
  TlsCertificate current_;
  int64_t version_ = 1;    // of current_
  std::list<Port> ports_;  // what gRPC's callbacks hold
};

}  // namespace quantd
