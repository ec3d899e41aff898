// Spellings to texts; see token_text.h.
#include "engine/text/token_text.h"

#include <fmt/format.h>

#include "engine/text/replace.h"

namespace quantd {
namespace {

int HexDigit(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  if (c >= 'A' && c <= 'F') return c - 'A' + 10;
  return -1;
}

}  // namespace

std::optional<char> ByteOfToken(std::string_view spelling) {
  if (spelling.size() != 6 || !spelling.starts_with("<0x") || spelling[5] != '>') return {};
  const int high = HexDigit(spelling[3]), low = HexDigit(spelling[4]);
  if (high < 0 || low < 0) return std::nullopt;
  return static_cast<char>(high << 4 | low);
}

std::string TokenOfByte(uint8_t byte) { return fmt::format("<0x{:02X}>", byte); }

std::string EditToken(const TextDecoderSpec& decoder, std::string_view spelling, bool first) {
  std::string text(spelling);
  for (const TextDecoderSpec::Edit& edit : decoder.edits) {
    const bool drop = edit.kind == TextDecoderSpec::Edit::Kind::kMetaspace && first;
    text = Replaced(text, edit.pattern, drop ? std::string_view() : edit.content);
  }
  return text;
}

}  // namespace quantd
