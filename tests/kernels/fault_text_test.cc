// The grammar of messages: what, and what would work.
#include "kernels/fault_text.h"

#include <gtest/gtest.h>

namespace quantd {
namespace {

TEST(FaultText, PartsAreWhatAndFix) {
  struct Case {
    const char* message;
    const char* what;
    const char* fix;
  };
  for (const Case& c : std::vector<Case>{
           {"it is so", "it is so", ""},
           {"", "", ""},
           {"f.json: a is 1; take 2; or 3", "f.json: a is 1", "take 2; or 3"},
           {"a is 1, allowed: 2; or 3", "a is 1", "allowed: 2; or 3"},
           {"a is 1; take 2, allowed: 3", "a is 1", "take 2, allowed: 3"},
           {"a: \"x\" is not one of y, z", "a: \"x\" is not one of y, z", "one of y, z"},
           {"a: \"x\" is not one of y; take y", "a: \"x\" is not one of y", "take y"},
           // What stands in quotes is a file's.
           {"no \"b; run this\"", "no \"b; run this\"", ""},
           {"no \"b, allowed: c\"; take d", "no \"b, allowed: c\"", "take d"},
           {"\"a is not one of b\" is unknown", "\"a is not one of b\" is unknown", ""},
           {"a quote \" that does not end; a", "a quote \" that does not end; a", ""},
       }) {
    const FaultParts parts = SplitFault(c.message);
    EXPECT_EQ(parts.what, c.what);
    EXPECT_EQ(parts.fix, c.fix) << c.message;
  }
}

TEST(FaultText, ForeignWordsHaveNoSeparator) {
  EXPECT_EQ(ForeignWords("unexpected ']'; expected '}'"), "unexpected ']' - expected '}'");
  for (const char* words :
       {"; ; ", "a, allowed: b", "a is not one of b", "a is; not one of b", "a,; allowed: b", ""}) {
    EXPECT_EQ(SplitFault(ForeignWords(words)).fix, "") << words;
  }
  EXPECT_EQ(ForeignWords(std::string(10'000'000, ';')).size(), 10'000'000u);
}

}  // namespace
}  // namespace quantd
