// Properties of the engine on the device under test, with the small fixtures: a request's tokens do
// not depend on what runs beside it (batch-invariant), nor on how far ahead the engine is, nor on
// graphs.
#include <gtest/gtest.h>

#include <random>

#include "engine/generate.h"
#include "engine/weights/profile.h"
#include "tests/bench/cuda/test_name.h"
#include "tests/engine/models/load_helpers.h"
#include "tests/engine/models/model_runner.h"

namespace quantd {
namespace {

using testing_support::kModels;
using testing_support::TheDeviceUnderTest;

struct Setup {
  Determinism determinism = Determinism::kBatchInvariant;
  int32_t max_num_seqs = 8;
  int32_t max_num_batched_tokens = 64;
  int32_t pipeline_depth = 0;
};

std::vector<Request> Requests(int64_t vocab) {
  std::mt19937 random(5);
  std::vector<Request> requests;
  for (int i = 0; i < 6; ++i) {
    Request request;
    for (int t = 0; t < 1 + 7 * i; ++t) {
      request.prompt_ids.push_back(static_cast<int32_t>(random() % static_cast<uint64_t>(vocab)));
    }
    request.sampling.max_tokens = 6;
    request.sampling.ignore_eos = true;
    request.sampling.temperature = i % 2 == 0 ? 0.0f : 0.8f;
    request.sampling.seed = static_cast<uint64_t>(i);
    request.bypass_prefix_cache = true;
    requests.push_back(std::move(request));
  }
  return requests;
}

/// Token ids of every request, all submitted at once.
std::vector<std::vector<int32_t>> TokensOf(const std::string& profile, const Setup& setup) {
  const auto backend = TheDeviceUnderTest().create(setup.determinism);
  LoadOptions load = testing_support::OptionsFor(kModels / "llama_bf16", profile);
  load.max_rows = setup.max_num_batched_tokens;
  auto model = LoadModel(*backend, load);
  EXPECT_TRUE(model.ok()) << model.status();
  if (!model.ok()) return {};
  const auto requests = Requests(model->spec.vocab_size);
  EngineOptions options;
  options.max_num_seqs = setup.max_num_seqs;
  options.max_num_batched_tokens = setup.max_num_batched_tokens;
  options.num_kv_blocks = 64;
  options.pipeline_depth = setup.pipeline_depth;
  auto engine = Engine::Create(*backend, std::move(*model), nullptr, options);
  EXPECT_TRUE(engine.ok()) << engine.status();
  if (!engine.ok()) return {};
  const auto results = GenerateAll(**engine, requests);
  EXPECT_TRUE(results.ok()) << results.status();
  std::vector<std::vector<int32_t>> ids;
  if (!results.ok()) return ids;
  for (const GenerateResult& result : *results) {
    EXPECT_EQ(result.finish_reason, FinishReason::kLength) << result.status;
    ids.push_back(result.token_ids());
  }
  return ids;
}

class EngineOnDevice : public ::testing::TestWithParam<const char*> {};

TEST_P(EngineOnDevice, TokensDoNotDependOnTheBatchOrThePipeline) {
  const std::vector<std::vector<int32_t>> alone = TokensOf(GetParam(), {.max_num_seqs = 1});
  ASSERT_EQ(alone.size(), 6u);
  EXPECT_EQ(TokensOf(GetParam(), {}), alone) << "batched";
  EXPECT_EQ(TokensOf(GetParam(), {.max_num_batched_tokens = 9}), alone) << "chunked";
  EXPECT_EQ(TokensOf(GetParam(), {.pipeline_depth = 1}), alone) << "one step ahead";
}

TEST_P(EngineOnDevice, TheFastestKernelsGenerateToo) {
  const auto ids =
      TokensOf(GetParam(), {.determinism = Determinism::kDefault, .pipeline_depth = 1});
  ASSERT_EQ(ids.size(), 6u);
  for (const auto& tokens : ids) EXPECT_EQ(tokens.size(), 6u);
}

INSTANTIATE_TEST_SUITE_P(Profiles, EngineOnDevice, ::testing::Values("nf4-dq", "int8", "bf16"),
                         WithoutDashes());

}  // namespace
}  // namespace quantd
