// Cases recorded from the libraries by tests/reference/tokenizer_cases.py: variants of every part
// of tokenizer.json, and SentencePiece models.
#include <gtest/gtest.h>

#include <filesystem>
#include <nlohmann/json.hpp>

#include "engine/text/stream_decoder.h"
#include "kernels/status.h"
#include "tests/engine/text/tiny_tokenizer.h"

namespace quantd::test {
namespace {

using Json = nlohmann::json;

const std::string kData = QUANTD_TEST_DATA;

// Decoded at once and token by token.
void ExpectText(const Tokenizer& tokenizer, const std::vector<int32_t>& ids, bool skip_special,
                const std::string& expected) {
  EXPECT_EQ(tokenizer.Decode(ids, skip_special), expected) << Json(ids);
  StreamDecoder decoder(tokenizer, {}, skip_special);
  std::string streamed;
  for (const int32_t id : ids) decoder.Push(id, &streamed);
  decoder.Finish(&streamed);
  EXPECT_EQ(streamed, expected) << Json(ids);
}

TEST(RecordedTokenizers, VariantsOfEveryPart) {
  const Json variants = Json::parse(ReadText(kData + "/tokenizer_variants.json"));
  ASSERT_GE(variants.size(), 30u);
  int cases = 0;
  for (const Json& variant : variants) {
    SCOPED_TRACE(variant["name"].get<std::string>());
    const auto base = variant["base"].get<std::string>();
    Json json = Json::parse(ReadText(kData + "/tokenizers/" + base + "/tokenizer.json"));
    json.update(variant["parts"]);
    json["model"].update(variant["model"]);
    Json& vocab = json["model"]["vocab"];
    for (const Json& missing : variant["missing"]) {  // spelled so that no byte finds it
      auto spelling = missing.get<std::string>();
      const Json id = vocab[spelling];
      vocab.erase(spelling);
      for (char& c : spelling) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
      vocab[spelling] = id;
    }
    const auto tokenizer = MustLoad(json);
    for (const Json& row : variant["cases"]) {
      const auto text = row[0].get<std::string>();
      EXPECT_EQ(Ids(*tokenizer, text, true), row[1].get<std::vector<int32_t>>()) << row[0];
      EXPECT_LE(tokenizer->MinTokens(text), std::ssize(Ids(*tokenizer, text))) << row[0];
      ++cases;
      if (row.size() < 3) continue;
      const auto ids = row[2][0].get<std::vector<int32_t>>();
      ExpectText(*tokenizer, ids, false, row[2][1].get<std::string>());
      ExpectText(*tokenizer, ids, true, row[2][2].get<std::string>());
    }
  }
  EXPECT_GT(cases, 800);
}

class SentencePiece : public testing::TestWithParam<std::string> {};

TEST_P(SentencePiece, EncodesAndDecodesAsItsLibrary) {
  const std::string folder = kData + "/sentencepiece/" + GetParam();
  const auto tokenizer = MustLoadFolder(folder);
  const Json cases = Json::parse(ReadText(folder + "/cases.json"));
  ASSERT_GE(cases.size(), 250u);
  for (const Json& row : cases) {
    const auto text = row[0].get<std::string>();
    const auto ids = row[1].get<std::vector<int32_t>>();
    EXPECT_EQ(Ids(*tokenizer, text, false), ids) << row[0];
    ExpectText(*tokenizer, ids, true, row[2].get<std::string>());
  }
}

INSTANTIATE_TEST_SUITE_P(, SentencePiece, testing::Values("dummy_prefix", "user_defined"),
                         [](const auto& param_info) { return param_info.param; });

TEST(SentencePieceModel, ConfigSaysWhatSurroundsATextAndWhichTokensAreAdded) {
  const std::string model = ReadText(kData + "/sentencepiece/dummy_prefix/tokenizer.model");
  const TestFolder folder;
  folder.Write("tokenizer.model", model);
  auto tokenizer = MustLoadFolder(folder.path());
  EXPECT_EQ(tokenizer->bos_id(), 1);
  EXPECT_EQ(tokenizer->eos_id(), 2);
  const std::vector<int32_t> plain = Ids(*tokenizer, "the river");
  std::vector<int32_t> with_bos = {1};
  with_bos.insert(with_bos.end(), plain.begin(), plain.end());
  EXPECT_EQ(Ids(*tokenizer, "the river", true), with_bos);
  // The names of control symbols are the symbols, as in transformers.
  EXPECT_EQ(Ids(*tokenizer, "<s>"), (std::vector<int32_t>{1}));

  folder.Write("tokenizer_config.json", R"({
    "add_bos_token": false, "add_eos_token": true, "legacy": false, "eos_token": "<end>",
    "added_tokens_decoder": {"700": {"content": "<end>", "special": true, "lstrip": true}}})");
  tokenizer = MustLoadFolder(folder.path());
  EXPECT_EQ(tokenizer->eos_id(), 700);
  EXPECT_TRUE(tokenizer->IsSpecial(700));
  std::vector<int32_t> expected = plain;
  expected.push_back(700);
  EXPECT_EQ(Ids(*tokenizer, "the river <end>", false), expected);
  EXPECT_EQ(Ids(*tokenizer, "the river", true), expected);
  // legacy: false, so what follows a token gets no space of its own.
  EXPECT_EQ(tokenizer->Decode(Ids(*tokenizer, "the<s>river"), true), "theriver");

