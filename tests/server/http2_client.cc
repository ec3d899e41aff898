// Frames and HPACK (RFC 7541) in the plainest form: literals that are neither indexed nor Huffman
// coded. Of the server's headers only grpc-status is looked for: with a dynamic table of size 0 it
// comes as a literal, too.
#include "tests/server/http2_client.h"

#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <chrono>
#include <cstdlib>

#include "tests/server/http_get.h"

namespace quantd::test {
namespace {

constexpr size_t kFrameHeader = 9;

void AppendBigEndian(uint32_t value, int bytes, std::string* out) {
  for (int i = bytes - 1; i >= 0; --i) out->push_back(static_cast<char>(value >> (8 * i)));
}

uint32_t BigEndian(const std::string& bytes, size_t begin, size_t count) {
  uint32_t value = 0;
  for (size_t i = begin; i < begin + count; ++i)
    value = value << 8 | static_cast<uint8_t>(bytes[i]);
  return value;
}

// A string literal: a length in a prefix of 7 bits, then the bytes.
void AppendString(const std::string& text, std::string* out) {
  size_t rest = text.size();
  if (rest < 127) {
    out->push_back(static_cast<char>(rest));
  } else {
    out->push_back(127);
    for (rest -= 127; rest >= 128; rest /= 128) out->push_back(static_cast<char>(rest % 128 + 128));
    out->push_back(static_cast<char>(rest));
  }
  *out += text;
}

std::string HeaderBlock(const Headers& headers) {
  std::string block;
  for (const auto& [name, value] : headers) {
    block.push_back(0);  // literal without indexing, new name
    AppendString(name, &block);
    AppendString(value, &block);
  }
  return block;
}

}  // namespace

Headers CallHeaders(const std::string& path) {
  return {{":method", "POST"},         {":scheme", "http"}, {":path", path},
          {":authority", "localhost"}, {"te", "trailers"},  {"content-type", "application/grpc"},
          {"user-agent", "hand"}};
}

Http2Client::Http2Client(const std::string& address) : fd_(ConnectTcp(address)) {
  const std::string preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
  closed_ = fd_ < 0 || send(fd_, preface.data(), preface.size(), MSG_NOSIGNAL) < 0;
  std::string no_table;
  AppendBigEndian(1, 2, &no_table);  // SETTINGS_HEADER_TABLE_SIZE
  AppendBigEndian(0, 4, &no_table);
  Send({kSettings, 0, 0, no_table});
}

Http2Client::~Http2Client() {
  if (fd_ >= 0) close(fd_);
}

bool Http2Client::Send(const Frame& frame) {
  std::string bytes;
  AppendBigEndian(static_cast<uint32_t>(frame.payload.size()), 3, &bytes);
  bytes.push_back(static_cast<char>(frame.type));
  bytes.push_back(static_cast<char>(frame.flags));
  AppendBigEndian(frame.stream, 4, &bytes);
  bytes += frame.payload;
  return send(fd_, bytes.data(), bytes.size(), MSG_NOSIGNAL) == static_cast<ssize_t>(bytes.size());
}

bool Http2Client::SendCall(uint32_t stream, const Headers& headers, const std::string& message) {
  std::string body(1, '\0');  // not compressed
  AppendBigEndian(static_cast<uint32_t>(message.size()), 4, &body);
  return Send({kHeaders, kEndHeaders, stream, HeaderBlock(headers)}) &&
         Send({kData, kEndStream, stream, body + message});
}

bool Http2Client::Fill(size_t bytes, double seconds) {
  const auto end = std::chrono::steady_clock::now() + std::chrono::duration<double>(seconds);
  while (input_.size() < bytes && !closed_) {
    const std::chrono::duration<double> left = end - std::chrono::steady_clock::now();
    pollfd waiting = {fd_, POLLIN, 0};
    if (left.count() <= 0 || poll(&waiting, 1, static_cast<int>(left.count() * 1000) + 1) == 0) {
      return false;
    }
    char buffer[4096];
    const ssize_t n = recv(fd_, buffer, sizeof(buffer), 0);
    closed_ = n <= 0;
    if (n > 0) input_.append(buffer, static_cast<size_t>(n));
  }
  return input_.size() >= bytes;
}

std::optional<Http2Client::Frame> Http2Client::Read(double seconds) {
  if (!Fill(kFrameHeader, seconds)) return std::nullopt;
  const size_t size = BigEndian(input_, 0, 3);
  if (!Fill(kFrameHeader + size, seconds)) return std::nullopt;
  Frame frame;
  frame.type = static_cast<uint8_t>(input_[3]);
  frame.flags = static_cast<uint8_t>(input_[4]);
  frame.stream = BigEndian(input_, 5, 4) & 0x7fffffff;
  frame.payload = input_.substr(kFrameHeader, size);
  input_.erase(0, kFrameHeader + size);
  const bool asks = (frame.flags & kAck) == 0;
  if (frame.type == kSettings && asks) Send({kSettings, kAck, 0, ""});
  if (frame.type == kPing && asks) Send({kPing, kAck, 0, frame.payload});
  return frame;
}

int Http2Client::EndOf(uint32_t stream, double seconds) {
  while (const std::optional<Frame> frame = Read(seconds)) {
    if (frame->type == kGoAway) return -1;
    if (frame->stream != stream) continue;
    if (frame->type == kReset) return -1;
    const std::string name = "grpc-status";
    const size_t at = frame->payload.find(name);
    if (frame->type != kHeaders || at == std::string::npos) continue;
    const size_t value = at + name.size();
    return std::atoi(
        frame->payload.substr(value + 1, static_cast<uint8_t>(frame->payload[value])).c_str());
  }
  return closed_ ? -1 : -2;
}

std::pair<uint32_t, std::string> GoAwayOf(const Http2Client::Frame& frame) {
  if (frame.type != Http2Client::kGoAway || frame.payload.size() < 8) return {0, ""};
  return {BigEndian(frame.payload, 4, 4), frame.payload.substr(8)};
}

}  // namespace quantd::test
