// The engine's bookkeeping: what Forward is given through slots, tables and feedback must be each
// request's own history, however it was batched, chunked, cached or preempted, at depth 0 and 1.
#include <gtest/gtest.h>

#include <random>
#include <thread>

#include "tests/engine/fake_model.h"

namespace quantd {
namespace {

std::vector<int32_t> RandomPrompt(std::mt19937* random, size_t size) {
  std::vector<int32_t> prompt;
  for (size_t i = 0; i < size; ++i) prompt.push_back(1 + static_cast<int32_t>((*random)() % 60));
  return prompt;
}

class EngineFake : public testing::TestWithParam<int> {
 protected:
  EngineOptions Options() const { return SmallOptions(GetParam()); }
};

TEST_P(EngineFake, GeneratesTheModelsTokens) {
  FakeEngine engine(Options());
  const Request request = GreedyRequest({5, 6, 7}, 20);
  auto result = Generate(*engine, request);
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_EQ(result->token_ids(), ReferenceTokens(request));
  EXPECT_EQ(result->finish_reason, FinishReason::kLength);
  EXPECT_EQ(result->usage.prompt_tokens, 3);
  EXPECT_EQ(result->usage.completion_tokens, 20);
  EXPECT_EQ(result->text, engine.tokenizer.Decode(result->token_ids(), true));
  EXPECT_EQ(engine.backend.feedbacks.load() > 0, GetParam() == 1);
  ExpectNothingLeaked(*engine);
}

TEST_P(EngineFake, ManyRequestsBatchedChunkedCachedAndPreemptedKeepTheirOwnHistory) {
  EngineOptions options = Options();
  options.num_kv_blocks = 24;  // 96 tokens for four sequences of up to 70
  FakeEngine engine(options);
  std::mt19937 random(1);
  const auto shared = RandomPrompt(&random, 20);
  std::vector<Request> requests;
  for (int i = 0; i < 60; ++i) {
    std::vector<int32_t> prompt;
    if (i % 2 == 0) prompt.assign(shared.begin(), shared.begin() + random() % 20);
    const auto rest = RandomPrompt(&random, 1 + random() % 20);
    prompt.insert(prompt.end(), rest.begin(), rest.end());
    Request request = GreedyRequest(prompt, 1 + static_cast<int32_t>(random() % 30));
    request.priority = static_cast<int32_t>(random() % 2);
    request.bypass_prefix_cache = random() % 8 == 0;
    if (random() % 2 == 0) {
      request.sampling.temperature = 1.0f;
      request.sampling.seed = random();
      request.sampling.top_p = 0.9f;
      request.sampling.top_k = 30;
    }
    requests.push_back(request);
  }
  auto results = GenerateAll(*engine, requests);
  ASSERT_TRUE(results.ok()) << results.status();
  for (size_t i = 0; i < requests.size(); ++i) {
    EXPECT_EQ((*results)[i].token_ids(), ReferenceTokens(requests[i])) << "request " << i;
  }
  const EngineStats stats = engine->Stats();
  EXPECT_GT(stats.preemptions, 0);
  EXPECT_GT(stats.prefix_cache_hits, 0);
  EXPECT_GT(stats.prefix_cache_queries, stats.prefix_cache_hits);
  ExpectNothingLeaked(*engine);
}

TEST_P(EngineFake, APromptLongerThanTheBudgetTakesSeveralSteps) {
  FakeEngine engine(Options());
  std::mt19937 random(2);
  const Request request = GreedyRequest(RandomPrompt(&random, 100), 1);
  auto result = Generate(*engine, request);
  ASSERT_TRUE(result.ok());
  EXPECT_EQ(result->token_ids(), ReferenceTokens(request));
  EXPECT_EQ(engine->Stats().steps, 7) << "100 tokens, 16 a step";
  EXPECT_EQ(engine->Stats().prompt_tokens, 100);
}

TEST_P(EngineFake, ASecondEqualPromptIsTakenFromTheCache) {
  FakeEngine engine(Options());
  std::mt19937 random(3);
  const Request request = GreedyRequest(RandomPrompt(&random, 30), 9);
  auto cold = Generate(*engine, request);
  auto cached = Generate(*engine, request);
  Request bypass = request;
  bypass.bypass_prefix_cache = true;
  auto bypassed = Generate(*engine, bypass);
  ASSERT_TRUE(cold.ok() && cached.ok() && bypassed.ok());
  EXPECT_EQ(cold->usage.cached_tokens, 0);
  EXPECT_EQ(cached->usage.cached_tokens, 28) << "seven full blocks of four";
  EXPECT_EQ(bypassed->usage.cached_tokens, 0);
  EXPECT_EQ(cached->token_ids(), cold->token_ids());
  EXPECT_EQ(bypassed->token_ids(), cold->token_ids());
  ExpectNothingLeaked(*engine);
}

TEST_P(EngineFake, WithoutPrefixCachingNothingIsLookedUp) {
  EngineOptions options = Options();
  options.enable_prefix_caching = false;
  FakeEngine engine(options);
  for (int i = 0; i < 2; ++i) {
    auto result = Generate(*engine, GreedyRequest({1, 2, 3, 4, 5, 6, 7, 8, 9}, 2));
    ASSERT_TRUE(result.ok());
    EXPECT_EQ(result->usage.cached_tokens, 0);
  }
  EXPECT_EQ(engine->Stats().prefix_cache_queries, 0);
}

TEST_P(EngineFake, ASeedGivesTheSameTokensAloneAndInABatch) {
  Request request = GreedyRequest({9, 8, 7}, 24);
  request.sampling.temperature = 1.5f;
  request.sampling.seed = 1234;
  FakeEngine engine(Options());
  auto alone = Generate(*engine, request);
  ASSERT_TRUE(alone.ok());
  std::vector<Request> batch(8, request);
  for (size_t i = 1; i < batch.size(); i += 2) batch[i].sampling.seed = 1234 + i;
  auto results = GenerateAll(*engine, batch);
  ASSERT_TRUE(results.ok());
  for (size_t i = 0; i < batch.size(); ++i) {
    if (i % 2 == 0) {
      EXPECT_EQ((*results)[i].token_ids(), alone->token_ids());
    } else {
      EXPECT_NE((*results)[i].token_ids(), alone->token_ids());
    }
  }
}

TEST_P(EngineFake, RequestsWithoutASeedDiffer) {
  Request request = GreedyRequest({9, 8, 7}, 24);
  request.sampling.temperature = 1.5f;
  FakeEngine engine(Options());
  auto results = GenerateAll(*engine, {request, request});
  ASSERT_TRUE(results.ok());
  EXPECT_NE((*results)[0].token_ids(), (*results)[1].token_ids());
}

TEST_P(EngineFake, LogprobsComeAsAskedFor) {
  FakeEngine engine(Options());
  for (const int32_t asked : {-1, 0, 1, 5, 20}) {
    Request request = GreedyRequest({4, 4, 4}, 6);
    request.sampling.logprobs = asked;
    auto result = Generate(*engine, request);
    ASSERT_TRUE(result.ok());
    EXPECT_EQ(result->token_ids(), ReferenceTokens(request));
    for (const TokenOutput& token : result->tokens) {
      EXPECT_EQ(token.top.size(), static_cast<size_t>(std::max(asked, 0)));
      if (asked >= 0) {
        EXPECT_LT(token.logprob, 0.0f);
      }
      if (!token.top.empty()) {
        EXPECT_EQ(token.top[0].token_id, token.token_id) << "greedy draws the most likely";
        EXPECT_EQ(token.top[0].logprob, token.logprob);
      }
    }
  }
}

TEST_P(EngineFake, NonFiniteLogitsEndOnlyTheirRequest) {
  FakeEngine engine(Options());
  std::vector<Request> requests = {GreedyRequest({1, 2, 3}, 12),
                                   GreedyRequest({1, 2, 3, 4, 5, 6, 7, 8, kPoison}, 12),
                                   GreedyRequest({7, 8, 9}, 12)};
  auto results = GenerateAll(*engine, requests);
  ASSERT_TRUE(results.ok());
  EXPECT_EQ((*results)[0].token_ids(), ReferenceTokens(requests[0]));
  EXPECT_EQ((*results)[2].token_ids(), ReferenceTokens(requests[2]));
  EXPECT_EQ((*results)[1].finish_reason, FinishReason::kError);
  EXPECT_EQ((*results)[1].status.code(), absl::StatusCode::kInternal);
  EXPECT_NE(Message((*results)[1].status).find("non-finite logits"), std::string::npos);
  EXPECT_TRUE((*results)[1].tokens.empty());
  auto again = Generate(*engine, requests[0]);
  ASSERT_TRUE(again.ok());
  EXPECT_EQ(again->token_ids(), ReferenceTokens(requests[0]));
  ExpectNothingLeaked(*engine);
}

TEST_P(EngineFake, ManyThreadsMaySubmitAtOnce) {
  FakeEngine engine(Options());
  std::vector<std::thread> threads;
  std::atomic<int> right{0};
  for (int t = 0; t < 6; ++t) {
    threads.emplace_back([&, t] {
      std::mt19937 random(static_cast<uint32_t>(t));
      for (int i = 0; i < 10; ++i) {
        const Request request = GreedyRequest(RandomPrompt(&random, 1 + random() % 12), 8);
        auto result = Generate(*engine, request);
        if (result.ok() && result->token_ids() == ReferenceTokens(request)) ++right;
      }
    });
  }
  for (auto& thread : threads) thread.join();
  EXPECT_EQ(right.load(), 60);
  ExpectNothingLeaked(*engine);
}

INSTANTIATE_TEST_SUITE_P(Depth, EngineFake, testing::Values(0, 1));

}  // namespace
}  // namespace quantd
