// When a request ends and what text it got: ends of sequence, stop ids, stop strings, min_tokens,
// UTF-8.
#include <gtest/gtest.h>

#include "tests/engine/fake_model.h"

namespace quantd {
namespace {

// Ids of letters: a is 1. The prompt is one token, so script[0] follows it.
std::vector<int32_t> Letters(std::string_view text) {
  std::vector<int32_t> ids;
  for (const char c : text) ids.push_back(c == ' ' ? 27 : c == '.' ? kFakeEos : c - 'a' + 1);
  return ids;
}

struct StopCase {
  const char* name;
  std::vector<int32_t> script;
  std::function<void(SamplingParams*)> set;
  std::string text;
  size_t tokens;
  FinishReason reason;
  std::string stop_reason;
};

class EngineStop : public testing::TestWithParam<int> {};

TEST_P(EngineStop, EndsWhereItShouldWithTheTextBefore) {
  const std::vector<StopCase> cases = {
      {"end of sequence", Letters("abc.def"), [](auto*) {}, "abc", 4, FinishReason::kStop, ""},
      {"its text is not emitted even if asked for", Letters("abc.def"),
       [](auto* s) { s->skip_special_tokens = false; }, "abc", 4, FinishReason::kStop, ""},
      {"ignored end of sequence", Letters("abc.def"), [](auto* s) { s->ignore_eos = true; },
       "abcdef", 7, FinishReason::kLength, ""},
      {"stop id", Letters("abcdef"), [](auto* s) { s->stop_token_ids = {4}; }, "abc", 4,
       FinishReason::kStop, "4"},
      {"stop string", Letters("abcdefg"), [](auto* s) { s->stop = {"de"}; }, "abc", 5,
       FinishReason::kStop, "de"},
      {"the first of two stop strings", Letters("abcdefg"),
       [](auto* s) {
         s->stop = {"ef", "cd"};
       },
       "ab", 4, FinishReason::kStop, "cd"},
      {"a beginning of a stop string is emitted at the end", Letters("abcdefd"),
       [](auto* s) { s->stop = {"dx"}; }, "abcdefd", 7, FinishReason::kLength, ""},
      {"a beginning of a stop string before an end of sequence", Letters("abd.xyz"),
       [](auto* s) { s->stop = {"dx"}; }, "abd", 4, FinishReason::kStop, ""},
      {"stop id before min_tokens is not drawn",
       {},
       [](auto* s) {
         s->min_tokens = 7;
         s->stop_token_ids = Letters("abcdefghijklmnopqrstuvwxyz");
       },
       "*",
       7,
       FinishReason::kLength,
       ""},
      {"stop string before min_tokens is not looked for", Letters("abababa"),
       [](auto* s) {
         s->min_tokens = 4;
         s->stop = {"ab"};
       },
       "abab", 6, FinishReason::kStop, "ab"},
      {"a stop string completed by the last token stops", Letters("abcdefg"),
       [](auto* s) { s->stop = {"fg"}; }, "abcde", 7, FinishReason::kStop, "fg"},
      {"halves of a character come whole",
       {1, 28, 29, 2, 28, 29, 3},
       [](auto*) {},
       "a\xC3\xA9"
       "b\xC3\xA9"
       "c",
       7,
       FinishReason::kLength,
       ""},
      {"half a character at the end is replaced",
       {1, 2, 3, 4, 5, 6, 28},
       [](auto*) {},
       "abcdef\xEF\xBF\xBD",
       7,
       FinishReason::kLength,
       ""},
      {"min_tokens inside a character",
       {1, 28, 29, 2, 3, 4, 5},
       [](auto* s) {
         s->min_tokens = 2;
         s->stop = {"cd"};
       },
       "a\xC3\xA9"
       "b",
       6,
       FinishReason::kStop,
       "cd"},
  };
  for (const StopCase& c : cases) {
    FakeEngine engine(SmallOptions(GetParam()), c.script);
    Request request = GreedyRequest({26}, 7);
    c.set(&request.sampling);
    auto result = Generate(*engine, request);
    ASSERT_TRUE(result.ok()) << c.name << ": " << result.status();
    if (c.text != "*") {
      EXPECT_EQ(result->text, c.text) << c.name;
    }
    EXPECT_EQ(result->tokens.size(), c.tokens) << c.name;
    EXPECT_EQ(result->finish_reason, c.reason) << c.name;
    EXPECT_EQ(result->stop_reason, c.stop_reason) << c.name;
    EXPECT_EQ(result->usage.completion_tokens, static_cast<int32_t>(c.tokens)) << c.name;
    EXPECT_TRUE(result->status.ok()) << c.name;
    ExpectNothingLeaked(*engine);
  }
}

TEST_P(EngineStop, EndsOfSequenceBeforeMinTokensAreNotDrawn) {
  FakeEngine engine(SmallOptions(GetParam()), Letters("......."));
  Request request = GreedyRequest({26}, 7);
  request.sampling.min_tokens = 3;
  auto result = Generate(*engine, request);
  ASSERT_TRUE(result.ok());
  ASSERT_EQ(result->tokens.size(), 4u);
  for (size_t i = 0; i < 3; ++i) EXPECT_NE(result->tokens[i].token_id, kFakeEos);
  EXPECT_EQ(result->tokens[3].token_id, kFakeEos);
}

TEST_P(EngineStop, EveryUpdateIsWholeUtf8) {
  class Checking : public CollectingSink {
   public:
    void OnUpdate(RequestUpdate update) override {
      if (!update.text.empty()) {
        // The two bytes of U+00E9 never part.
        EXPECT_NE(update.text.back(), '\xC3');
        EXPECT_NE(update.text.front(), '\xA9');
      }
      CollectingSink::OnUpdate(std::move(update));
    }
  };
  FakeEngine engine(SmallOptions(GetParam()), {1, 28, 29, 2, 28, 29, 3});
  auto sink = std::make_shared<Checking>();
  ASSERT_TRUE(engine->Submit(GreedyRequest({26}, 7), sink).ok());
  sink->Wait();
}

INSTANTIATE_TEST_SUITE_P(Depth, EngineStop, testing::Values(0, 1));

}  // namespace
}  // namespace quantd
