// Options of a request that change its draws or their number, through the whole engine: each output
// is what its history and the options' definitions say, however it was batched, and n outputs share
// one prompt.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>

#include "tests/engine/fake_model.h"

namespace quantd {
namespace {

using testing::HasSubstr;

class EngineSampling : public testing::TestWithParam<int> {
 protected:
  EngineOptions Options() const { return SmallOptions(GetParam()); }
};

/// Reads that many tokens, then nothing more: the engine cannot finish before the test goes on.
class LimitedSink : public CollectingSink {
 public:
  LimitedSink(int32_t n, size_t tokens) : CollectingSink(n), tokens_(tokens) {}
  bool Stalled() const override { return num_tokens() >= tokens_; }

 private:
  const size_t tokens_;
};

// Some of all options, none of which can leave nothing to draw.
void Spice(std::mt19937& random, SamplingParams& s) {
  const auto one_in = [&](uint32_t n) { return random() % n == 0; };
  const auto real = [&](float low, float high) {
    return std::uniform_real_distribution<float>(low, high)(random);
  };
  const auto id = [&] { return 1 + static_cast<int32_t>(random() % 60); };
  if (one_in(2)) s.repetition_penalty = real(0.5f, 2.0f);
  if (one_in(3)) s.presence_penalty = real(-2.0f, 2.0f);
  if (one_in(3)) s.frequency_penalty = real(-2.0f, 2.0f);
  if (one_in(3)) {
    for (int32_t token = id(); token < 60; token += 7) {
      s.logit_bias.emplace_back(token, real(-3.0f, 3.0f));
    }
  }
  if (one_in(4)) {
    for (int i = 0; i < 30; ++i) s.allowed_token_ids.push_back(id());
  }
  if (one_in(3)) {
    for (char c = 'a'; c <= 'z'; ++c) {
      if (one_in(2)) s.bad_words.push_back({c});
      if (one_in(2)) s.bad_words.push_back({static_cast<char>('a' + random() % 26), c});
    }
  }
  if (one_in(2)) {
    s.temperature = real(0.3f, 2.0f);
    s.seed = random();
    s.top_p = real(0.5f, 1.0f);
  }
}

TEST_P(EngineSampling, AnyOptionsTogetherGiveWhatTheirDefinitionsSayInAnyBatch) {
  EngineOptions options = Options();
  options.num_kv_blocks = 24;  // too few for four at once: some are preempted
  FakeEngine engine(options);
  std::mt19937 random(3);
  std::vector<Request> requests;
  for (int i = 0; i < 150; ++i) {
    std::vector<int32_t> prompt(1 + random() % 25);
    for (int32_t& token : prompt) token = 1 + static_cast<int32_t>(random() % 60);
    Request request = GreedyRequest(prompt, 1 + static_cast<int32_t>(random() % 40));
    Spice(random, request.sampling);
    requests.push_back(request);
  }
  const auto results = GenerateAll(*engine, requests);
  ASSERT_TRUE(results.ok()) << results.status();
  for (size_t i = 0; i < requests.size(); ++i) {
    EXPECT_EQ((*results)[i].token_ids(), ReferenceTokens(requests[i])) << "request " << i;
    const auto alone = Generate(*engine, requests[i]);
    ASSERT_TRUE(alone.ok());
    EXPECT_EQ(alone->token_ids(), (*results)[i].token_ids()) << "request " << i;
  }
  EXPECT_GT(engine->Stats().preemptions, 0);
  ExpectNothingLeaked(*engine);
}

TEST_P(EngineSampling, OnlyWhatNeedsTokensWaitsForThem) {
  FakeEngine engine(Options());
  Request request = GreedyRequest({5, 6}, 10);
  request.sampling.logit_bias = {{7, 2.0f}};
  request.sampling.allowed_token_ids = {3, 7, 9};
  ASSERT_TRUE(Generate(*engine, request).ok());
  const int64_t before = engine.backend.feedbacks.load();
  EXPECT_EQ(before > 0, GetParam() == 1) << "the next step is under way before a token is known";
  request.sampling.presence_penalty = 1.0f;
  ASSERT_TRUE(Generate(*engine, request).ok());
  EXPECT_EQ(engine.backend.feedbacks.load(), before);
}

TEST_P(EngineSampling, NOutputsHaveTheirOwnNumbersAndShareThePrompt) {
  FakeEngine engine(Options());
  std::vector<int32_t> prompt(23);
  for (size_t i = 0; i < prompt.size(); ++i) prompt[i] = static_cast<int32_t>(i % 50) + 1;
  Request request = GreedyRequest(prompt, 12);
  request.sampling.temperature = 1.5f;
  request.sampling.seed = 17;
  request.sampling.frequency_penalty = 0.3f;
  request.sampling.n = 6;  // more than run at once
  const auto outputs = GenerateOutputs(*engine, request);
  ASSERT_TRUE(outputs.ok()) << outputs.status();
  ASSERT_EQ(outputs->size(), 6u);
  for (uint32_t i = 0; i < 6; ++i) {
    const GenerateResult& output = (*outputs)[i];
    EXPECT_EQ(output.token_ids(), ReferenceTokens(request, i)) << i;
    EXPECT_EQ(output.finish_reason, FinishReason::kLength);
    EXPECT_EQ(output.usage.completion_tokens, 12);
    EXPECT_EQ(output.usage.cached_tokens, i == 0 ? 0 : 20) << "5 blocks of 4 tokens";
    EXPECT_EQ(output.usage.computed_prompt_tokens, i == 0 ? 23 : 3);
    for (uint32_t j = 0; j < i; ++j) EXPECT_NE(output.token_ids(), (*outputs)[j].token_ids());
  }
  ExpectNothingLeaked(*engine);
}

TEST_P(EngineSampling, GreedyOutputsAreEqual) {
  FakeEngine engine(Options());
  Request request = GreedyRequest({5, 6, 7}, 8);
  request.sampling.n = 3;
  request.bypass_prefix_cache = true;  // nothing to wait for
  const auto outputs = GenerateOutputs(*engine, request);
  ASSERT_TRUE(outputs.ok()) << outputs.status();
  for (const GenerateResult& output : *outputs) {
    EXPECT_EQ(output.token_ids(), ReferenceTokens(request));
    EXPECT_EQ(output.usage.cached_tokens, 0);
    EXPECT_EQ(output.usage.computed_prompt_tokens, 3);
  }
}

TEST_P(EngineSampling, CancellingARequestEndsAllItsOutputs) {
  FakeEngine engine(Options());
  for (const size_t wait_for : {0, 1, 30}) {
    Request request = GreedyRequest({5, 6, 7}, 400);
    request.sampling.n = 5;
    auto other = std::make_shared<CollectingSink>();
    auto sink = std::make_shared<LimitedSink>(5, wait_for);
    const auto handle = engine->Submit(request, sink);
    ASSERT_TRUE(handle.ok());
    ASSERT_TRUE(engine->Submit(GreedyRequest({9}, 30), other).ok());
    while (sink->num_tokens() < wait_for) std::this_thread::yield();
    engine->Cancel(*handle);
    sink->Wait();
    for (const GenerateResult& output : sink->results()) {
      EXPECT_EQ(output.finish_reason, FinishReason::kCancelled);
    }
    EXPECT_EQ(other->Wait().finish_reason, FinishReason::kLength) << "another request goes on";
  }
  ExpectNothingLeaked(*engine);
}

TEST_P(EngineSampling, OutputsBeginWhenTheFirstEndsWithoutAToken) {
  FakeEngine engine(Options());
  Request request = GreedyRequest({5, 6, 7}, 5);
  request.sampling.n = 3;
  request.prompt_ids.push_back(kPoison);  // NaN: the first output fails, and so do the others
  const auto outputs = GenerateOutputs(*engine, request);
  ASSERT_TRUE(outputs.ok());
  for (const GenerateResult& output : *outputs) {
    EXPECT_EQ(output.finish_reason, FinishReason::kError) << output.status;
  }
  ExpectNothingLeaked(*engine);
}

TEST_P(EngineSampling, OutputsTakePlacesInTheQueue) {
  EngineOptions options = Options();
  options.max_queued_requests = 8;
  FakeEngine engine(options);
  Request request = GreedyRequest({5}, 3);
  request.sampling.n = 9;
  EXPECT_EQ(engine->Submit(request, std::make_shared<CollectingSink>(9)).status().code(),
            absl::StatusCode::kInvalidArgument);
  request.sampling.n = 6;
  auto waiting = std::make_shared<LimitedSink>(6, 0);  // gets no step
  const auto handle = engine->Submit(request, waiting);
  ASSERT_TRUE(handle.ok()) << handle.status();
  request.sampling.n = 3;
  EXPECT_EQ(engine->Submit(request, std::make_shared<CollectingSink>(3)).status().code(),
            absl::StatusCode::kResourceExhausted);
  request.sampling.n = 2;
  EXPECT_TRUE(GenerateOutputs(*engine, request).ok());
  engine->Cancel(*handle);
  waiting->Wait();
  ExpectNothingLeaked(*engine);
}

TEST_P(EngineSampling, TheTextMayEndWithTheStopString) {
  // Tokens 1, 2, 3, ... are a, b, c, ...
  FakeEngine engine(Options(), {1, 2, 3, 4, 5, 6, 7, 8});
  for (const bool include : {false, true}) {
    Request request = GreedyRequest({9}, 8);
    request.sampling.stop = {"de"};
    request.sampling.include_stop_str_in_output = include;
    const auto result = Generate(*engine, request);
    ASSERT_TRUE(result.ok());
    EXPECT_EQ(result->text, include ? "abcde" : "abc");
    EXPECT_EQ(result->stop_reason, "de");
  }
}

TEST_P(EngineSampling, BadWordsYieldWhereNothingElseIsAllowed) {
  FakeEngine engine(Options());
  Request request = GreedyRequest({9}, 6);
  request.sampling.allowed_token_ids = {1};
  request.sampling.bad_words = {"aa"};
  const auto result = Generate(*engine, request);
  ASSERT_TRUE(result.ok());
  EXPECT_EQ(result->text, "aaaaaa");
}

TEST_P(EngineSampling, RefusesAllowedTokensThatMinTokensForbids) {
  FakeEngine engine(Options());
  Request request = GreedyRequest({9}, 6);
  request.sampling.allowed_token_ids = {kFakeEos, 4};
  request.sampling.stop_token_ids = {4};
  request.sampling.min_tokens = 2;
  const absl::Status status = Generate(*engine, request).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), HasSubstr("min_tokens 2"));
  request.sampling.min_tokens = 0;
  EXPECT_TRUE(Generate(*engine, request).ok());
}

