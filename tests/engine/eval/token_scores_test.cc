#include "engine/eval/token_scores.h"

#include <gtest/gtest.h>

#include <cmath>
#include <random>

namespace quantd {
namespace {

std::vector<double> Softmax(std::span<const float> row) {
  std::vector<double> p;
  double sum = 0;
  for (const float x : row) sum += p.emplace_back(std::exp(static_cast<double>(x)));
  for (double& v : p) v /= sum;
  return p;
}

std::vector<float> Random(size_t count, uint32_t seed) {
  std::mt19937 random(seed);
  std::vector<float> out(count);
  for (float& v : out) v = static_cast<float>(random() % 20001) / 1000.0f - 10.0f;
  return out;
}

TEST(ScoreTokens, AreTheDefinitionsInDouble) {
  constexpr int64_t kVocab = 301, kRows = 17;
  const std::vector<float> logits = Random(kVocab * kRows, 1);
  std::vector<float> reference = logits;
  const std::vector<float> noise = Random(kVocab * kRows, 2);
  for (size_t i = 0; i < reference.size(); ++i) reference[i] += 0.05f * noise[i];
  std::vector<int32_t> targets;
  for (int32_t r = 0; r < kRows; ++r) targets.push_back(r * 13 % kVocab);
  const auto scores = ScoreTokens(logits, reference, targets, kVocab, 3);
  ASSERT_EQ(scores.size(), targets.size());
  for (size_t r = 0; r < scores.size(); ++r) {
    const auto q = Softmax(std::span(logits).subspan(r * kVocab, kVocab));
    const auto p = Softmax(std::span(reference).subspan(r * kVocab, kVocab));
    double kl = 0;
    for (size_t i = 0; i < p.size(); ++i) kl += p[i] * std::log(p[i] / q[i]);
    const size_t t = static_cast<size_t>(targets[r]);
    EXPECT_NEAR(scores[r].nll, -std::log(q[t]), 1e-5);
    EXPECT_NEAR(scores[r].reference_nll, -std::log(p[t]), 1e-5);
    EXPECT_NEAR(scores[r].kl, kl, 1e-6);
    EXPECT_EQ(scores[r].top1, std::max_element(p.begin(), p.end()) - p.begin() ==
                                  std::max_element(q.begin(), q.end()) - q.begin());
  }
  // Without a reference the same, and any number of threads.
  const auto alone = ScoreTokens(logits, {}, targets, kVocab, 1);
  for (size_t r = 0; r < scores.size(); ++r) {
    EXPECT_NEAR(alone[r].nll, scores[r].nll, 1e-5);
    EXPECT_EQ(alone[r].kl, 0.0f);
  }
}

TEST(ScoreTokens, OfTheSameLogitsDoNotDiffer) {
  const std::vector<float> logits = Random(4096, 3);
  const TokenScore score = ScoreTokens(logits, logits, std::vector<int32_t>{7}, 4096, 1)[0];
  EXPECT_EQ(score.kl, 0.0f);
  EXPECT_EQ(score.nll, score.reference_nll);
  EXPECT_TRUE(score.top1);
  EXPECT_EQ(score.top5, 5);
}

TEST(ScoreTokens, LargeLogitsDoNotOverflow) {
  const std::vector<float> q = {1e4f, 0.0f}, p = {0.0f, 1e4f};
  const TokenScore score = ScoreTokens(q, p, std::vector<int32_t>{1}, 2, 1)[0];
  EXPECT_FLOAT_EQ(score.nll, 1e4f);
  EXPECT_FLOAT_EQ(score.kl, 1e4f);
  EXPECT_FALSE(score.top1);
}

TEST(ScoreTokens, TopFiveAreCountedAsASetAndTiesGoToTheSmallerId) {
  const std::vector<float> p = {9, 8, 7, 6, 5, 4, 3, 2};
  const std::vector<float> q = {5, 6, 7, 8, 1, 9, 9, 0};  // 5, 6, 3, 2, 1
  TokenScore score = ScoreTokens(q, p, std::vector<int32_t>{0}, 8, 1)[0];
  EXPECT_EQ(score.top5, 3);
  EXPECT_FALSE(score.top1);
  const std::vector<float> even = {1, 1, 1, 1, 1, 1, 1, 1};
  score = ScoreTokens(even, p, std::vector<int32_t>{0}, 8, 1)[0];
  EXPECT_EQ(score.top5, 5) << "0 to 4";
  EXPECT_TRUE(score.top1);
  EXPECT_EQ(Likeliest(even), 0);
}

TEST(ScoreTokens, SmallVocabulariesHaveFewerThanFive) {
  const std::vector<float> q = {1, 2, 3}, p = {3, 2, 1};
  EXPECT_EQ(ScoreTokens(q, p, std::vector<int32_t>{0}, 3, 1)[0].top5, 3);
}

TEST(ScoreTokens, ABrokenRowIsNotANumber) {
  const std::vector<float> q = {NAN, 2, 3};
  EXPECT_FALSE(std::isfinite(ScoreTokens(q, {}, std::vector<int32_t>{1}, 3, 1)[0].nll));
}

}  // namespace
}  // namespace quantd
