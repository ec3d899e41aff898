// Http2Client: HTTP/2 (RFC 9113) written by hand on one TCP connection, for what gRPC's own client
// refuses to send. Calling thread only.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace quantd::test {

using Headers = std::vector<std::pair<std::string, std::string>>;

/// The headers of a gRPC call of `path`.
Headers CallHeaders(const std::string& path);

class Http2Client {
 public:
  struct Frame {
    uint8_t type = 0;
    uint8_t flags = 0;
    uint32_t stream = 0;
    std::string payload;
  };
  static constexpr uint8_t kData = 0, kHeaders = 1, kReset = 3, kSettings = 4, kPing = 6,
                           kGoAway = 7;
  static constexpr uint8_t kEndStream = 1, kAck = 1, kEndHeaders = 4;

  /// Connects; sends the preface and settings that forbid compressing headers by reference.
  explicit Http2Client(const std::string& address);
  ~Http2Client();
  Http2Client(const Http2Client&) = delete;
  Http2Client& operator=(const Http2Client&) = delete;

  /// False when the connection does not take it any more.
  bool Send(const Frame& frame);
  /// A gRPC call on `stream` (odd, rising): `headers`, then `message` and the end of the stream.
  bool SendCall(uint32_t stream, const Headers& headers, const std::string& message);
  /// The next frame; nothing once the connection is closed, or after `seconds`.
  std::optional<Frame> Read(double seconds = 10);
  /// Whether the server has closed the connection (after Read came back with nothing).
  bool closed() const { return closed_; }

  /// How the call on `stream` ended: its grpc-status; -1 when it was reset or the connection closed
  /// or was told to go away; -2 when nothing came for `seconds`.
  int EndOf(uint32_t stream, double seconds = 10);

 private:
  bool Fill(size_t bytes, double seconds);  // until input_ holds so many

  int fd_ = -1;
  bool closed_ = false;
  std::string input_;
};

/// A GOAWAY frame's error code (11 is ENHANCE_YOUR_CALM) and its debug text.
std::pair<uint32_t, std::string> GoAwayOf(const Http2Client::Frame& frame);

}  // namespace quantd::test