// Few different tokens: the same few come again and again, and guesses are often right.
Request Repetitive(std::mt19937& random, int32_t max_tokens) {
  std::vector<int32_t> prompt(3 + random() % 20);
  for (int32_t& token : prompt) token = 1 + static_cast<int32_t>(random() % 2);
  Request request = GreedyRequest(prompt, max_tokens);
  request.sampling.allowed_token_ids = {1, 2};
  if (random() % 2 == 0) {
    request.sampling.temperature = 1.0f;
    request.sampling.seed = random();
  }
  return request;
}

TEST_P(EngineSampling, PromptLookupChangesNoToken) {
  EngineOptions options = Options();
  options.num_kv_blocks = 24;
  FakeEngine engine(options);
  std::mt19937 random(5);
  std::vector<Request> requests;
  for (int i = 0; i < 60; ++i) {
    requests.push_back(Repetitive(random, 1 + static_cast<int32_t>(random() % 40)));
    requests.back().sampling.prompt_lookup_num_tokens = static_cast<int32_t>(random() % 6);
    requests.back().sampling.logprobs = static_cast<int32_t>(random() % 3) - 1;
    requests.back().sampling.min_tokens =
        std::min(requests.back().sampling.max_tokens, static_cast<int32_t>(random() % 4));
  }
  const auto results = GenerateAll(*engine, requests);
  ASSERT_TRUE(results.ok()) << results.status();
  for (size_t i = 0; i < requests.size(); ++i) {
    EXPECT_EQ((*results)[i].token_ids(), ReferenceTokens(requests[i])) << "request " << i;
    requests[i].sampling.prompt_lookup_num_tokens = 0;
    const auto plain = Generate(*engine, requests[i]);
    ASSERT_TRUE(plain.ok());
    for (size_t t = 0; t < plain->tokens.size(); ++t) {
      EXPECT_EQ((*results)[i].tokens[t].logprob, plain->tokens[t].logprob);
      EXPECT_EQ((*results)[i].tokens[t].top.size(), plain->tokens[t].top.size());
    }
  }
  const EngineStats stats = engine->Stats();
  EXPECT_GT(stats.preemptions, 0);
  EXPECT_GT(stats.accepted_draft_tokens, stats.draft_tokens / 10);
  EXPECT_GT(stats.draft_tokens, stats.accepted_draft_tokens) << "some were wrong";
  ExpectNothingLeaked(*engine);
}

