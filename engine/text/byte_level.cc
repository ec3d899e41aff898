// The byte-level alphabet; see byte_level.h. Source: GPT-2's encoder.py, bytes_to_unicode:
// printable Latin-1 stands for itself, the 68 other bytes for U+0100 on, in order.
#include "engine/text/byte_level.h"

#include <array>
#include <cstdint>

#include "engine/text/utf8.h"

namespace quantd {
namespace {

constexpr int kAlphabetEnd = 0x100 + 68;  // one more than the largest code point used

constexpr bool StandsForItself(int byte) {
  return (byte >= 0x21 && byte <= 0x7E) || (byte >= 0xA1 && byte <= 0xAC) || byte >= 0xAE;
}

// Code point to byte; -1 where no byte has it.
constexpr std::array<int16_t, kAlphabetEnd> MakeTable() {
  std::array<int16_t, kAlphabetEnd> table{};
  for (int16_t& entry : table) entry = -1;
  int next = 0x100;
  for (int byte = 0; byte < 256; ++byte) {
    table[StandsForItself(byte) ? byte : next++] = static_cast<int16_t>(byte);
  }
  return table;
}
constexpr std::array<int16_t, kAlphabetEnd> kByteOf = MakeTable();

}  // namespace

bool FromByteLevel(std::string_view token, std::string* bytes) {
  bytes->clear();
  for (size_t at = 0; at < token.size();) {
    const Utf8Unit unit = NextUtf8(token.substr(at));
    if (unit.kind != Utf8Unit::Kind::kValid || unit.code_point >= kAlphabetEnd) return false;
    const int16_t byte = kByteOf[unit.code_point];
    if (byte < 0) return false;
    bytes->push_back(static_cast<char>(byte));
    at += unit.size;
  }
  return true;
}

}  // namespace quantd
