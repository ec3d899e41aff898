#include "server/one_line.h"

#include <fmt/format.h>

#include <cstdint>

#include "engine/text/utf8.h"

namespace quantd {
namespace {

constexpr size_t kMostOfFront = 6000;  // some twenty faults, which a model folder can have at once
constexpr size_t kMostOfEnd = 500;
constexpr size_t kMostOfName = 64;

// Line and paragraph separators, and what makes a terminal write the rest from right to left.
bool MovesText(char32_t code_point) {
  return (code_point >= 0x2028 && code_point <= 0x202e) ||
         (code_point >= 0x2066 && code_point <= 0x2069) || code_point == 0x200e ||
         code_point == 0x200f;
}

}  // namespace

std::string Printable(std::string_view text) {
  std::string line;
  for (std::string_view rest = text; !rest.empty();) {
    const Utf8Unit unit = NextUtf8(rest);
    const char32_t c = unit.code_point;
    if (unit.kind != Utf8Unit::Kind::kValid) {
      line += "\uFFFD";
    } else if (c < 0x20 || (c >= 0x7f && c < 0xa0)) {  // 0x9b is to some terminals what ESC [ is
      line += fmt::format("\\x{:02x}", static_cast<uint32_t>(c));
    } else if (MovesText(c)) {
      line += fmt::format("\\u{:04x}", static_cast<uint32_t>(c));
    } else {
      line += rest.substr(0, unit.size);
    }
    rest.remove_prefix(unit.size);
  }
  return line;
}

std::string OneLine(std::string message) {
  if (message.size() > kMostOfFront + kMostOfEnd) {
    message.replace(kMostOfFront, message.size() - kMostOfFront - kMostOfEnd, " [...] ");
  }
  return Printable(message);
}

std::string Quoted(const std::string& text) {
  if (text.size() <= kMostOfName) return fmt::format("\"{}\"", text);
  // Whole characters: the message is a string of the protocol.
  const size_t end = ValidUtf8Prefix(std::string_view(text).substr(0, kMostOfName));
  return fmt::format("\"{}...\"", text.substr(0, end));
}

}  // namespace quantd
