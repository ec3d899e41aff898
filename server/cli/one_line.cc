#include "server/cli/one_line.h"

#include <fmt/format.h>

#include "engine/text/utf8.h"

namespace quantd {
namespace {

constexpr size_t kMostOfFront = 6000;  // some twenty faults, which a model folder can have at once
constexpr size_t kMostOfEnd = 500;

}  // namespace

std::string OneLine(std::string message) {
  if (message.size() > kMostOfFront + kMostOfEnd) {
    message.replace(kMostOfFront, message.size() - kMostOfFront - kMostOfEnd, " [...] ");
  }
  std::string valid;
  AppendLossyUtf8(message, /*last=*/true, &valid);
  std::string line;
  for (const char c : valid) {
    const auto byte = static_cast<unsigned char>(c);
    byte < 0x20 || byte == 0x7f ? line += fmt::format("\\x{:02x}", byte) : line += c;
  }
  return line;
}

}  // namespace quantd
