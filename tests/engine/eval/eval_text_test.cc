#include "engine/eval/eval_text.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "kernels/status.h"

namespace quantd {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

// A token a byte: 'a' is 97; 1 stands before a text where `with_bos`.
class BytesTokenizer : public Tokenizer {
 public:
  explicit BytesTokenizer(bool with_bos) : with_bos_(with_bos) {
    for (int i = 0; i < 256; ++i) bytes_.emplace_back(1, static_cast<char>(i));
  }
  absl::StatusOr<std::vector<int32_t>> Encode(std::string_view text, bool special) const override {
    std::vector<int32_t> ids;
    if (special && with_bos_) ids.push_back(1);
    for (const char c : text) {
      if (c == '\xff') return InvalidArgument("not UTF-8");
      ids.push_back(static_cast<unsigned char>(c));
    }
    return ids;
  }
  std::string_view TokenBytes(int32_t id) const override { return bytes_[static_cast<size_t>(id)]; }
  bool IsSpecial(int32_t id) const override { return id == 1; }
  std::optional<int32_t> TokenToId(std::string_view) const override { return {}; }
  int32_t vocab_size() const override { return 256; }
  std::optional<int32_t> bos_id() const override { return 1; }
  std::optional<int32_t> eos_id() const override { return {}; }

