// MinTokens: never more than a text comes to, whatever the text and the tokenizer; and where it has
// to be silent.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <random>

#include "tests/engine/text/tiny_tokenizer.h"

namespace quantd::test {
namespace {

using Json = nlohmann::json;

int64_t Count(const Tokenizer& tokenizer, const std::string& text) {
  return static_cast<int64_t>(Ids(tokenizer, text).size());
}

Json TinySpec() { return Json::parse(TinyTokenizerText()); }

Json AddedToken(const std::string& content) {
  return {{"id", 300},           {"content", content}, {"special", true}, {"single_word", false},
          {"normalized", false}, {"lstrip", false},    {"rstrip", false}};
}

const char* const kFolders[] = {QUANTD_TEST_DATA "/tokenizers/llama3_bytelevel",
                                QUANTD_TEST_DATA "/tokenizers/qwen2_nfc",
                                QUANTD_TEST_DATA "/tokenizers/llama2_bytefallback",
                                QUANTD_TEST_DATA "/sentencepiece/dummy_prefix",
                                QUANTD_TEST_DATA "/sentencepiece/user_defined",
                                QUANTD_SOURCE_DIR "/demo/model"};

TEST(MinTokens, IsNeverMoreThanATextComesTo) {
  // What tokenizers make least of: runs, long words, added tokens, what normal forms shorten.
  std::vector<std::string> parts = {"a",      " ",      "\n",     "    ",   "\t\t", "\u0301",
                                    "\u1fbe", "\u0308", "\u212a", "\u2581", "漢",   "😀",
                                    "\u1100", "\u1161", "\u11a8", "<s>",    "</s>", "<|endoftext|>",
                                    "the",    " river"};
  std::mt19937 random(5);
  int bounds = 0;
  for (const char* folder : kFolders) {
    SCOPED_TRACE(folder);
    const auto tokenizer = MustLoadFolder(folder);
    // The longest token, again and again, comes closest.
    std::string longest;
    for (int32_t id = 0; id < tokenizer->vocab_size(); ++id) {
      const std::string bytes(tokenizer->TokenBytes(id));
      if (bytes.size() > longest.size() && tokenizer->Encode(bytes, false).ok()) longest = bytes;
    }
    parts.push_back(longest);
    bounds += tokenizer->MinTokens(std::string(1 << 20, 'a')) > 0;
    for (int round = 0; round < 1500; ++round) {
      std::string text;
      const unsigned kinds = 1 + random() % 4;
      std::vector<size_t> chosen(kinds);
      for (size_t& part : chosen) part = random() % parts.size();
      for (unsigned n = random() % 40; n > 0; --n) text += parts[chosen[random() % kinds]];
      ASSERT_LE(tokenizer->MinTokens(text), Count(*tokenizer, text)) << text;
      for (unsigned n = random() % 40; n > 0; --n) text += static_cast<char>(random() % 128);
      ASSERT_LE(tokenizer->MinTokens(text), Count(*tokenizer, text)) << text;
    }
    parts.pop_back();
  }
  EXPECT_GE(bounds, 4) << "of the demo model and of three kinds of tokenizers";
}

TEST(MinTokens, IsTheSizeByTheLongestToken) {
  const auto tiny = MustLoad(TinySpec());
  EXPECT_EQ(tiny->MinTokens(""), 0);
  EXPECT_EQ(tiny->MinTokens("abcabc"), 2);
  EXPECT_EQ(tiny->MinTokens("abcabca"), 3);
  Json added = TinySpec();
  added["added_tokens"].push_back(AddedToken("<|longer|>"));
  EXPECT_EQ(MustLoad(added)->MinTokens(std::string(30, 'x')), 3);
  Json nfc = TinySpec();
  nfc["normalizer"] = {{"type", "NFC"}};
  EXPECT_EQ(MustLoad(nfc)->MinTokens(std::string(36, 'x')), 3);
  Json grows = TinySpec();
  grows["normalizer"] = {{"type", "Replace"}, {"pattern", {{"String", " "}}}, {"content", "__"}};
  EXPECT_EQ(MustLoad(grows)->MinTokens("abcabc"), 2);
}

TEST(MinTokens, IsNothingWhereTextMayComeToNothing) {
  const std::string text(1000, 'x');
  const auto with = [](const char* key, const Json& value) {
    Json json = TinySpec();
    json[key] = value;
    return MustLoad(json);
  };
  for (const char* side : {"lstrip", "rstrip"}) {
    Json token = AddedToken("<s>");
    token[side] = true;
    EXPECT_EQ(with("added_tokens", Json::array({token}))->MinTokens(text), 0) << side;
  }
  const Json shorter = {{"type", "Replace"}, {"pattern", {{"String", "xx"}}}, {"content", "x"}};
  EXPECT_EQ(with("normalizer", shorter)->MinTokens(text), 0);
  const Json pattern = {{"type", "Replace"}, {"pattern", {{"Regex", "x+"}}}, {"content", "xxxx"}};
  EXPECT_EQ(with("normalizer", pattern)->MinTokens(text), 0);
  Json split = {{"type", "Split"}, {"pattern", {{"String", "x"}}}, {"behavior", "Removed"}};
  Json parts = Json::array({split, TinySpec()["pre_tokenizer"]});
  const auto removes = with("pre_tokenizer", {{"type", "Sequence"}, {"pretokenizers", parts}});
  EXPECT_EQ(removes->MinTokens(text), 0);
  EXPECT_EQ(Count(*removes, text), 0);
  Json lacks = TinySpec();
  lacks["model"]["vocab"].erase("x");
  EXPECT_EQ(MustLoad(lacks)->MinTokens(text), 0);
  EXPECT_EQ(Count(*MustLoad(lacks), text), 0);
}

}  // namespace
}  // namespace quantd::test
