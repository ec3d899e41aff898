#include "engine/eval/eval_summary.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <numbers>

namespace quantd {
namespace {

using ::testing::ElementsAre;

WindowScore Window(int64_t index, int64_t tokens, double nll, double reference_nll) {
  WindowScore w;
  w.window = index;
  w.tokens = w.rows = tokens;
  w.bytes = 4 * tokens;
  w.nll = nll;
  w.reference_nll = reference_nll;
  w.seconds = 0.5;
  w.top1 = tokens / 2;
  w.top5 = tokens * 4;
  for (int64_t i = 0; i < tokens; ++i) w.kl.push_back(static_cast<float>(i) / 1000.0f);
  return w;
}

TEST(SummarizeProfile, IsOfAllTokens) {
  const std::vector<WindowScore> windows = {Window(0, 100, 310, 300), Window(1, 300, 930, 900)};
  const ProfileResult r = SummarizeProfile({}, windows, true);
  EXPECT_EQ(r.tokens, 400);
  EXPECT_DOUBLE_EQ(r.perplexity, std::exp(3.1));
  EXPECT_DOUBLE_EQ(r.bits_per_byte, 3.1 / std::numbers::ln2 / 4);
  EXPECT_DOUBLE_EQ(r.prefill_tokens_per_second, 400);
  EXPECT_DOUBLE_EQ(r.retention.value, std::exp(-0.1));
  EXPECT_DOUBLE_EQ(r.top1, 0.5);
  EXPECT_DOUBLE_EQ(r.top5, 0.8);
  EXPECT_NEAR(r.kl_mean, (99.0 * 100 / 2 + 299.0 * 300 / 2) / 400 / 1000, 1e-6);
  EXPECT_NEAR(r.kl_max, 0.299, 1e-6);
  EXPECT_NEAR(r.kl_p99, 0.296, 0.002);
  EXPECT_NEAR(r.kl_median, 0.1, 0.002);
}

TEST(SummarizeProfile, IntervalIsOfTheWindowsAndTheSameAgain) {
  std::vector<WindowScore> windows;
  for (int64_t i = 0; i < 50; ++i) {
    windows.push_back(Window(i, 100, 300 + static_cast<double>(i % 5), 300));
  }
  const Interval r = SummarizeProfile({}, windows, true).retention;
  ASSERT_TRUE(r.low && r.high);
  EXPECT_LT(*r.low, r.value);
  EXPECT_GT(*r.high, r.value);
  // Standard error of the mean of {0..4} over 50 windows, of 100 tokens each: 0.2 in 100 nats.
  EXPECT_NEAR(*r.high - *r.low, 2 * 1.96 * 0.002 * r.value, 0.002);
  EXPECT_EQ(*SummarizeProfile({}, windows, true).retention.low, *r.low);

  const Interval one = SummarizeProfile({}, std::span(windows).first(1), true).retention;
  EXPECT_FALSE(one.low || one.high) << "one window says nothing of how windows differ";
}

TEST(SummarizeProfile, WithoutAReferenceNothingIsCompared) {
  const std::vector<WindowScore> windows = {Window(0, 100, 310, 0)};
  const ProfileResult r = SummarizeProfile({}, windows, false);
  EXPECT_FALSE(r.compared);
  EXPECT_GT(r.perplexity, 1);
}

TEST(ParetoFront, HasWhatNothingBeats) {
  std::vector<ProfileResult> profiles(6);
  const std::pair<int64_t, double> figures[] = {{100, 0.0}, {50, 0.1}, {60, 0.2},
                                                {40, 0.5},  {40, 0.4}, {10, 0.9}};
  for (size_t i = 0; i < profiles.size(); ++i) {
    profiles[i].compared = true;
    profiles[i].facts.resident_bytes = figures[i].first;
    profiles[i].kl_mean = figures[i].second;
  }
  EXPECT_THAT(ParetoFront(profiles), ElementsAre(5, 4, 1, 0));
  profiles[5].refusal = "does not fit";
  EXPECT_THAT(ParetoFront(profiles), ElementsAre(4, 1, 0));
}

}  // namespace
}  // namespace quantd