 private:
  const bool with_bos_;
  std::vector<std::string> bytes_;
};

EvalText Make(const std::vector<std::string>& documents, EvalTextOptions options,
              bool with_bos = false) {
  auto text = MakeEvalText(BytesTokenizer(with_bos), documents, options);
  EXPECT_TRUE(text.ok()) << text.status();
  return text.ok() ? *text : EvalText();
}

std::string Text(const EvalText& text, size_t window) {
  const std::vector<int32_t> ids = text.Ids(text.windows[window]);
  return {ids.begin(), ids.end()};
}

TEST(EvalText, WindowsFollowEachOtherAndScoreAllButTheFirstToken) {
  const EvalText text = Make({"abcdefghij"}, {.context = 4});
  ASSERT_EQ(text.windows.size(), 3u);
  EXPECT_EQ(Text(text, 0), "abcd");
  EXPECT_EQ(Text(text, 2), "ij");
  // The first of each window has nothing before it.
  EXPECT_EQ(text.tokens, 3 + 3 + 1);
  EXPECT_EQ(text.bytes, text.tokens);
}

TEST(EvalText, WithAStrideEveryTokenIsScoredOnceAndWithContext) {
  const EvalText text = Make({"abcdefghij"}, {.context = 4, .stride = 2});
  std::string scored;
  for (size_t i = 0; i < text.windows.size(); ++i) {
    EXPECT_LE(text.windows[i].length, 4);
    scored += Text(text, i).substr(static_cast<size_t>(text.windows[i].first_scored));
  }
  EXPECT_EQ(scored, "bcdefghij");
  EXPECT_EQ(text.tokens, 9);
  EXPECT_EQ(text.windows[1].first_scored, 2);  // "cdef": c and d were scored before
}

TEST(EvalText, ASmallStrideHoldsEveryTokenOnce) {
  const std::string letters(5000, 'a');
  const EvalText text = Make({letters, "bcd"}, {.context = 2048, .stride = 1}, /*with_bos=*/true);
  EXPECT_EQ(text.windows.size(), letters.size() - 2047 + 1 + 1);
  EXPECT_EQ(text.ids.size(), letters.size() + 3);
  EXPECT_EQ(text.tokens, 5003);
  EXPECT_EQ(Text(text, text.windows.size() - 1), "\001bcd");
}

TEST(EvalText, WhatBeginsATextBeginsEveryWindow) {
  const EvalText text = Make({"abcde"}, {.context = 4}, /*with_bos=*/true);
  ASSERT_EQ(text.windows.size(), 2u);
  EXPECT_THAT(text.Ids(text.windows[0]), ElementsAre(1, 'a', 'b', 'c'));
  EXPECT_THAT(text.Ids(text.windows[1]), ElementsAre(1, 'd', 'e'));
  EXPECT_EQ(text.tokens, 5) << "with a BOS before it the first token is predicted, too";
}

TEST(EvalText, DocumentsDoNotShareWindows) {
  const EvalText text = Make({"abc", "x", "defg"}, {.context = 8});
  ASSERT_EQ(text.windows.size(), 2u) << "one token alone predicts nothing";
  EXPECT_EQ(Text(text, 1), "defg");
  EXPECT_EQ(text.documents, 2);
}

TEST(EvalText, LimitTakesWholeWindowsFromTheBeginning) {
  EXPECT_EQ(Make({"abcdefghij"}, {.context = 4, .max_tokens = 6}).tokens, 6);
  EXPECT_EQ(Make({"abcdefghij"}, {.context = 4, .max_tokens = 5}).tokens, 3);
  EXPECT_EQ(Make({"abcdefghij"}, {.context = 4, .max_tokens = 1}).tokens, 3) << "one at least";
}

TEST(EvalText, BytesAreOfTheTextAndNotOfWhatTheTokenizerPutsBeforeIt) {
  class WithDummySpace : public BytesTokenizer {
   public:
    WithDummySpace() : BytesTokenizer(true) {}
    std::string_view TokenBytes(int32_t) const override { return " a"; }
    std::string FirstTokenBytes(int32_t) const override { return "a"; }
  };
  const auto text = MakeEvalText(WithDummySpace(), {"abcd", "ef"}, {.context = 4});
  ASSERT_TRUE(text.ok()) << text.status();
  EXPECT_EQ(text->tokens, 6);
  EXPECT_EQ(text->bytes, 1 + 2 + 2 + 2 + 1 + 2);
  EXPECT_EQ(text->stride, 3) << "a BOS takes a place in every window";
}

TEST(EvalText, HashNamesTokensAndCut) {
  const std::string hash = Make({"abcdefghij"}, {.context = 4}).hash;
  EXPECT_EQ(Make({"abcdefghij"}, {.context = 4}).hash, hash);
  EXPECT_NE(Make({"abcdefghik"}, {.context = 4}).hash, hash);
  EXPECT_NE(Make({"abcdefghij"}, {.context = 5}).hash, hash);
  EXPECT_NE(Make({"abcdefghij"}, {.context = 4, .stride = 2}).hash, hash);
}

TEST(EvalText, FaultsAreNamed) {
  const BytesTokenizer tokenizer(true);
  const auto fault = [&](const std::vector<std::string>& documents, EvalTextOptions options) {
    return Message(MakeEvalText(tokenizer, documents, options).status());
  };
  EXPECT_THAT(fault({"abc"}, {.context = 2}), HasSubstr("context is 2, allowed: 3 or more"));
  EXPECT_THAT(fault({"abc"}, {.context = 8, .stride = 9}), HasSubstr("stride is 9"));
  EXPECT_THAT(fault({"abc"}, {.context = 8, .stride = -1}), HasSubstr("stride is -1"));
  EXPECT_THAT(fault({""}, {}), HasSubstr("no token to score"));
  EXPECT_THAT(fault({"a", "\xff"}, {}), HasSubstr("document 2"));
}

TEST(SplitDocuments, ATextIsOneAndJsonlOneALine) {
  auto text = SplitDocuments("a\nb\n", "a.txt");
  ASSERT_TRUE(text.ok());
  EXPECT_THAT(*text, ElementsAre("a\nb\n"));
  auto lines = SplitDocuments("{\"text\": \"a\\nb\", \"id\": 1}\r\n\n{\"text\": \"c\"}", "a.jsonl");
  ASSERT_TRUE(lines.ok()) << lines.status();
  EXPECT_THAT(*lines, ElementsAre("a\nb", "c"));
  for (const char* bad : {"{\"text\": \"a\"}\nnot json", "{\"text\": \"a\"}\n{\"text\": 1}",
                          "{\"text\": \"a\"}\n[\"text\"]"}) {
    EXPECT_THAT(Message(SplitDocuments(bad, "a.jsonl").status()), HasSubstr("a.jsonl: line 2"));
  }
}

}  // namespace
}  // namespace quantd
