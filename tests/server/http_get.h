// HttpGet: one GET over a plain socket.
#pragma once

#include <string>

namespace quantd::test {

struct HttpResult {
  int status = 0;  // 0: no answer
  std::string body;
};
/// `headers`: more of them, each with its end of line.
HttpResult HttpGet(const std::string& address, const std::string& path,
                   const std::string& headers = "");

/// A TCP connection to `address` ("127.0.0.1:80"); -1 when it is refused.
int ConnectTcp(const std::string& address);

}  // namespace quantd::test
