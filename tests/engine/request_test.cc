// ValidateSampling: every limit by table, each fault named with its value.
#include "engine/request.h"

#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <limits>

#include "kernels/status.h"

namespace quantd {
namespace {

TEST(ValidateSampling, RefusesByNameAndValue) {
  constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
  constexpr float kInf = std::numeric_limits<float>::infinity();
  struct Row {
    std::function<void(SamplingParams*)> set;
    std::string message;
  };
  const std::vector<Row> rows = {
      {[](auto* p) { p->temperature = -0.1f; }, "temperature is -0.1"},
      {[=](auto* p) { p->temperature = kNan; }, "temperature is nan"},
      {[=](auto* p) { p->temperature = kInf; }, "temperature is inf"},
      {[](auto* p) { p->top_p = 0.0f; }, "top_p is 0"},
      {[](auto* p) { p->top_p = 1.01f; }, "top_p is 1.01"},
      {[=](auto* p) { p->top_p = kNan; }, "top_p is nan"},
      {[](auto* p) { p->top_k = -1; }, "top_k is -1"},
      {[](auto* p) { p->min_p = -0.5f; }, "min_p is -0.5"},
      {[](auto* p) { p->min_p = 1.5f; }, "min_p is 1.5"},
      {[=](auto* p) { p->min_p = kNan; }, "min_p is nan"},
      {[](auto* p) { p->max_tokens = 0; }, "max_tokens is 0"},
      {[](auto* p) { p->min_tokens = -1; }, "min_tokens is -1"},
      {[](auto* p) { p->min_tokens = 17; }, "min_tokens is 17, allowed: 0 to max_tokens (16)"},
      {[](auto* p) { p->stop.assign(17, "x"); }, "stop has 17 strings"},
      {[](auto* p) {
         p->stop = {"ok", ""};
       },
       "stop[1] has 0 bytes"},
      {[](auto* p) { p->stop = {std::string(257, 'x')}; }, "stop[0] has 257 bytes"},
      {[](auto* p) { p->stop = {"ab\xC3"}; }, "stop[0] is not valid UTF-8 at byte 2"},
      {[](auto* p) {
         p->stop_token_ids = {5, 100};
       },
       "stop_token_ids[1] is 100, allowed: 0 to 99"},
      {[](auto* p) { p->stop_token_ids = {-1}; }, "stop_token_ids[0] is -1"},
      {[](auto* p) { p->stop_token_ids.assign(100, 1); }, "stop_token_ids has 100 ids"},
      {[](auto* p) { p->stop_token_ids.assign(1025, 1); }, "stop_token_ids has 1025 ids"},
      {[](auto* p) { p->logprobs = -2; }, "logprobs is -2"},
      {[](auto* p) { p->logprobs = 21; }, "logprobs is 21"},
      {[](auto* p) { p->repetition_penalty = 0.0f; }, "repetition_penalty is 0"},
      {[=](auto* p) { p->repetition_penalty = kInf; }, "repetition_penalty is inf"},
      {[=](auto* p) { p->repetition_penalty = kNan; }, "repetition_penalty is nan"},
      {[](auto* p) { p->presence_penalty = 2.5f; }, "presence_penalty is 2.5, allowed: -2 to 2"},
      {[=](auto* p) { p->frequency_penalty = kNan; }, "frequency_penalty is nan"},
      {[](auto* p) {
         p->logit_bias = {{3, 1.0f}, {100, 1.0f}};
       },
       "logit_bias[100]"},
      {[](auto* p) {
         p->logit_bias = {{-1, 1.0f}};
       },
       "logit_bias[-1]"},
      {[](auto* p) {
         p->logit_bias = {{7, 100.5f}};
       },
       "logit_bias[7] is 100.5"},
      {[=](auto* p) {
         p->logit_bias = {{7, kNan}};
       },
       "logit_bias[7] is nan"},
      {[](auto* p) {
         p->logit_bias.assign(1025, {1, 1.0f});
       },
       "logit_bias has 1025 entries"},
      {[](auto* p) {
         p->allowed_token_ids = {1, 100};
       },
       "allowed_token_ids[1] is 100"},
      {[](auto* p) { p->allowed_token_ids.assign(101, 1); }, "allowed_token_ids has 101 ids"},
      {[](auto* p) { p->bad_words.assign(129, "x"); }, "bad_words has 129 strings"},
      {[](auto* p) { p->bad_words = {""}; }, "bad_words[0] has 0 bytes"},
      {[](auto* p) { p->bad_words = {"\xFF"}; }, "bad_words[0] is not valid UTF-8 at byte 0"},
      {[](auto* p) { p->prompt_logprobs = 21; }, "prompt_logprobs is 21"},
      {[](auto* p) { p->prompt_lookup_num_tokens = 17; }, "prompt_lookup_num_tokens is 17"},
      {[](auto* p) { p->n = 0; }, "n is 0, allowed: 1 to 128"},
      {[](auto* p) { p->n = 1000000; }, "n is 1000000"},
  };
  for (const Row& row : rows) {
    SamplingParams params;
    row.set(&params);
    const absl::Status status = ValidateSampling(params, 100);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << row.message;
    EXPECT_NE(Message(status).find(row.message), std::string::npos) << status;
  }
}

TEST(ValidateSampling, TakesDefaultsAndLimits) {
  EXPECT_TRUE(ValidateSampling({}, 100).ok());
  SamplingParams params;
  params.temperature = 0.0f;
  params.top_p = 1e-6f;
  params.top_k = 1000000;
  params.min_p = 1.0f;
  params.max_tokens = params.min_tokens = 7;
  params.stop.assign(16, std::string(256, 'x'));
  params.stop_token_ids = {0, 99};
  params.logprobs = 20;
  params.repetition_penalty = 1e-3f;
  params.presence_penalty = -2.0f;
  params.frequency_penalty = 2.0f;
  params.logit_bias = {{0, -100.0f}, {99, 100.0f}};
  params.allowed_token_ids = {0, 99};
  params.bad_words.assign(128, std::string(256, 'x'));
  params.n = 128;
  EXPECT_TRUE(ValidateSampling(params, 100).ok());
}

TEST(FinishReason, HasTheFieldsNames) {
  EXPECT_EQ(ToString(FinishReason::kStop), "stop");
  EXPECT_EQ(ToString(FinishReason::kLength), "length");
  EXPECT_EQ(ToString(FinishReason::kCancelled), "cancelled");
  EXPECT_EQ(ToString(FinishReason::kError), "error");
}

}  // namespace
}  // namespace quantd