TEST_P(EngineSampling, PromptLookupTakesFewerSteps) {
  // The model says 1 2 3 4 1 2 3 4 ..., which the prompt has said before.
  std::vector<int32_t> script;
  for (int i = 0; i < 200; ++i) script.push_back(1 + (i + 1) % 4);
  EngineOptions options = Options();
  options.prompt_lookup_num_tokens = 4;  // the engine's, for requests that do not say
  FakeEngine engine(options, script);
  const Request request = GreedyRequest({1, 2, 3, 4, 1, 2, 3, 4}, 41);
  const auto result = Generate(*engine, request);
  ASSERT_TRUE(result.ok());
  for (size_t i = 0; i < 41; ++i)
    EXPECT_EQ(result->token_ids()[i], 1 + static_cast<int32_t>(i % 4));
  EXPECT_EQ(engine->Stats().steps, 1 + 8) << "five tokens a step after the first";
  EXPECT_EQ(engine->Stats().accepted_draft_tokens, 32);
  Request off = request;
  off.sampling.prompt_lookup_num_tokens = 0;
  ASSERT_TRUE(Generate(*engine, off).ok());
  EXPECT_EQ(engine->Stats().accepted_draft_tokens, 32);
}

TEST_P(EngineSampling, PromptLookupEndsWhereTheTextEnds) {
  // Guesses are right beyond the stop string and beyond the end id.
  for (const bool stop_string : {true, false}) {
    std::vector<int32_t> script;
    for (int i = 0; i < 40; ++i) script.push_back(1 + (i + 1) % 4);
    if (!stop_string) script[17] = kFakeEos;
    FakeEngine engine(Options(), script);
    Request request = GreedyRequest({1, 2, 3, 4, 1, 2, 3, 4}, 30);
    request.sampling.prompt_lookup_num_tokens = 4;
    if (stop_string) request.sampling.stop = {"bc"};
    const auto result = Generate(*engine, request);
    ASSERT_TRUE(result.ok());
    EXPECT_EQ(result->finish_reason, FinishReason::kStop);
    EXPECT_EQ(result->text, stop_string ? "a" : "abcdabcdab");
    EXPECT_EQ(result->usage.completion_tokens, stop_string ? 3 : 11);
    EXPECT_EQ(result->tokens.size(), stop_string ? 3u : 11u);
    ExpectNothingLeaked(*engine);
  }
}

