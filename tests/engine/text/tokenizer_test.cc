// What each stage does to ids, on a small tokenizer.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "kernels/status.h"
#include "tests/engine/text/tiny_tokenizer.h"

namespace quantd::test {
namespace {

using Json = nlohmann::json;

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

Json Added(int id, const std::string& content, const std::vector<std::string>& flags) {
  Json token = {{"id", id},        {"content", content},  {"single_word", false}, {"lstrip", false},
                {"rstrip", false}, {"normalized", false}, {"special", false}};
  for (const std::string& flag : flags) token[flag] = true;
  return token;
}

Json Split(const std::string& kind, const std::string& pattern, const std::string& behavior,
           bool invert = false) {
  return {{"type", "Sequence"},
          {"pretokenizers",
           {{{"type", "Split"},
             {"pattern", {{kind, pattern}}},
             {"behavior", behavior},
             {"invert", invert}},
            {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"use_regex", false}}}}};
}

TEST(Tokenizer, MergesByRankThenFromTheLeft) {
  const auto tokenizer = MustLoad(Json::parse(TinyTokenizerText()));
  EXPECT_THAT(Ids(*tokenizer, "abc"), ElementsAre(257));
  EXPECT_THAT(Ids(*tokenizer, "aab"), ElementsAre('a', 256));
  EXPECT_THAT(Ids(*tokenizer, "ababc"), ElementsAre(256, 257));
  // "a b" comes before " a", so the space stays alone.
  EXPECT_THAT(Ids(*tokenizer, " ab"), ElementsAre(' ', 256));
  EXPECT_THAT(Ids(*tokenizer, " ac"), ElementsAre(258, 'c'));
  EXPECT_THAT(Ids(*tokenizer, ""), IsEmpty());
}

TEST(Tokenizer, EqualRanksMergeLeftmostFirst) {
  Json json = Json::parse(TinyTokenizerText());
  json["model"]["vocab"]["aa"] = 259;
  json["model"]["merges"] = {"a a"};
  EXPECT_THAT(Ids(*MustLoad(json), "aaaaa"), ElementsAre(259, 259, 'a'));
}

TEST(Tokenizer, IgnoreMergesTakesAPieceThatIsAToken) {
  Json json = Json::parse(TinyTokenizerText());
  json["model"]["vocab"]["xyz"] = 259;
  EXPECT_THAT(Ids(*MustLoad(json), "xyz"), ElementsAre('x', 'y', 'z'));
  json["model"]["ignore_merges"] = true;
  EXPECT_THAT(Ids(*MustLoad(json), "xyz"), ElementsAre(259));
  EXPECT_THAT(Ids(*MustLoad(json), "xyzz"), ElementsAre('x', 'y', 'z', 'z'));
}

TEST(Tokenizer, NulBytesAreText) {
  const auto tokenizer = MustLoad(Json::parse(TinyTokenizerText()));
  const std::string text("a\0\0b", 4);
  EXPECT_THAT(Ids(*tokenizer, text), ElementsAre('a', 0, 0, 'b'));
  EXPECT_EQ(tokenizer->Decode(Ids(*tokenizer, text), false), text);
}

TEST(Tokenizer, RefusesInvalidUtf8AtItsOffset) {
  const auto tokenizer = MustLoad(Json::parse(TinyTokenizerText()));
  const struct {
    std::string text;
    int offset;
  } cases[] = {{"\xFF", 0},
               {"ab\xC3", 2},
               {"\xC3\xA9\x80", 2},
               {"\xE2\x82", 0},
               {"x\xED\xA0\x80", 1},
               {"\xC0\x80", 0},
               {"\xF4\x90\x80\x80", 0},
               {"\xF0\x9F\x98\x80\xF0\x9F\x98", 4}};
  for (const auto& c : cases) {
    const auto ids = tokenizer->Encode(c.text, false);
    EXPECT_EQ(ids.status().code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(Message(ids.status()), HasSubstr(fmt::format("at byte {}", c.offset)));
  }
}

TEST(Tokenizer, DecodeReplacesMaximalSubparts) {
  const auto tokenizer = MustLoad(Json::parse(TinyTokenizerText()));
  const struct {
    std::vector<int32_t> bytes;
    std::string text;
  } cases[] = {
      {{0xE2, 0x82, 0xAC}, "€"},
      {{0xE2, 0x82}, "\uFFFD"},
      {{0xE2, 0x82, 'x'}, "\uFFFDx"},
      {{0x82, 0x82}, "\uFFFD\uFFFD"},
      {{0xF0, 0x9F, 0x98, 0x80}, "😀"},
      {{0xF0, 0x9F, 0xE2, 0x82, 0xAC}, "\uFFFD€"},
      {{0xED, 0xA0, 0x80}, "\uFFFD\uFFFD\uFFFD"},
      {{0xC0, 0x80}, "\uFFFD\uFFFD"},
      {{0xF5, 'a'}, "\uFFFDa"},
  };
  for (const auto& c : cases) EXPECT_EQ(tokenizer->Decode(c.bytes, false), c.text);
}

TEST(Tokenizer, UnknownIdsHaveNoBytes) {
  const auto tokenizer = MustLoad(Json::parse(TinyTokenizerText()));
  EXPECT_EQ(tokenizer->vocab_size(), 259);
  for (const int32_t id : {-1, 259, 1 << 30}) {
    EXPECT_EQ(tokenizer->TokenBytes(id), "");
    EXPECT_FALSE(tokenizer->IsSpecial(id));
  }
  EXPECT_EQ(tokenizer->Decode(std::vector<int32_t>{'a', 259, -5, 'b'}, false), "ab");
}

TEST(Tokenizer, FindsTokensBySpelling) {
  Json json = Json::parse(TinyTokenizerText());
  json["added_tokens"] = {Added(300, "<|end|>", {"special"})};
  const auto tokenizer =
      MustLoad(json, R"({"eos_token": {"content": "<|end|>"}, "bos_token": null})");
  EXPECT_EQ(tokenizer->TokenToId("Ġa"), 258);
  EXPECT_EQ(tokenizer->TokenToId(" a"), std::nullopt);
  EXPECT_EQ(tokenizer->TokenToId("<|end|>"), 300);
  EXPECT_EQ(tokenizer->TokenBytes(258), " a");
  EXPECT_EQ(tokenizer->TokenBytes(300), "<|end|>");
  EXPECT_EQ(tokenizer->TokenBytes(280), "");
  EXPECT_EQ(tokenizer->vocab_size(), 301);
  EXPECT_EQ(tokenizer->eos_id(), 300);
  EXPECT_EQ(tokenizer->bos_id(), std::nullopt);
}

TEST(Tokenizer, AddedTokensKeepTheirContent) {
  Json json = Json::parse(TinyTokenizerText());
  // Letters of the byte-level alphabet, but not a token of the model: text, not bytes.
  json["added_tokens"] = {Added(300, "üü", {})};
  const auto tokenizer = MustLoad(json);
  EXPECT_EQ(tokenizer->TokenBytes(300), "üü");
  EXPECT_EQ(tokenizer->Decode(Ids(*tokenizer, "xüü"), false), "xüü");
}

TEST(Tokenizer, AddedTokenOfTheVocabularyKeepsItsId) {
  Json json = Json::parse(TinyTokenizerText());
  json["added_tokens"] = {Added(256, "ab", {"special"})};
  const auto tokenizer = MustLoad(json);
  EXPECT_THAT(Ids(*tokenizer, "abc"), ElementsAre(256, 'c'));
  EXPECT_EQ(tokenizer->Decode(Ids(*tokenizer, "abc"), true), "c");
}

TEST(Tokenizer, AddedTokenFlags) {
  const struct {
    std::vector<std::string> flags;
    std::string text;
    std::vector<int32_t> ids;
  } cases[] = {
      {{}, "x  [T]  y", {'x', ' ', ' ', 300, ' ', ' ', 'y'}},
      {{"lstrip"}, "x  [T]  y", {'x', 300, ' ', ' ', 'y'}},
      {{"rstrip"}, "x  [T]  y", {'x', ' ', ' ', 300, 'y'}},
      {{"lstrip", "rstrip"}, "x \u3000\n[T]\t y", {'x', 300, 'y'}},
      {{"lstrip", "rstrip"}, "[T] [T]", {300, 300}},
      {{"single_word"}, "x[T]", {'x', '[', 'T', ']'}},
      {{"single_word"}, "é[T]", {0xC3, 0xA9, '[', 'T', ']'}},
      {{"single_word"}, "[T]_", {'[', 'T', ']', '_'}},
      {{"single_word"}, ".[T] x", {'.', 300, ' ', 'x'}},
      {{"single_word"}, "[T]", {300}},
  };
  for (const auto& c : cases) {
    Json json = Json::parse(TinyTokenizerText());
    json["added_tokens"] = {Added(300, "[T]", c.flags)};
    json["model"]["merges"] = Json::array();
    EXPECT_EQ(Ids(*MustLoad(json), c.text), c.ids) << c.text << " " << Json(c.flags);
  }
}

TEST(Tokenizer, LongestAddedTokenWinsFromTheLeft) {
  Json json = Json::parse(TinyTokenizerText());
  json["added_tokens"] = {Added(300, "<a", {}), Added(301, "<a>", {}), Added(302, ">b", {}),
                          Added(303, "<a><a><", {})};
  const auto tokenizer = MustLoad(json);
  EXPECT_THAT(Ids(*tokenizer, "<a>b"), ElementsAre(301, 'b'));
  EXPECT_THAT(Ids(*tokenizer, "<ab"), ElementsAre(300, 'b'));
  EXPECT_THAT(Ids(*tokenizer, "<a><a>b"), ElementsAre(301, 301, 'b'));
  EXPECT_THAT(Ids(*tokenizer, "<a><a><b"), ElementsAre(303, 'b'));
}

TEST(Tokenizer, NormalizedAddedTokensAreFoundAfterNormalization) {
  const std::string decomposed = "e\u0301", composed = "\u00e9";
  Json json = Json::parse(TinyTokenizerText());
  json["normalizer"] = {{"type", "Sequence"}, {"normalizers", {{{"type", "NFC"}}}}};
  json["added_tokens"] = {Added(300, decomposed + "!", {"normalized"}),
                          Added(301, decomposed + "?", {})};
  const auto tokenizer = MustLoad(json);
  EXPECT_THAT(Ids(*tokenizer, composed + "!"), ElementsAre(300));
  EXPECT_THAT(Ids(*tokenizer, decomposed + "!"), ElementsAre(300));
  EXPECT_THAT(Ids(*tokenizer, composed + "?"), ElementsAre(0xC3, 0xA9, '?'));
  EXPECT_THAT(Ids(*tokenizer, decomposed + "?"), ElementsAre(301));
}

TEST(Tokenizer, TemplatesWrapTheText) {
  Json json = Json::parse(TinyTokenizerText());
  json["added_tokens"] = {Added(300, "<s>", {"special"}), Added(301, "</s>", {"special"})};
  const Json special = {{"<s>", {{"id", "<s>"}, {"ids", {300}}, {"tokens", {"<s>"}}}},
                        {"</s>", {{"id", "</s>"}, {"ids", {301}}, {"tokens", {"</s>"}}}}};
  const auto piece = [](const std::string& token) -> Json {
    return {{"SpecialToken", {{"id", token}, {"type_id", 0}}}};
  };
  const Json text = {{"Sequence", {{"id", "A"}, {"type_id", 0}}}};
  const Json inner = {{"type", "TemplateProcessing"},
                      {"single", {piece("<s>"), text}},
                      {"special_tokens", special}};
  const Json outer = {{"type", "TemplateProcessing"},
                      {"single", {text, piece("</s>")}},
                      {"special_tokens", special}};
  json["post_processor"] = {{"type", "Sequence"},
                            {"processors", {{{"type", "ByteLevel"}}, inner, outer}}};
  const auto tokenizer = MustLoad(json);
  EXPECT_THAT(Ids(*tokenizer, "x", true), ElementsAre(300, 'x', 301));
  EXPECT_THAT(Ids(*tokenizer, "", true), ElementsAre(300, 301));
  EXPECT_THAT(Ids(*tokenizer, "x", false), ElementsAre('x'));
}

TEST(Tokenizer, SplitBehaviors) {
  const struct {
    Json pre_tokenizer;
    std::string text;
    std::vector<int32_t> ids;
  } cases[] = {
      {Split("Regex", "b", "Isolated"), "abcab", {'a', 'b', 'c', 'a', 'b'}},
      {Split("Regex", "ab|c", "Isolated"), "abcab", {256, 'c', 256}},
      {Split("Regex", "b", "Removed"), "abcab", {'a', 'c', 'a'}},
      {Split("Regex", "ab", "Removed", true), "xabyab", {256, 256}},
      {Split("String", ".", "Removed"), "ab.abc", {256, 257}},
      {Split("Regex", "x*", "Isolated"), "abc", {'a', 'b', 'c'}},  // empty matches cut too
  };
  for (const auto& c : cases) {
    Json json = Json::parse(TinyTokenizerText());
    json["pre_tokenizer"] = c.pre_tokenizer;
    EXPECT_EQ(Ids(*MustLoad(json), c.text), c.ids) << c.pre_tokenizer;
  }
}

TEST(Tokenizer, PrefixSpaceOnlyWhereThereIsNone) {
  Json json = Json::parse(TinyTokenizerText());
  json["pre_tokenizer"]["add_prefix_space"] = true;
  const auto tokenizer = MustLoad(json);
  EXPECT_THAT(Ids(*tokenizer, "a"), ElementsAre(258));
  EXPECT_THAT(Ids(*tokenizer, " a"), ElementsAre(258));
  EXPECT_THAT(Ids(*tokenizer, "\na"), ElementsAre(' ', '\n', 'a'));
}

TEST(Tokenizer, WithoutRegexAllTextIsOnePiece) {
  Json json = Json::parse(TinyTokenizerText());
  const std::string newline = ByteCharacter('\n');
  json["model"]["vocab"]["c" + newline] = 259;
  json["model"]["merges"] = {"c " + newline};
  EXPECT_THAT(Ids(*MustLoad(json), "c\n"), ElementsAre('c', '\n'));
  json["pre_tokenizer"]["use_regex"] = false;
  EXPECT_THAT(Ids(*MustLoad(json), "c\n"), ElementsAre(259));
}

}  // namespace
}  // namespace quantd::test
