// Files that are broken or not supported: refused with a message, never a crash.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <nlohmann/json.hpp>
#include <random>

#include "kernels/status.h"
#include "tests/engine/text/tiny_tokenizer.h"

namespace quantd::test {
namespace {

using Json = nlohmann::json;

using absl::StatusCode;
using testing::HasSubstr;

struct BadFile {
  std::string at;  // JSON pointer of what is changed
  Json value;
  StatusCode code;
  std::string message;
};

void ExpectRefused(const std::vector<BadFile>& cases) {
  for (const BadFile& c : cases) {
    Json json = Json::parse(TinyTokenizerText());
    json[Json::json_pointer(c.at)] = c.value;
    const auto loaded = LoadText(json.dump());
    ASSERT_FALSE(loaded.ok()) << c.at << " " << c.value;
    EXPECT_EQ(loaded.status().code(), c.code) << Message(loaded.status());
    EXPECT_THAT(Message(loaded.status()), HasSubstr(c.message));
    EXPECT_THAT(Message(loaded.status()), HasSubstr("tokenizer.json"));
  }
}

Json SplitBy(const std::string& pattern) {
  return {{"type", "Sequence"},
          {"pretokenizers",
           {{{"type", "Split"}, {"pattern", {{"Regex", pattern}}}, {"behavior", "Isolated"}},
            {{"type", "ByteLevel"}}}}};
}

TEST(TokenizerFiles, MalformedOnesAreDataLoss) {
  const auto code = StatusCode::kDataLoss;
  ExpectRefused({
      {"/model", nullptr, code, "model: not an object"},
      {"/model", "BPE", code, "model: not an object"},
      {"/model/type", 3, code, "model.type: not a string"},
      {"/model/vocab", Json::array({"a"}), code, "model.vocab"},
      {"/model/vocab", Json::object(), code, "model.vocab"},
      {"/model/vocab/zz", 5, code, "id 5 belongs to more than one token"},
      {"/model/vocab/zz", -1, code, "-1 is not a token id"},
      {"/model/vocab/zz", 4000000000, code, "4000000000 is not a token id"},
      {"/model/vocab/zz", 1.5, code, "1.5 is not a token id"},
      {"/model/vocab/zz", "7", code, "string is not a token id"},
      {"/model/merges", "a b", code, "model.merges: not an array"},
      {"/model/merges/1", "a", code, "model.merges[1]: not a pair"},
      {"/model/merges/1", "a b c", code, "model.merges[1]: not a pair"},
      {"/model/merges/1", {"a", 5}, code, "model.merges[1]: not a pair"},
      {"/model/merges/1", "a zz", code, "model.merges[1]: \"zz\" is not in model.vocab"},
      {"/model/merges/1", "a c", code, "\"ac\" is not in model.vocab"},
      {"/model/ignore_merges", "yes", code, "model.ignore_merges: not true or false"},
      {"/added_tokens", Json::object(), code, "added_tokens: not an array"},
      {"/added_tokens/0", "<s>", code, "added_tokens[0]: not an object"},
      {"/added_tokens/0", {{"id", 300}}, code, "added_tokens[0].content: missing"},
      {"/added_tokens/0", {{"id", 1 << 22}, {"content", "x"}}, code, "added_tokens[0].id: 4194304"},
      {"/added_tokens/0",
       {{"id", 5}, {"content", "<s>"}},
       code,
       "has id 5, which another token has"},
      {"/added_tokens/0", {{"id", 300}, {"content", "ab"}}, code, "has id 300, but also id 256"},
      {"/normalizer", 5, code, "normalizer: not an object"},
      {"/pre_tokenizer", Json::array(), code, "pre_tokenizer: not an object"},
      {"/decoder", nullptr, code, "decoder: not an object"},
      {"/post_processor",
       {{"type", "TemplateProcessing"}, {"single", {{{"SpecialToken", {{"id", "<s>"}}}}}}},
       code,
       "special_tokens"},
      {"/post_processor",
       {{"type", "TemplateProcessing"},
        {"single", {{{"SpecialToken", {{"id", "<s>"}}}}, {{"Sequence", {{"id", "A"}}}}}},
        {"special_tokens", {{"<s>", {{"ids", {999}}}}}}},
       code,
       "no token has id 999"},
  });
}

TEST(TokenizerFiles, WhatIsNotSupportedIsNamed) {
  const auto code = StatusCode::kUnimplemented;
  ExpectRefused({
      {"/model/type", "Unigram", code, "model: Unigram"},
      {"/model/byte_fallback", true, code, "model.byte_fallback"},
      {"/model/dropout", 0.1, code, "model.dropout: 0.1"},
      {"/model/continuing_subword_prefix", "##", code, "model.continuing_subword_prefix: \"##\""},
      {"/model/end_of_word_suffix", "</w>", code, "model.end_of_word_suffix"},
      {"/normalizer", {{"type", "Lowercase"}}, code, "normalizer: Lowercase"},
      {"/normalizer",
       {{"type", "Sequence"}, {"normalizers", {{{"type", "NFC"}}, {{"type", "Strip"}}}}},
       code,
       "normalizer.normalizers[1]: Strip"},
      {"/pre_tokenizer", nullptr, code, "decoder: ByteLevel without its pre_tokenizer"},
      {"/pre_tokenizer", {{"type", "BertPreTokenizer"}}, code, "pre_tokenizer: BertPreTokenizer"},
      {"/pre_tokenizer",
       {{"type", "Metaspace"}, {"replacement", "__"}},
       code,
       "pre_tokenizer.replacement: one that is not one character"},
      {"/pre_tokenizer",
       {{"type", "Metaspace"}, {"replacement", "_"}, {"prepend_scheme", "last"}},
       code,
       "pre_tokenizer.prepend_scheme: last"},
      {"/pre_tokenizer",
       {{"type", "Sequence"}, {"pretokenizers", {{{"type", "ByteLevel"}}, {{"type", "Digits"}}}}},
       code,
       "Digits after ByteLevel"},
      {"/pre_tokenizer",
       {{"type", "Sequence"},
        {"pretokenizers",
         {{{"type", "Split"}, {"pattern", {{"Regex", "a"}}}, {"behavior", "Sideways"}}}}},
       code,
       "behavior: Sideways"},
      {"/pre_tokenizer", SplitBy("a("), code, "pattern \"a(\""},
      {"/pre_tokenizer", SplitBy("[a&&b]"), code, "&& in a set"},
      {"/post_processor", {{"type", "BertProcessing"}}, code, "post_processor: BertProcessing"},
      {"/decoder", {{"type", "WordPiece"}}, code, "decoder: WordPiece"},
      {"/decoder",
       {{"type", "Metaspace"}, {"replacement", "_"}},
       code,
       "decoder: one other than ByteLevel after ByteLevel"},
      {"/decoder",
       {{"type", "Sequence"},
        {"decoders", {{{"type", "Fuse"}}, {{"type", "Replace"}, {"pattern", {{"String", "_"}}}}}}},
       code,
       "decoder.decoders[1]: Replace at this place"},
      {"/decoder",
       {{"type", "Replace"}, {"pattern", {{"Regex", "_"}}}, {"content", " "}},
       code,
       "decoder.pattern: a Regex"},
      {"/decoder",
       {{"type", "Sequence"},
        {"decoders",
         {{{"type", "Fuse"}}, {{"type", "Strip"}, {"content", " "}, {"start", 1}, {"stop", 1}}}}},
       code,
       "decoder.decoders[1]: Strip with this start or stop"},
      {"/normalizer",
       {{"type", "Replace"}, {"pattern", {{"Regex", "a*"}}}, {"content", "b"}},
       code,
       "pattern \"a*\": replacing a match of no character"},
  });
}

TEST(TokenizerFiles, EveryFaultIsListedAtOnce) {
  Json json = Json::parse(TinyTokenizerText());
  json["model"]["merges"] = {"a b", "q w", "w e"};
  json["model"]["vocab"]["zz"] = 7;
  const auto loaded = LoadText(json.dump());
  EXPECT_THAT(Message(loaded.status()), HasSubstr("model.merges[1]"));
  EXPECT_THAT(Message(loaded.status()), HasSubstr("model.merges[2]"));
  EXPECT_THAT(Message(loaded.status()), HasSubstr("id 7"));

  for (int i = 0; i < 1000; ++i) json["model"]["merges"].push_back("q w");
  const std::string message = Message(LoadText(json.dump()).status());
  EXPECT_THAT(message, HasSubstr("and 983 more"));  // 1003 faults, 20 listed
  EXPECT_LT(message.size(), 2000u);
}

TEST(TokenizerFiles, UnknownTokenNeedsEveryByte) {
  Json json = Json::parse(TinyTokenizerText());
  json["model"]["unk_token"] = "ab";
  EXPECT_TRUE(LoadText(json.dump()).ok());
  json["model"]["vocab"].erase("z");
  const auto loaded = LoadText(json.dump());
  EXPECT_EQ(loaded.status().code(), StatusCode::kUnimplemented);
  EXPECT_THAT(Message(loaded.status()), HasSubstr("model.unk_token \"ab\""));
  json["model"]["unk_token"] = nullptr;
  EXPECT_EQ(Ids(*MustLoad(json), "xzy"), (std::vector<int32_t>{'x', 'y'}));
}

TEST(TokenizerFiles, HarmlessSettingsAreAccepted) {
  Json json = Json::parse(TinyTokenizerText());
  json["model"].erase("type");
  json["model"]["dropout"] = 0.0;
  json["model"]["continuing_subword_prefix"] = "";
  json["model"]["end_of_word_suffix"] = "";
  json["model"]["merges"].insert(json["model"]["merges"].begin(), "#version: 0.2");
  json["truncation"] = {{"max_length", 1}};
  json["padding"] = {{"strategy", {{"Fixed", 8}}}};
  json["added_tokens"] = {{{"id", 900}, {"content", ""}}};
  EXPECT_EQ(Ids(*MustLoad(json), "abcx"), (std::vector<int32_t>{257, 'x'}));
}

TEST(TokenizerFiles, ConfigIsChecked) {
  const std::string json = Json::parse(TinyTokenizerText()).dump();
  const struct {
    std::string config;
    std::string message;  // empty: loads
  } cases[] = {{R"({"eos_token": "ab"})", ""},
               {R"({"eos_token": "<none>"})", "eos_token \"<none>\""},
               {R"({"bos_token": 5})", "tokenizer_config.json.bos_token: not a string"},
               {R"({"bos_token": {"content": 5}})", "bos_token.content: not a string"},
               {R"([1])", "not a JSON object"},
               {R"({"a": )", "not valid JSON"}};
  for (const auto& c : cases) {
    const auto loaded = LoadText(json, c.config);
    EXPECT_EQ(loaded.ok(), c.message.empty()) << c.config;
    if (!loaded.ok()) {
      EXPECT_EQ(loaded.status().code(), StatusCode::kDataLoss);
      EXPECT_THAT(Message(loaded.status()), HasSubstr(c.message));
    }
  }
}

TEST(TokenizerFiles, WhatIsNoFileIsRefused) {
  const TestFolder folder;
  EXPECT_EQ(Tokenizer::Load(folder.path()).status().code(), StatusCode::kNotFound);
  EXPECT_EQ(Tokenizer::Load(folder.path() / "no" / "folder").status().code(),
            StatusCode::kNotFound);
  const auto file = folder.path() / "tokenizer.json";
  std::filesystem::create_directory(file);
  EXPECT_EQ(Tokenizer::Load(folder.path()).status().code(), StatusCode::kDataLoss);
  std::filesystem::remove(file);
  ASSERT_EQ(mkfifo(file.c_str(), 0600), 0);  // opening it would block
  EXPECT_EQ(Tokenizer::Load(folder.path()).status().code(), StatusCode::kDataLoss);
  std::filesystem::remove(file);
  folder.Write("tokenizer.json", "");
  EXPECT_EQ(Tokenizer::Load(folder.path()).status().code(), StatusCode::kDataLoss);
  std::filesystem::resize_file(file, (uintmax_t{256} << 20) + 1);  // sparse
  EXPECT_THAT(Message(Tokenizer::Load(folder.path()).status()), HasSubstr("at most 268435456"));
}

TEST(TokenizerFiles, DeepNestingIsRefused) {
  const std::string brackets(300000, '[');
  EXPECT_EQ(LoadText(brackets).status().code(), StatusCode::kDataLoss);
  EXPECT_EQ(LoadText("{\"model\": " + brackets + std::string(300000, ']') + "}").status().code(),
            StatusCode::kDataLoss);  // of a decoder, missed first

  Json json = Json::parse(TinyTokenizerText());
  Json sequence = {{"type", "NFC"}};
  for (int depth = 0; depth < 20; ++depth) {
    sequence = Json{{"type", "Sequence"}, {"normalizers", Json::array({sequence})}};
  }
  json["normalizer"] = sequence;
  EXPECT_THAT(Message(LoadText(json.dump()).status()), HasSubstr("more than 8 Sequences"));
}

TEST(TokenizerFiles, DamagedOnesNeverCrash) {
  Json json = Json::parse(TinyTokenizerText());
  json["added_tokens"] = {{{"id", 300}, {"content", "<s>"}, {"special", true}}};
  json["normalizer"] = {{"type", "NFC"}};
  json["pre_tokenizer"] = SplitBy(R"((?i:'s)|[^\r\n\p{L}]?\p{L}+|\p{N}{1,3}|\s+(?!\S)|\s+)");
  json["post_processor"] = {
      {"type", "TemplateProcessing"},
      {"single", {{{"SpecialToken", {{"id", "<s>"}}}}, {{"Sequence", {{"id", "A"}}}}}},
      {"special_tokens", {{"<s>", {{"ids", {300}}}}}}};
  // The vocabulary is most of the file; cut it so that the damage reaches the rest.
  json["model"]["vocab"] = {{"a", 0},   {"b", 1}, {"ab", 2}, {"c", 3},
                            {"abc", 4}, {"Ġ", 5}, {"Ġa", 6}};
  const std::string good = json.dump();
  ASSERT_TRUE(LoadText(good).ok());
  std::mt19937 random(11);
  const std::string bytes = "\"{}[]:,0123456789-+.eE\\ \n\x01\xFFnul";
  int loaded_count = 0;
  for (int round = 0; round < 3000; ++round) {
    std::string bad = good;
    for (unsigned changes = 1 + random() % 3; changes > 0; --changes) {
      const size_t at = random() % bad.size();
      switch (random() % 4) {
        case 0: bad.erase(at, 1 + random() % 8); break;
        case 1: bad.insert(at, 1, bytes[random() % bytes.size()]); break;
        case 2: bad.insert(at, bad.substr(random() % bad.size(), random() % 20)); break;
        default: bad[at] = bytes[random() % bytes.size()];
      }
    }
    const auto loaded = LoadText(bad);
    if (!loaded.ok()) continue;
    ++loaded_count;
    const auto ids = (*loaded)->Encode("abc 'S <s> 12345 e\u0301\n\n x", true);
    if (ids.ok()) (*loaded)->Decode(*ids, true);
  }
  EXPECT_GT(loaded_count, 100);
  EXPECT_LT(loaded_count, 2900);
}

}  // namespace
}  // namespace quantd::test
