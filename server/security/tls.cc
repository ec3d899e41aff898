#include "server/security/tls.h"

#include <grpc/grpc_security.h>
#include <grpcpp/security/server_credentials.h>
#include <openssl/asn1.h>
#include <openssl/pem.h>
#include <openssl/x509.h>

#include <ctime>
#include <utility>

#include "kernels/check.h"
#include "kernels/status.h"
#include "server/read_input.h"

namespace quantd {
namespace {

template <typename T, void (*kFree)(T*)>
struct Freer {
  void operator()(T* p) const { kFree(p); }
};
void FreeBio(BIO* bio) { BIO_free(bio); }
using BioPtr = std::unique_ptr<BIO, Freer<BIO, FreeBio>>;
using X509Ptr = std::unique_ptr<X509, Freer<X509, X509_free>>;
using KeyPtr = std::unique_ptr<EVP_PKEY, Freer<EVP_PKEY, EVP_PKEY_free>>;

// A key with a passphrase must not make the library ask for it on the terminal.
int NoPassphrase(char*, int, int, void*) { return -1; }

BioPtr ToBio(const std::string& text) {
  BioPtr bio(BIO_new(BIO_s_mem()));
  BIO_write(bio.get(), text.data(), static_cast<int>(text.size()));
  return bio;
}

absl::StatusOr<std::string> Read(const std::string& path, const char* what) {
  return ReadRegularFile(path, fmt::format("{} {}", what, path));
}

// `text`, which was in the file of the key `what`.
absl::StatusOr<X509Ptr> ParseCertificate(const std::string& text, const std::string& path,
                                         const char* what) {
  X509Ptr certificate(PEM_read_bio_X509(ToBio(text).get(), nullptr, NoPassphrase, nullptr));
  if (certificate == nullptr) return InvalidArgument("{} {}: no PEM certificate in it", what, path);
  if (X509_cmp_current_time(X509_get0_notAfter(certificate.get())) < 0) {
    return InvalidArgument("{} {}: the certificate has expired", what, path);
  }
  if (X509_cmp_current_time(X509_get0_notBefore(certificate.get())) > 0) {
    return InvalidArgument("{} {}: the certificate is not valid yet", what, path);
  }
  return certificate;
}

}  // namespace

absl::StatusOr<TlsCertificate> ReadTlsFiles(const TlsFiles& files) {
  TlsCertificate out;
  ASSIGN_OR_RETURN(out.certificate, Read(files.certificate, "tls.certificate"));
  ASSIGN_OR_RETURN(const X509Ptr certificate,
                   ParseCertificate(out.certificate, files.certificate, "tls.certificate"));
  ASSIGN_OR_RETURN(out.key, Read(files.key, "tls.key"));
  const KeyPtr key(PEM_read_bio_PrivateKey(ToBio(out.key).get(), nullptr, NoPassphrase, nullptr));
  if (key == nullptr) {
    return InvalidArgument("tls.key {}: no PEM key without a passphrase in it", files.key);
  }
  if (X509_check_private_key(certificate.get(), key.get()) != 1) {
    return InvalidArgument("tls.key {}: is not the key of tls.certificate {}", files.key,
                           files.certificate);
  }
  std::tm end = {};
  ASN1_TIME_to_tm(X509_get0_notAfter(certificate.get()), &end);
  out.expires = timegm(&end);
  if (files.client_ca.empty()) return out;
  ASSIGN_OR_RETURN(out.client_ca, Read(files.client_ca, "tls.client_ca"));
  RETURN_IF_ERROR(ParseCertificate(out.client_ca, files.client_ca, "tls.client_ca").status());
  return out;
}

// What gRPC asks before each handshake of a port. The library's own watcher of files takes whatever
// is in them, so that a faulty renewal would end all new connections.
class TlsStore::Port {
 public:
  explicit Port(const TlsStore& store) : store_(store) {}

  static grpc_ssl_certificate_config_reload_status Fetch(
      void* self, grpc_ssl_server_certificate_config** config) {
    return static_cast<Port*>(self)->FetchNew(config);
  }

 private:
  grpc_ssl_certificate_config_reload_status FetchNew(grpc_ssl_server_certificate_config** config) {
    std::lock_guard lock(store_.mutex_);
    if (seen_ == store_.version_) return GRPC_SSL_CERTIFICATE_CONFIG_RELOAD_UNCHANGED;
    const TlsCertificate& current = store_.current_;
    const grpc_ssl_pem_key_cert_pair pair = {current.key.c_str(), current.certificate.c_str()};
    // gRPC 1.51 wants clients' roots here also where no client is asked for a certificate, and then
    // does not use them.
    const std::string& roots = current.client_ca.empty() ? current.certificate : current.client_ca;
    *config = grpc_ssl_server_certificate_config_create(roots.c_str(), &pair, 1);
    seen_ = store_.version_;
    return GRPC_SSL_CERTIFICATE_CONFIG_RELOAD_NEW;
  }

  const TlsStore& store_;
  int64_t seen_ = 0;  // under the store's mutex
};

// gRPC's C++ has no credentials whose certificate is asked for; its C, below it, has.
class TlsStore::PortCredentials : public grpc::ServerCredentials {
 public:
  explicit PortCredentials(TlsStore& store) : store_(store) {}

  void SetAuthMetadataProcessor(const std::shared_ptr<grpc::AuthMetadataProcessor>&) override {
    QUANTD_CHECK(false, "not used: Front identifies callers");
  }

 private:
  int AddPortToServer(const std::string& address, grpc_server* server) override {
    Port* port = nullptr;
    {
      std::lock_guard lock(store_.mutex_);
      port = &store_.ports_.emplace_back(store_);
    }
    grpc_server_credentials* credentials = grpc_ssl_server_credentials_create_with_options(
        grpc_ssl_server_credentials_create_options_using_config_fetcher(
            store_.files_.client_ca.empty()
                ? GRPC_SSL_DONT_REQUEST_CLIENT_CERTIFICATE
                : GRPC_SSL_REQUEST_AND_REQUIRE_CLIENT_CERTIFICATE_AND_VERIFY,
            &Port::Fetch, port));
    const int bound = grpc_server_add_http2_port(server, address.c_str(), credentials);
    grpc_server_credentials_release(credentials);  // the port has its own reference
    return bound;
  }

  TlsStore& store_;
};

TlsStore::TlsStore(const TlsFiles& files, TlsCertificate certificate)
    : files_(files), current_(std::move(certificate)) {}
TlsStore::~TlsStore() = default;

absl::StatusOr<std::unique_ptr<TlsStore>> TlsStore::Load(const TlsFiles& files) {
  ASSIGN_OR_RETURN(TlsCertificate certificate, ReadTlsFiles(files));
  return std::unique_ptr<TlsStore>(new TlsStore(files, std::move(certificate)));
}

std::shared_ptr<grpc::ServerCredentials> TlsStore::Credentials() {
  return std::make_shared<PortCredentials>(*this);
}

absl::StatusOr<bool> TlsStore::Reload() {
  ASSIGN_OR_RETURN(TlsCertificate read, ReadTlsFiles(files_));
  std::lock_guard lock(mutex_);
  if (read == current_) return false;
  current_ = std::move(read);
  ++version_;
  return true;
}

int64_t TlsStore::expires() const {
  std::lock_guard lock(mutex_);
  return current_.expires;
}

}  // namespace quantd