TEST_P(EngineSampling, DrawsUnderPromptLookupHaveTheModelsDistribution) {
  // Two tokens, one draw after a guess each: how often the first comes is as without guesses. The
  // tokens being equal is tested above; this is the distribution by itself.
  FakeEngine engine(Options());
  int plain = 0, looked_up = 0;
  constexpr int kRequests = 60, kTokens = 30;
  for (int i = 0; i < kRequests; ++i) {
    Request request = GreedyRequest({1, 2, 1, 2, 2, 1}, kTokens);
    request.sampling.allowed_token_ids = {1, 2};
    request.sampling.temperature = 1.0f;
    for (const int32_t lookup : {0, 4}) {
      request.sampling.seed = static_cast<uint64_t>(2 * i + (lookup > 0));  // other numbers
      request.sampling.prompt_lookup_num_tokens = lookup;
      const auto result = Generate(*engine, request);
      ASSERT_TRUE(result.ok());
      for (const int32_t token : result->token_ids())
        (lookup > 0 ? looked_up : plain) += token == 1;
    }
  }
  EXPECT_GT(engine->Stats().accepted_draft_tokens, 100);
  // 1800 draws each with probabilities near a half: five standard deviations of the difference.
  EXPECT_NEAR(plain, looked_up, 5 * std::sqrt(2 * kRequests * kTokens * 0.25));
}

