// The fixtures made by Hugging Face's tokenizers, and properties over them and the demo model.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <random>
#include <thread>

#include "engine/text/normalizer.h"
#include "engine/text/stream_decoder.h"
#include "engine/text/utf8.h"
#include "tests/engine/text/tiny_tokenizer.h"

namespace quantd::test {
namespace {

using Json = nlohmann::json;

struct Fixture {
  explicit Fixture(const std::string& name)
      : tokenizer(MustLoadFolder(std::string(QUANTD_TEST_DATA "/tokenizers/") + name)),
        json(Json::parse(
            ReadText(std::string(QUANTD_TEST_DATA "/tokenizers/") + name + "/cases.json"))) {}
  std::unique_ptr<Tokenizer> tokenizer;
  Json json;
};

std::string Streamed(const Tokenizer& tokenizer, const std::vector<int32_t>& ids,
                     bool skip_special) {
  StreamDecoder decoder(tokenizer, {}, skip_special);
  std::string text;
  for (const int32_t id : ids) {
    EXPECT_FALSE(decoder.Push(id, &text));
    EXPECT_EQ(ValidUtf8Prefix(text), text.size());  // whole code points only
  }
  decoder.Finish(&text);
  return text;
}

class FixtureTest : public testing::TestWithParam<std::string> {};

TEST_P(FixtureTest, EncodesEveryCase) {
  const Fixture fixture(GetParam());
  ASSERT_GE(fixture.json["cases"].size(), 300u);
  for (const Json& c : fixture.json["cases"]) {
    const auto text = c["text"].get<std::string>();
    EXPECT_EQ(Ids(*fixture.tokenizer, text, c["add_special_tokens"]),
              c["ids"].get<std::vector<int32_t>>())
        << text;
  }
}

TEST_P(FixtureTest, DecodesEveryCaseWholeAndStreamed) {
  const Fixture fixture(GetParam());
  ASSERT_GE(fixture.json["decode_only"].size(), 60u);
  Json cases = fixture.json["cases"];
  for (Json c : fixture.json["decode_only"]) {
    c["ids"] = c["decode_ids"];
    cases.push_back(c);
  }
  for (const Json& c : cases) {
    const auto ids = c["ids"].get<std::vector<int32_t>>();
    for (const bool skip : {false, true}) {
      const auto expected = c[skip ? "decoded_skip_special" : "decoded"].get<std::string>();
      EXPECT_EQ(fixture.tokenizer->Decode(ids, skip), expected) << c["ids"];
      EXPECT_EQ(Streamed(*fixture.tokenizer, ids, skip), expected) << c["ids"];
    }
  }
}

TEST_P(FixtureTest, DecodingAnEncodedTextGivesItsNormalForm) {
  const Fixture fixture(GetParam());
  std::vector<NormalizationForm> forms;
  if (GetParam() == "qwen2_nfc") forms.push_back(NormalizationForm::kNfc);
  int exact = 0;
  const bool prefix = GetParam() == "llama2_bytefallback";
  for (const Json& c : fixture.json["cases"]) {
    const auto text = c["text"].get<std::string>();
    // Every text after a special token gets a space of its own, which stays.
    if (prefix && text.find('<') != std::string::npos) continue;
    const std::string back = fixture.tokenizer->Decode(Ids(*fixture.tokenizer, text), false);
    std::string expected = Normalize(forms, text).value();
    // What stands for spaces in the vocabulary is a space in the text.
    for (size_t at; prefix && (at = expected.find("\u2581")) != std::string::npos;) {
      expected.replace(at, 3, " ");
    }
    EXPECT_EQ(back, expected);
    exact += back == text;
  }
  EXPECT_GT(exact, 200);
}

TEST_P(FixtureTest, StreamOfRandomTokensEqualsDecodeOfAll) {
  const Fixture fixture(GetParam());
  std::mt19937 random(7);
  for (int round = 0; round < 300; ++round) {
    std::vector<int32_t> ids(random() % 40);
    // Half of the rounds use single bytes only, where most sequences are invalid or span tokens.
    const int32_t limit = round % 2 == 0 ? 256 : fixture.tokenizer->vocab_size();
    for (int32_t& id : ids) id = static_cast<int32_t>(random() % limit);
    for (const bool skip : {false, true}) {
      EXPECT_EQ(Streamed(*fixture.tokenizer, ids, skip), fixture.tokenizer->Decode(ids, skip));
    }
  }
}

TEST_P(FixtureTest, OneTokenizerServesManyThreads) {
  const Fixture fixture(GetParam());
  std::string text;
  for (const Json& c : fixture.json["cases"]) text += c["text"].get<std::string>();
  const std::vector<int32_t> expected = Ids(*fixture.tokenizer, text);
  std::vector<std::vector<int32_t>> found(4);
  {
    std::vector<std::jthread> threads;
    for (auto& ids : found) {
      threads.emplace_back([&] { ids = fixture.tokenizer->Encode(text, false).value(); });
    }
  }
  EXPECT_THAT(found, testing::Each(expected));
}

INSTANTIATE_TEST_SUITE_P(Tokenizers, FixtureTest,
                         testing::Values("llama3_bytelevel", "qwen2_nfc", "llama2_bytefallback"),
                         [](const auto& param_info) { return param_info.param; });

TEST(DemoTokenizer, LoadsAndReturnsEnglishText) {
  const auto tokenizer = MustLoadFolder(QUANTD_SOURCE_DIR "/demo/model");
  EXPECT_EQ(tokenizer->vocab_size(), 4096);
  EXPECT_EQ(tokenizer->bos_id(), 0);
  EXPECT_EQ(tokenizer->eos_id(), 0);
  EXPECT_TRUE(tokenizer->IsSpecial(0));
  const std::string text =
      "Once upon a time, there was a little girl named Lily. She didn't like rain!\n\n\"Mom,\" she "
      "said, "
      "\"can we go to the park at 10:30?\"";
  const std::vector<int32_t> ids = Ids(*tokenizer, text, true);
  EXPECT_LT(ids.size(), text.size() / 2);
  EXPECT_EQ(tokenizer->Decode(ids, true), text);
  EXPECT_EQ(Ids(*tokenizer, "<|endoftext|>Once<|endoftext|>").front(), 0);
  EXPECT_EQ(Ids(*tokenizer, "<|endoftext|>Once<|endoftext|>").back(), 0);
}

}  // namespace
}  // namespace quantd::test
