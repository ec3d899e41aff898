// Normalization forms, and runs of marks that ICU alone would take minutes for.
#include "engine/text/normalizer.h"

#include <gtest/gtest.h>
#include <unicode/bytestream.h>
#include <unicode/normalizer2.h>
#include <unicode/unistr.h>

#include <algorithm>
#include <random>
#include <string>
#include <vector>

namespace quantd {
namespace {

std::string Icu(NormalizationForm form, const std::string& text) {
  UErrorCode error = U_ZERO_ERROR;
  const icu::Normalizer2* normalizer = nullptr;
  switch (form) {
    case NormalizationForm::kNfc: normalizer = icu::Normalizer2::getNFCInstance(error); break;
    case NormalizationForm::kNfd: normalizer = icu::Normalizer2::getNFDInstance(error); break;
    case NormalizationForm::kNfkc: normalizer = icu::Normalizer2::getNFKCInstance(error); break;
    case NormalizationForm::kNfkd: normalizer = icu::Normalizer2::getNFKDInstance(error); break;
  }
  std::string out;
  icu::StringByteSink<std::string> sink(&out);
  normalizer->normalizeUTF8(0, text, sink, nullptr, error);
  EXPECT_TRUE(U_SUCCESS(error));
  return out;
}

constexpr NormalizationForm kForms[] = {NormalizationForm::kNfc, NormalizationForm::kNfd,
                                        NormalizationForm::kNfkc, NormalizationForm::kNfkd};

TEST(Normalizer, Forms) {
  const std::string text = "e\u0301 \u212b ﬁ \uac01 \u1112\u1161\u11ab";
  EXPECT_EQ(Normalize({NormalizationForm::kNfc}, text).value(), "é Å ﬁ 각 한");
  EXPECT_EQ(Normalize({NormalizationForm::kNfkc}, text).value(), "é Å fi 각 한");
  EXPECT_EQ(Normalize({NormalizationForm::kNfd}, "é").value(), "e\u0301");
  EXPECT_EQ(Normalize({}, text).value(), text);
  EXPECT_EQ(Normalize({NormalizationForm::kNfkd, NormalizationForm::kNfc}, "ﬁé").value(), "fié");
  EXPECT_EQ(Normalize({NormalizationForm::kNfc}, std::string("a\0b", 3)).value(),
            std::string("a\0b", 3));
}

// Each code point of a text shares its bytes out among those it decomposes to. Of these a code
// point of the normal form is made, so what they were given at most, in all, is what its own bytes
// may stand for.
TEST(Normalizer, NoFormShrinksATextMoreThanItSays) {
  const struct {
    NormalizationForm composed, decomposed;
  } kinds[] = {{NormalizationForm::kNfc, NormalizationForm::kNfd},
               {NormalizationForm::kNfkc, NormalizationForm::kNfkd}};
  const auto bytes_of = [](char32_t c) {
    std::string bytes;
    icu::UnicodeString(static_cast<UChar32>(c)).toUTF8String(bytes);
    return bytes;
  };
  const auto is_surrogate = [](char32_t c) { return c >= 0xD800 && c < 0xE000; };
  for (const auto& kind : kinds) {
    std::vector<double> given(0x110000);
    double most = 0, most_decomposed = 0;
    for (const bool gather : {true, false}) {
      for (char32_t c = 0; c < given.size(); ++c) {
        if (is_surrogate(c)) continue;
        const std::string bytes = bytes_of(c);
        const std::string decomposed = Icu(kind.decomposed, bytes);
        const icu::UnicodeString parts = icu::UnicodeString::fromUTF8(decomposed);
        const double share = static_cast<double>(bytes.size()) / parts.countChar32();
        double sum = 0;
        for (int32_t i = 0; i < parts.length(); i = parts.moveIndex32(i, 1)) {
          double& part = given[static_cast<size_t>(parts.char32At(i))];
          if (gather) part = std::max(part, share);
          sum += part;
        }
        const auto size = static_cast<double>(bytes.size());
        most_decomposed = std::max(most_decomposed, size / static_cast<double>(decomposed.size()));
        const bool stays = !gather && Icu(kind.composed, bytes) == bytes;  // else in no result
        if (stays) most = std::max(most, sum / size);
      }
    }
    EXPECT_LE(most, kMostNormalizedBytes);
    EXPECT_GT(most, 3);
    EXPECT_LE(most_decomposed, kMostNormalizedBytes);
  }
  EXPECT_EQ(Normalize({NormalizationForm::kNfc}, "\u1fbe\u0308\u0301").value(), "\u0390");
}

TEST(Normalizer, LongRunsOfMarksAreNormalizedAsByIcu) {
  // With marks that decompose, starters that decompose to marks, and Hangul vowels, which are
  // starters.
  const std::string marks[] = {"\u0300", "\u0301", "\u0315",     "\u0323", "\u0344", "\u0345",
                               "\u0340", "\u0f73", "\u0f71",     "\u0f74", "\u093c", "\u1161",
                               "\uff9e", "\u3099", "\U0001d165", "\u05b0"};
  const std::string starters[] = {"a", "é", "漢", "\u1100", "\u0f40", "", "ｶ", "\u1e69", "\n"};
  std::mt19937 random(3);
  for (int round = 0; round < 300; ++round) {
    std::string text;
    for (unsigned part = 1 + random() % 4; part > 0; --part) {
      text += starters[random() % std::size(starters)];
      for (unsigned count = random() % 200; count > 0; --count)
        text += marks[random() % std::size(marks)];
    }
    for (const NormalizationForm form : kForms) {
      ASSERT_EQ(Normalize({form}, text).value(), Icu(form, text)) << round;
    }
  }
}

}  // namespace
}  // namespace quantd
