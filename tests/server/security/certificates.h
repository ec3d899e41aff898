// Certificates for tests, made on the spot: an authority, and what it signs for 127.0.0.1.
#pragma once

#include <memory>
#include <string>

namespace quantd::test {

struct Certificate {
  std::string certificate;  // PEM
  std::string key;          // PEM
};

class Authority {
 public:
  explicit Authority(const std::string& name);
  ~Authority();

  /// PEM, for who is to trust it.
  const std::string& certificate() const;
  /// Signs one, for a server at 127.0.0.1 and localhost or for a client, that is valid from now on
  /// for `seconds`; negative: it has expired.
  Certificate Sign(const std::string& name, long seconds = 3600);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace quantd::test