TEST_P(EngineSampling, PromptLogprobsAreThoseOfDrawingThePrompt) {
  EngineOptions options = Options();
  options.num_kv_blocks = 20;
  FakeEngine engine(options);
  Request request =
      GreedyRequest({5, 9, 13, 7, 5, 9, 2, 2, 30, 41, 17, 8, 5, 33, 12, 11, 10, 9}, 4);
  request.sampling.prompt_logprobs = 3;
  request.sampling.n = 2;
  class Sink : public CollectingSink {
   public:
    Sink() : CollectingSink(2) {}
    void OnUpdate(RequestUpdate update) override {
      EXPECT_TRUE(update.prompt_tokens.empty() || update.index == 0);
      for (TokenOutput& token : update.prompt_tokens) prompt.push_back(std::move(token));
      CollectingSink::OnUpdate(std::move(update));
    }
    std::vector<TokenOutput> prompt;
  };
  for (int round = 0; round < 2; ++round) {  // the second time the prompt could be cached
    auto sink = std::make_shared<Sink>();
    auto others = std::make_shared<CollectingSink>();
    ASSERT_TRUE(engine->Submit(request, sink).ok());
    ASSERT_TRUE(engine->Submit(GreedyRequest({3, 4, 5}, 40), others).ok());
    sink->Wait();
    others->Wait();
    EXPECT_EQ(sink->results()[1].token_ids(), ReferenceTokens(request));
    ASSERT_EQ(sink->prompt.size(), request.prompt_ids.size() - 1);
    for (size_t i = 0; i < sink->prompt.size(); ++i) {
      // The same token forced on the engine as the only one allowed.
      Request one;
      one.prompt_ids.assign(request.prompt_ids.begin(),
                            request.prompt_ids.begin() + static_cast<std::ptrdiff_t>(i) + 1);
      one.sampling.max_tokens = 1;
      one.sampling.allowed_token_ids = {request.prompt_ids[i + 1]};
      one.sampling.logprobs = 3;
      const auto drawn = Generate(*engine, one);
      ASSERT_TRUE(drawn.ok());
      const TokenOutput& expected = drawn->tokens[0];
      EXPECT_EQ(sink->prompt[i].token_id, expected.token_id);
      EXPECT_EQ(sink->prompt[i].logprob, expected.logprob);
      ASSERT_EQ(sink->prompt[i].top.size(), 3u);
      EXPECT_EQ(sink->prompt[i].top[0].token_id, expected.top[0].token_id);
    }
  }
  ExpectNothingLeaked(*engine);
}

INSTANTIATE_TEST_SUITE_P(Depth, EngineSampling, testing::Values(0, 1));

}  // namespace
}  // namespace quantd