  folder.Write("tokenizer_config.json", R"({"added_tokens_decoder": {"x": {"content": "y"}}})");
  const auto refused = Tokenizer::Load(folder.path());
  EXPECT_EQ(refused.status().code(), absl::StatusCode::kDataLoss);
  EXPECT_NE(Message(refused.status()).find("added_tokens_decoder.x"), std::string::npos)
      << refused.status();
}

// The fields of the format that the tests write: tag, then length or value.
std::string Field(int number, const std::string& bytes) {
  return std::string(1, static_cast<char>(number << 3 | 2)) +
         std::string(1, static_cast<char>(bytes.size())) + bytes;
}
std::string Number(int number, char value) {
  return std::string(1, static_cast<char>(number << 3)) + std::string(1, value);
}

TEST(SentencePieceModel, WhatIsNotSupportedIsNamed) {
  const std::string unk = Field(1, Field(1, "<unk>") + Number(3, 2));
  const std::string bpe = Field(2, Number(3, 2));
  const std::string plain = Field(3, Number(4, 0));
  const struct {
    std::string model;
    absl::StatusCode code;
    std::string message;
  } cases[] = {
      {unk + bpe + plain, absl::StatusCode::kOk, ""},
      {unk + plain, absl::StatusCode::kUnimplemented, "model_type: UNIGRAM"},
      {unk + bpe, absl::StatusCode::kUnimplemented, "remove_extra_whitespaces"},
      {unk + bpe + Field(3, Number(4, 0) + Field(2, "map")), absl::StatusCode::kUnimplemented,
       "normalizer_spec: one other than identity"},
      {unk + bpe + Field(3, Number(4, 0) + Number(5, 0)), absl::StatusCode::kUnimplemented,
       "escape_whitespaces"},
      {unk + Field(1, Field(1, "x") + Number(3, 5)) + bpe + plain, absl::StatusCode::kUnimplemented,
       "pieces[1]: UNUSED"},
      {unk + Field(1, Field(1, "x") + Number(3, 9)) + bpe + plain, absl::StatusCode::kDataLoss,
       "pieces[1].type: 9"},
      {unk + Field(1, Field(1, "\xFF")) + bpe + plain, absl::StatusCode::kDataLoss,
       "pieces[1].piece"},
      {unk + Field(1, Field(1, "<unk>")) + bpe + plain, absl::StatusCode::kDataLoss, "<unk>"},
      {bpe + plain, absl::StatusCode::kDataLoss, "not a SentencePiece model"},
      {(unk + bpe + plain).substr(0, 9), absl::StatusCode::kDataLoss, "not a SentencePiece model"},
      {"", absl::StatusCode::kDataLoss, "not a SentencePiece model"},
  };
  for (const auto& c : cases) {
    const TestFolder folder;
    folder.Write("tokenizer.model", c.model);
    const auto loaded = Tokenizer::Load(folder.path());
    EXPECT_EQ(loaded.status().code(), c.code) << loaded.status();
    EXPECT_NE(Message(loaded.status()).find(c.message), std::string::npos) << loaded.status();
  }
}

}  // namespace
}  // namespace quantd::test
