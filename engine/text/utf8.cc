// UTF-8 units; see utf8.h.
#include "engine/text/utf8.h"

namespace quantd {
namespace {

constexpr std::string_view kReplacement = "\xEF\xBF\xBD";  // U+FFFD

}  // namespace

Utf8Unit NextUtf8(std::string_view text) {
  const auto byte = [&](size_t i) { return static_cast<uint8_t>(text[i]); };
  const uint8_t first = byte(0);
  if (first < 0x80) return {Utf8Unit::Kind::kValid, 1, first};
  // Bounds of the second byte exclude overlong forms, surrogates and what is above U+10FFFF.
  int size = 0;
  uint8_t low = 0x80, high = 0xBF;
  if (first >= 0xC2 && first <= 0xDF) {
    size = 2;
  } else if (first >= 0xE0 && first <= 0xEF) {
    size = 3;
    if (first == 0xE0) low = 0xA0;
    if (first == 0xED) high = 0x9F;
  } else if (first >= 0xF0 && first <= 0xF4) {
    size = 4;
    if (first == 0xF0) low = 0x90;
    if (first == 0xF4) high = 0x8F;
  } else {
    return {Utf8Unit::Kind::kInvalid, 1, 0};
  }
  char32_t code_point = first & (0xFF >> (size + 1));
  for (int i = 1; i < size; ++i) {
    if (static_cast<size_t>(i) == text.size()) {
      return {Utf8Unit::Kind::kIncomplete, static_cast<uint8_t>(i), 0};
    }
    const uint8_t next = byte(i);
    if (next < low || next > high) return {Utf8Unit::Kind::kInvalid, static_cast<uint8_t>(i), 0};
    code_point = code_point << 6 | (next & 0x3F);
    low = 0x80;
    high = 0xBF;
  }
  return {Utf8Unit::Kind::kValid, static_cast<uint8_t>(size), code_point};
}

size_t ValidUtf8Prefix(std::string_view text) {
  size_t at = 0;
  while (at < text.size()) {
    const Utf8Unit unit = NextUtf8(text.substr(at));
    if (unit.kind != Utf8Unit::Kind::kValid) break;
    at += unit.size;
  }
  return at;
}

size_t PreviousUtf8(std::string_view text, size_t end) {
  size_t at = end - 1;
  while (at > 0 && (static_cast<uint8_t>(text[at]) & 0xC0) == 0x80) --at;
  return at;
}

size_t AppendLossyUtf8(std::string_view bytes, bool last, std::string* out) {
  size_t at = 0;
  while (at < bytes.size()) {
    const size_t valid = ValidUtf8Prefix(bytes.substr(at));
    out->append(bytes.substr(at, valid));
    at += valid;
    if (at == bytes.size()) break;
    const Utf8Unit unit = NextUtf8(bytes.substr(at));
    if (unit.kind == Utf8Unit::Kind::kIncomplete && !last) break;
    out->append(kReplacement);
    at += unit.size;
  }
  return at;
}

}  // namespace quantd
