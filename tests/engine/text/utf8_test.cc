// UTF-8 units.
#include "engine/text/utf8.h"

#include <gtest/gtest.h>

namespace quantd {
namespace {

std::string Encoded(char32_t c) {
  const auto byte = [](unsigned value) { return static_cast<char>(value); };
  if (c < 0x80) return {byte(c)};
  if (c < 0x800) return {byte(0xC0 | c >> 6), byte(0x80 | (c & 0x3F))};
  if (c < 0x10000)
    return {byte(0xE0 | c >> 12), byte(0x80 | (c >> 6 & 0x3F)), byte(0x80 | (c & 0x3F))};
  return {byte(0xF0 | c >> 18), byte(0x80 | (c >> 12 & 0x3F)), byte(0x80 | (c >> 6 & 0x3F)),
          byte(0x80 | (c & 0x3F))};
}

TEST(Utf8, EveryCodePointButSurrogatesIsValid) {
  for (char32_t c = 0; c < 0x110000; ++c) {
    const std::string text = Encoded(c);
    const Utf8Unit unit = NextUtf8(text);
    if (c >= 0xD800 && c < 0xE000) {
      ASSERT_EQ(unit.kind, Utf8Unit::Kind::kInvalid);
      continue;
    }
    ASSERT_EQ(unit.kind, Utf8Unit::Kind::kValid) << static_cast<uint32_t>(c);
    ASSERT_EQ(unit.size, text.size());
    ASSERT_EQ(unit.code_point, c);
    ASSERT_EQ(PreviousUtf8("x" + text, 1 + text.size()), 1u);
    for (size_t size = 1; size < text.size(); ++size) {
      const Utf8Unit part = NextUtf8(text.substr(0, size));
      ASSERT_EQ(part.kind, Utf8Unit::Kind::kIncomplete);
      ASSERT_EQ(part.size, size);
    }
  }
  EXPECT_EQ(NextUtf8(Encoded(0x110000)).kind, Utf8Unit::Kind::kInvalid);
}

// Of all sequences of two bytes, those that Unicode's table 3-7 has are valid or incomplete.
TEST(Utf8, LeadBytes) {
  for (unsigned lead = 0x80; lead < 0x100; ++lead) {
    for (unsigned next = 0; next < 0x100; ++next) {
      const std::string text = {static_cast<char>(lead), static_cast<char>(next)};
      const bool continues = next >= 0x80 && next < 0xC0;
      Utf8Unit::Kind expected = Utf8Unit::Kind::kInvalid;
      if (lead >= 0xC2 && lead <= 0xDF && continues) expected = Utf8Unit::Kind::kValid;
      if (lead >= 0xE0 && lead <= 0xF4 && continues && (lead != 0xE0 || next >= 0xA0) &&
          (lead != 0xED || next < 0xA0) && (lead != 0xF0 || next >= 0x90) &&
          (lead != 0xF4 || next < 0x90)) {
        expected = Utf8Unit::Kind::kIncomplete;
      }
      ASSERT_EQ(NextUtf8(text).kind, expected) << lead << " " << next;
    }
  }
}

TEST(Utf8, LossyKeepsAnIncompleteEndUnlessLast) {
  std::string out;
  EXPECT_EQ(AppendLossyUtf8("a\xE2\x82", false, &out), 1u);
  EXPECT_EQ(out, "a");
  EXPECT_EQ(AppendLossyUtf8("\xE2\x82", true, &out), 2u);
  EXPECT_EQ(out, "a\uFFFD");
  EXPECT_EQ(ValidUtf8Prefix("aé\xFFz"), 3u);
}

}  // namespace
}  // namespace quantd
