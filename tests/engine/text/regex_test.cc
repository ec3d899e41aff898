// Patterns as Oniguruma reads them.
#include "engine/text/regex.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "engine/text/oniguruma.h"
#include "kernels/status.h"

namespace quantd {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

// The parts of `text`, matches in <>.
std::vector<std::string> Parts(const std::string& pattern, std::string_view text,
                               bool literal = false) {
  auto regex = Regex::Compile(pattern, literal);
  EXPECT_TRUE(regex.ok()) << Message(regex.status());
  std::vector<std::string> parts;
  if (!regex.ok()) return parts;
  Regex::Scratch scratch;
  const absl::Status status =
      regex->Split(text, &scratch, [&](std::string_view part, bool is_match) {
        parts.push_back(is_match ? fmt::format("<{}>", part) : std::string(part));
        return absl::OkStatus();
      });
  EXPECT_TRUE(status.ok()) << Message(status);
  return parts;
}

TEST(Regex, PartsCoverTheText) {
  EXPECT_THAT(Parts("b+", "abbc"), ElementsAre("a", "<bb>", "c"));
  EXPECT_THAT(Parts("b", ""), ElementsAre());
  EXPECT_THAT(Parts("x*", "aé"), ElementsAre("a", "é"));
  EXPECT_THAT(Parts("x*", "axx"), ElementsAre("a", "<xx>"));
  EXPECT_THAT(Parts(".", "a.b", true), ElementsAre("a", "<.>", "b"));
}

TEST(Regex, WhiteSpaceIsUnicodes) {
  for (const std::string space : {"\t", "\v", "\f", "\u0085", "\u00a0", "\u1680", "\u2003",
                                  "\u2028", "\u2029", "\u202f", "\u205f", "\u3000"}) {
    EXPECT_THAT(Parts("\\s", space), ElementsAre("<" + space + ">"));
    EXPECT_THAT(Parts("[x\\s]", space), ElementsAre("<" + space + ">"));
    EXPECT_THAT(Parts("\\S", space), ElementsAre(space));
    EXPECT_THAT(Parts("[^\\s]", space), ElementsAre(space));
    EXPECT_THAT(Parts("[\\S]", space), ElementsAre(space));
  }
  // PCRE2's own \s has U+180E; U+200B and U+FEFF are white space to nobody.
  for (const std::string other : {"\u180e", "\u200b", "\ufeff", "a", "😀"}) {
    EXPECT_THAT(Parts("\\s", other), ElementsAre(other));
    EXPECT_THAT(Parts("[\\S]", other), ElementsAre("<" + other + ">"));
  }
}

TEST(Regex, ReadsAsOniguruma) {
  const struct {
    std::string pattern, text;
    std::vector<std::string> parts;
  } cases[] = {
      {"\\w+", "aé_9٣-ⓐ\u0301\u203f", {"<aé_9٣>", "-", "<ⓐ\u0301\u203f>"}},
      {"\\W", "a-", {"a", "<->"}},
      {"[^\\w]", "a-", {"a", "<->"}},
      {"\\v", "\x0b\n", {"<\x0b>", "\n"}},
      {"\\p{Han}", "漢、", {"<漢>", "、"}},  // the script, not its extensions
      {"\\p{^Lu}\\P{Ll}", "aBc", {"<aB>", "c"}},
      {"^a$", "b\na\nb", {"b\n", "<a>", "\nb"}},  // ^ and $ at every line
      {".", "a\r\n", {"<a>", "<\r>", "\n"}},
      {"(?i:'s|'k)", "'S'ſ'\u212a", {"<'S>", "<'ſ>", "<'\u212a>"}},
      {"\\u0041\\x42\\x{43}", "ABC", {"<ABC>"}},
      {"[\\]\\[^-]+", "a]^[-", {"a", "<]^[->"}},
      {"[一-龥]+", "a漢字", {"a", "<漢字>"}},
      {"a{2,3}", "aaaaa", {"<aaa>", "<aa>"}},
      {"a++b", "aab", {"<aab>"}},
      {"(?<=a)b(?!c)", "abbabc", {"a", "<b>", "babc"}},
      {"(?i)ab|c", "C", {"<C>"}},
  };
  for (const auto& c : cases) {
    EXPECT_THAT(Parts(c.pattern, c.text), testing::ElementsAreArray(c.parts)) << c.pattern;
  }
}

TEST(Regex, RefusesWhatPcre2ReadsDifferently) {
  const struct {
    std::string pattern, named;
  } cases[] = {
      {"[a[b]]", "a set in a set"},
      {"[[:alpha:]]", "a POSIX class"},
      {"[a&&b]", "&& in a set"},
      {"a{2}+", "{}"},
      {"a{2}?", "{}"},
      {"a{,2}", "{"},
      {"a{", "{ without }"},
      {"\\h", "\\h"},
      {"\\R", "\\R"},
      {"\\b", "\\b"},
      {"(a)\\1", "\\1"},
      {"a(?i)b|c", "(?i)"},
      {"(?m:a)", "(?m:"},
      {"(*FAIL)", "(*"},
      {"\\x80", "\\x"},
      {"\\p{L", "\\p"},
      {"[a", "[ without ]"},
      {"[]a]", "an empty set"},
      {"a\\", "a backslash"},
      {"[\\W]", "\\W in a set"},
      {"\\K", "\\K"},
      {"(a", "parenthes"},
      {"\\p{Nonsense}", "Nonsense"},
      {"*a", "quantifier"},
      {"(?#x)", "(?#x"},
      {"\\u12", "\\u"},
      {"\\C", "\\C"},
  };
  for (const auto& c : cases) {
    const auto regex = Regex::Compile(c.pattern, false);
    ASSERT_FALSE(regex.ok()) << c.pattern;
    EXPECT_EQ(regex.status().code(), absl::StatusCode::kUnimplemented);
    EXPECT_THAT(Message(regex.status()), HasSubstr(fmt::format("pattern {:?}", c.pattern)));
    EXPECT_THAT(Message(regex.status()), HasSubstr(c.named));
  }
}

TEST(Regex, GivesUpOnExponentialPatterns) {
  auto regex = Regex::Compile("(a+)+$", false);
  ASSERT_TRUE(regex.ok());
  Regex::Scratch scratch;
  const absl::Status status = regex->Split(std::string(64, 'a') + "b", &scratch,
                                           [](std::string_view, bool) { return absl::OkStatus(); });
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(Message(status), HasSubstr("(a+)+$"));
}

TEST(Regex, ErrorsOfTheReceiverEndTheSplit) {
  auto regex = Regex::Compile("a", false);
  ASSERT_TRUE(regex.ok());
  Regex::Scratch scratch;
  int calls = 0;
  const absl::Status status = regex->Split("aaa", &scratch, [&](std::string_view, bool) {
    return ++calls == 2 ? Internal("enough") : absl::OkStatus();
  });
  EXPECT_EQ(Message(status), "enough");
  EXPECT_EQ(calls, 2);
}

}  // namespace
}  // namespace quantd
