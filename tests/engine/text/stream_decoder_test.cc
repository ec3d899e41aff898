// Streaming: whole code points, nothing withheld without need, stop strings wherever they are cut.
#include "engine/text/stream_decoder.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <random>

#include "kernels/status.h"
#include "tests/engine/text/tiny_tokenizer.h"

namespace quantd::test {
namespace {

using Json = nlohmann::json;

using testing::ElementsAre;

const Tokenizer& Tiny() {
  static const std::unique_ptr<Tokenizer> tokenizer = [] {
    Json json = Json::parse(TinyTokenizerText());
    json["added_tokens"] = {{{"id", 300}, {"content", "<s>"}, {"special", true}},
                            {{"id", 301}, {"content", "[tool]"}, {"special", false}}};
    return MustLoad(json);
  }();
  return *tokenizer;
}

// The delta of each token, and of Finish at the end unless stopped.
std::vector<std::string> Deltas(const std::vector<int32_t>& ids,
                                std::vector<std::string> stops = {}, bool skip_special = false,
                                std::string* matched = nullptr) {
  StreamDecoder decoder(Tiny(), std::move(stops), skip_special);
  std::vector<std::string> deltas;
  bool stopped = false;
  for (const int32_t id : ids) {
    deltas.emplace_back();
    stopped = decoder.Push(id, &deltas.back());
    EXPECT_EQ(stopped, !decoder.matched_stop().empty());
    if (stopped) break;
  }
  if (!stopped) decoder.Finish(&deltas.emplace_back());
  if (matched != nullptr) *matched = decoder.matched_stop();
  return deltas;
}

std::vector<int32_t> Bytes(std::string_view text) {
  std::vector<int32_t> ids;
  for (const char c : text) ids.push_back(static_cast<uint8_t>(c));
  return ids;
}

std::string Joined(const std::vector<std::string>& parts) {
  std::string text;
  for (const std::string& part : parts) text += part;
  return text;
}

TEST(StreamDecoder, WaitsForWholeCodePoints) {
  EXPECT_THAT(Deltas(Bytes("a😀é")), ElementsAre("a", "", "", "", "😀", "", "é", ""));
}

TEST(StreamDecoder, ReplacesAtOnceWhatCannotBecomeValid) {
  const std::string bad = "\uFFFD";
  EXPECT_THAT(Deltas({0x80, 'x'}), ElementsAre(bad, "x", ""));
  EXPECT_THAT(Deltas({0xE2, 0x82, 'x'}), ElementsAre("", "", bad + "x", ""));
  EXPECT_THAT(Deltas({0xE2, 0xE2, 0x82, 0xAC}), ElementsAre("", bad, "", "€", ""));
  EXPECT_THAT(Deltas({0xED, 0xA0}), ElementsAre("", bad + bad, ""));
  EXPECT_THAT(Deltas({0xF0, 0x9F}), ElementsAre("", "", bad));
}

TEST(StreamDecoder, SpecialTokensAreLeftOutOrWritten) {
  EXPECT_THAT(Deltas({'a', 300, 301, 'b'}), ElementsAre("a", "<s>", "[tool]", "b", ""));
  EXPECT_THAT(Deltas({'a', 300, 301, 'b'}, {}, true), ElementsAre("a", "", "[tool]", "b", ""));
  // Left out, it does not part the bytes around it, as in Decode.
  EXPECT_EQ(Joined(Deltas({0xC3, 300, 0xA9}, {}, true)), "é");
  EXPECT_EQ(Joined(Deltas({0xC3, 300, 0xA9})), "\uFFFD<s>\uFFFD");
}

TEST(StreamDecoder, HoldsBackOnlyWhatCanBecomeAStopString) {
  EXPECT_THAT(Deltas(Bytes("xabyab"), {"abc"}), ElementsAre("x", "", "", "aby", "", "", "ab"));
  EXPECT_THAT(Deltas(Bytes("aab"), {"aac"}), ElementsAre("", "", "aab", ""));
  EXPECT_THAT(Deltas(Bytes("aaab"), {"aab"}), ElementsAre("", "", "a", ""));
}

TEST(StreamDecoder, StopStrings) {
  const struct {
    std::string text;
    std::vector<std::string> stops;
    std::string emitted;
    std::string matched;
  } cases[] = {
      {"hello world", {"o w"}, "hell", "o w"},
      {"hello", {"x"}, "hello", ""},
      {"hello", {"hello"}, "", "hello"},
      {"price 5€ now", {"€"}, "price 5", "€"},
      {"a漢字b", {"漢字"}, "a", "漢字"},
      {"a漢子b", {"漢字"}, "a漢子b", ""},
      {"xabcd", {"abcd", "bc"}, "xa", "bc"},     // the one that ends first
      {"xabc", {"c", "bc", "abc"}, "x", "abc"},  // of those, the longest
      {"xxbc", {"abc", "bc"}, "xx", "bc"},
      {"\n\nUser:", {"\n\nUser:", "\nHuman:"}, "", "\n\nUser:"},
      {"end\xE2\x82", {"\uFFFD"}, "end", "\uFFFD"},  // completed by Finish
      {"stop stop", {"stop"}, "", "stop"},
  };
  for (const auto& c : cases) {
    std::string matched;
    EXPECT_EQ(Joined(Deltas(Bytes(c.text), c.stops, false, &matched)), c.emitted) << c.text;
    EXPECT_EQ(matched, c.matched) << c.text;
  }
}

TEST(StreamDecoder, ByteTokensWaitUntilTheirRunIsUtf8OrNot) {
  const auto tokenizer = MustLoadFolder(QUANTD_TEST_DATA "/tokenizers/llama2_bytefallback");
  const auto byte = [&](int value) {
    return *tokenizer->TokenToId(fmt::format("<0x{:02X}>", value));
  };
  const int32_t word = *tokenizer->TokenToId("\u2581the");
  for (const bool valid : {true, false}) {
    StreamDecoder decoder(*tokenizer, {}, true);
    std::string text;
    for (const int value : {0xF0, 0x9F, 0x98, valid ? 0x80 : 0x20}) {
      decoder.Push(byte(value), &text);
      EXPECT_EQ(text, "");
    }
    decoder.Push(word, &text);
    EXPECT_EQ(text, valid ? "\U0001F600 the" : "\uFFFD\uFFFD\uFFFD\uFFFD the");
  }
}

TEST(StreamDecoder, AnAnswerKeepsTheSpaceThatATextDoesNotBeginWith) {
  const auto tokenizer = MustLoadFolder(QUANTD_TEST_DATA "/tokenizers/llama2_bytefallback");
  const int32_t word = *tokenizer->TokenToId("\u2581the");
  for (const bool continues : {false, true}) {
    StreamDecoder decoder(*tokenizer, {}, true, continues);
    std::string text;
    decoder.Push(word, &text);
    decoder.SetStopStrings({"the"});
    EXPECT_TRUE(decoder.Push(word, &text));
    EXPECT_EQ(text, continues ? " the " : "the ");
  }
}

TEST(StreamDecoder, StopStringInsideAToken) {
  std::string matched;
  EXPECT_THAT(Deltas({'x', 301, 'y'}, {"oo"}, false, &matched), ElementsAre("x", "[t"));
  EXPECT_EQ(matched, "oo");
  EXPECT_THAT(Deltas({'x', 256, 'c'}, {"bc"}), ElementsAre("x", "a", ""));  // "ab" then "c"
}

TEST(StreamDecoder, NothingComesAfterTheStop) {
  StreamDecoder decoder(Tiny(), {"b"}, false);
  std::string text;
  EXPECT_FALSE(decoder.Push('a', &text));
  EXPECT_TRUE(decoder.Push(256, &text));
  EXPECT_TRUE(decoder.Push('c', &text));
  decoder.Finish(&text);
  EXPECT_EQ(text, "aa");
  EXPECT_EQ(decoder.matched_stop(), "b");
}

// However the text is cut into tokens, the result is that of reading it character by character.
TEST(StreamDecoder, StopDoesNotDependOnTokenBoundaries) {
  std::mt19937 random(5);
  const std::string letters = "abc ";
  for (int round = 0; round < 2000; ++round) {
    std::string text(random() % 24, 'a');
    for (char& c : text) c = letters[random() % letters.size()];
    std::vector<std::string> stops(1 + random() % 3);
    for (std::string& stop : stops) {
      stop.resize(1 + random() % 4);
      for (char& c : stop) c = letters[random() % 3];
    }
    std::string matched_by_byte, matched_by_token;
    const std::string by_byte = Joined(Deltas(Bytes(text), stops, false, &matched_by_byte));
    const std::string by_token = Joined(Deltas(Ids(Tiny(), text), stops, false, &matched_by_token));
    EXPECT_EQ(by_byte, by_token);
    EXPECT_EQ(matched_by_byte, matched_by_token);
    EXPECT_TRUE(text.starts_with(by_byte + matched_by_byte));
    if (matched_by_byte.empty()) {
      EXPECT_EQ(by_byte, text);
    }
    for (const std::string& stop : stops) {
      // Nothing that was emitted holds a stop string; none ends before the one found.
      EXPECT_EQ(by_byte.find(stop), std::string::npos);
      EXPECT_GE(std::min(text.size(), text.find(stop)) + stop.size(),
                std::min(text.size(), by_byte.size() + matched_by_byte.size()));
    }
  }
}

}  // namespace
}  // namespace quantd::test
