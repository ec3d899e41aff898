// Sampling: the random numbers' known answers, what each filter keeps at its boundary, the
// distribution of draws, and rows with NaN and infinities.
#include "kernels/sampling.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <random>
#include <set>
#include <vector>

namespace quantd {
namespace {

using ::testing::ElementsAre;

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

int32_t Sample(std::vector<float> logits, const SampleParams& params) {
  std::vector<TokenLogprob> scratch(2 * logits.size());
  SampleResult result;
  SampleRow(logits, params, scratch, result);
  return result.token_id;
}

/// The tokens that `draws` draws at positions 0, 1, ... give.
std::set<int32_t> Drawn(const std::vector<float>& logits, SampleParams params,
                        uint32_t draws = 3000) {
  std::set<int32_t> drawn;
  for (params.position = 0; params.position < draws; ++params.position) {
    drawn.insert(Sample(logits, params));
  }
  return drawn;
}

std::vector<float> LogsOf(std::vector<float> probabilities) {
  for (float& p : probabilities) p = std::log(p);
  return probabilities;
}

TEST(Philox, GivesTheKnownAnswersOfRandom123) {
  struct {
    std::array<uint32_t, 4> counter;
    std::array<uint32_t, 2> key;
    std::array<uint32_t, 4> expected;
  } const cases[] = {
      {{0, 0, 0, 0}, {0, 0}, {0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}},
      {{0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff},
       {0xffffffff, 0xffffffff},
       {0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}},
      {{0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344},
       {0xa4093822, 0x299f31d0},
       {0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}},
  };
  for (const auto& c : cases) EXPECT_EQ(Philox4x32(c.counter, c.key), c.expected);
}

TEST(UniformOf, IsInTheUnitIntervalAndDiffersInEveryArgument) {
  std::set<float> seen;
  double sum = 0.0;
  for (uint32_t i = 0; i < 10000; ++i) {
    const float u = UniformOf(42, 0, i);
    EXPECT_GE(u, 0.0f);
    EXPECT_LT(u, 1.0f);
    sum += u;
    seen.insert(u);
  }
  EXPECT_GT(seen.size(), 9900u);
  EXPECT_NEAR(sum / 10000, 0.5, 5 / std::sqrt(12.0 * 10000));  // five standard errors
  const float u = UniformOf(42, 0, 7);
  for (float other : {UniformOf(43, 0, 7), UniformOf(42 + (uint64_t{1} << 32), 0, 7),
                      UniformOf(42, 1, 7), UniformOf(42, 0, 8)}) {
    EXPECT_NE(u, other);
  }
}

TEST(SampleRow, GreedyTakesTheLargestAndTheLowestIdOnTies) {
  const SampleParams greedy{.temperature = 0.0f};
  EXPECT_EQ(Sample({1, 3, 2}, greedy), 1);
  EXPECT_EQ(Sample({1, 3, 3, 3}, greedy), 1);
  EXPECT_EQ(Sample({-5}, greedy), 0);
}

TEST(SampleRow, GreedySkipsBannedIds) {
  const std::vector<int32_t> banned = {1, 3};
  EXPECT_EQ(Sample({1, 9, 2, 8}, {.temperature = 0.0f, .banned_ids = banned}), 2);
}

TEST(SampleRow, DrawsFromTheSoftmaxOfTheLogitsOverTheTemperature) {
  const std::vector<float> logits = {2.0f, 0.5f, -1.0f, 1.0f, 0.0f, 2.0f, -3.0f, 0.25f};
  for (float temperature : {0.5f, 1.0f, 2.0f}) {
    std::vector<double> expected;
    for (float l : logits) expected.push_back(std::exp(double{l} / double{temperature}));
    const double total = std::accumulate(expected.begin(), expected.end(), 0.0);
    constexpr uint32_t kDraws = 20000;
    std::vector<int> counts(logits.size());
    SampleParams params{.temperature = temperature, .seed = 12345};
    for (params.position = 0; params.position < kDraws; ++params.position) {
      ++counts[static_cast<size_t>(Sample(logits, params))];
    }
    double chi2 = 0.0;
    for (size_t i = 0; i < logits.size(); ++i) {
      const double mean = kDraws * expected[i] / total;
      chi2 += (counts[i] - mean) * (counts[i] - mean) / mean;
    }
    EXPECT_LT(chi2, 24.3) << temperature;  // 7 degrees of freedom, p = 0.001
  }
}

TEST(SampleRow, FiltersRenormalizeWhatTheyKeep) {
  const std::vector<float> logits = LogsOf({0.4f, 0.3f, 0.2f, 0.1f});
  constexpr uint32_t kDraws = 20000;
  std::vector<int> counts(4);
  SampleParams params{.top_p = 0.65f, .seed = 5};
  for (params.position = 0; params.position < kDraws; ++params.position) {
    ++counts[static_cast<size_t>(Sample(logits, params))];
  }
  EXPECT_EQ(counts[2] + counts[3], 0);
  EXPECT_NEAR(counts[0], kDraws * 4 / 7.0, 5 * std::sqrt(kDraws * 12 / 49.0));  // five sigma
}

TEST(SampleRow, TopKKeepsExactlyK) {
  const std::vector<float> logits = {0.0f, 0.4f, 0.1f, 0.3f, 0.2f};
  EXPECT_THAT(Drawn(logits, {.top_k = 1}), ElementsAre(1));
  EXPECT_THAT(Drawn(logits, {.top_k = 2}), ElementsAre(1, 3));
  EXPECT_THAT(Drawn(logits, {.top_k = 5}), ElementsAre(0, 1, 2, 3, 4));
  EXPECT_THAT(Drawn(logits, {.top_k = 99}), ElementsAre(0, 1, 2, 3, 4));
  EXPECT_THAT(Drawn(logits, {.top_k = 0}), ElementsAre(0, 1, 2, 3, 4));
}

TEST(SampleRow, TopKTakesTheLowerIdsOfATie) {
  EXPECT_THAT(Drawn({1, 0, 1, 1, 1}, {.top_k = 2}), ElementsAre(0, 2));
}

TEST(SampleRow, TopKComparesLogitsEvenWhereTheTemperatureFlattensThem) {
  EXPECT_THAT(Drawn({1.0f, 1.5f, 1.25f}, {.temperature = 1e30f, .top_k = 1}), ElementsAre(1));
}

TEST(SampleRow, TopPKeepsTheFewestThatReachIt) {
  const std::vector<float> logits = LogsOf({0.1f, 0.5f, 0.15f, 0.25f});
  EXPECT_THAT(Drawn(logits, {.top_p = 1e-6f}), ElementsAre(1));
  EXPECT_THAT(Drawn(logits, {.top_p = 0.49f}), ElementsAre(1));
  EXPECT_THAT(Drawn(logits, {.top_p = 0.51f}), ElementsAre(1, 3));
  EXPECT_THAT(Drawn(logits, {.top_p = 0.74f}), ElementsAre(1, 3));
  EXPECT_THAT(Drawn(logits, {.top_p = 0.76f}), ElementsAre(1, 2, 3));
  EXPECT_THAT(Drawn(logits, {.top_p = 1.0f}), ElementsAre(0, 1, 2, 3));
}

TEST(SampleRow, TopPIsExactAtItsBoundary) {
  // Two equal weights: the first alone is half of the total, exactly.
  EXPECT_THAT(Drawn({1, 1}, {.top_p = 0.5f}), ElementsAre(0));
  EXPECT_THAT(Drawn({1, 1}, {.top_p = std::nextafter(0.5f, 1.0f)}), ElementsAre(0, 1));
}

TEST(SampleRow, TopPCountsWithinWhatTopKAndMinPKept) {
  const std::vector<float> logits = LogsOf({0.4f, 0.3f, 0.2f, 0.1f});
  // Of 0.4 and 0.3 the first has 4/7 = 0.571.
  EXPECT_THAT(Drawn(logits, {.top_k = 2, .top_p = 0.55f}), ElementsAre(0));
  EXPECT_THAT(Drawn(logits, {.top_k = 2, .top_p = 0.6f}), ElementsAre(0, 1));
  EXPECT_THAT(Drawn(logits, {.top_p = 0.55f, .min_p = 0.7f}), ElementsAre(0));
}

TEST(SampleRow, MinPIsRelativeToTheMostLikely) {
  const std::vector<float> logits = {0.0f, std::log(0.5f), std::log(0.25f), -3.0f};
  EXPECT_THAT(Drawn(logits, {.min_p = 0.5f}), ElementsAre(0, 1));  // at the bound: kept
  EXPECT_THAT(Drawn(logits, {.min_p = std::nextafter(0.5f, 1.0f)}), ElementsAre(0));
  EXPECT_THAT(Drawn(logits, {.min_p = 0.2f}), ElementsAre(0, 1, 2));
  EXPECT_THAT(Drawn(logits, {.min_p = 0.0f}), ElementsAre(0, 1, 2, 3));
  EXPECT_THAT(Drawn({2, 2, 1}, {.min_p = 1.0f}), ElementsAre(0, 1));
  // It is a bound on the distribution after the temperature.
  EXPECT_THAT(Drawn(logits, {.temperature = 2.0f, .min_p = 0.5f}), ElementsAre(0, 1, 2));
}

TEST(SampleRow, NeverDrawsBannedIds) {
  // Many bans, in no order, with a mask and without: as a few.
  std::vector<int32_t> many;
  for (int32_t id = 99; id >= 0; --id) {
    if (id != 40 && id != 70) many.push_back(id);
  }
  const std::vector<float> flat(100, 1.0f);
  EXPECT_THAT(Drawn(flat, {.banned_ids = many}), ElementsAre(40, 70));
  const std::vector<uint32_t> below_64 = {~0u, ~0u, 0u, 0u};
  EXPECT_THAT(Drawn(flat, {.banned_ids = many, .allowed_mask = below_64}), ElementsAre(40));
  const std::vector<int32_t> banned = {0, 2};
  EXPECT_THAT(Drawn({5, 1, 5, 1}, {.banned_ids = banned}), ElementsAre(1, 3));
  // min_p and top_p are relative to the best that is left.
  EXPECT_THAT(Drawn({50, 1, 5, 1}, {.min_p = 0.9f, .banned_ids = banned}), ElementsAre(1, 3));
  EXPECT_THAT(Drawn({50, 1, 5, 0}, {.top_p = 0.5f, .banned_ids = banned}), ElementsAre(1));
  const std::vector<int32_t> all = {0, 1};
  EXPECT_EQ(Sample({1, 2}, {.banned_ids = all}), 0);
}

TEST(SampleRow, CountsNanAsMinusInfinity) {
  for (float temperature : {0.0f, 1.0f}) {
    const SampleParams params{.temperature = temperature};
    EXPECT_THAT(Drawn({kNan, -kInf, 1, kNan}, params, 200), ElementsAre(2));
    EXPECT_THAT(Drawn({kNan, kNan}, params, 10), ElementsAre(0));
    EXPECT_THAT(Drawn({-kInf, -kInf, -kInf}, params, 10), ElementsAre(0));
    EXPECT_THAT(Drawn({0, kInf, 3}, params, 200), ElementsAre(1));
  }
}

TEST(SampleRow, TinyAndHugeTemperaturesStayWithinTheRow) {
  EXPECT_THAT(Drawn({0, 1, 0.5f}, {.temperature = 1e-38f}, 200), ElementsAre(1));
  EXPECT_THAT(Drawn({0, 1, 0.5f}, {.temperature = 1e38f}), ElementsAre(0, 1, 2));
}

TEST(SampleRow, ASeedGivesTheSameDrawsAndAnotherSeedOthers) {
  std::vector<float> logits(1000, 0.0f);
  const auto draws = [&](uint64_t seed, uint32_t index) {
    std::vector<int32_t> ids;
    SampleParams params{.seed = seed, .sequence_index = index};
    for (params.position = 0; params.position < 20; ++params.position) {
      ids.push_back(Sample(logits, params));
    }
    return ids;
  };
  EXPECT_EQ(draws(1, 0), draws(1, 0));
  EXPECT_NE(draws(1, 0), draws(2, 0));
  EXPECT_NE(draws(1, 0), draws(1, 1));
}

/// The definition, slowly: sort everything, filter step by step, draw in order of id.
int32_t SampleBySorting(const std::vector<float>& logits, const SampleParams& p) {
  std::vector<int32_t> order(logits.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) {
    return logits[static_cast<size_t>(a)] > logits[static_cast<size_t>(b)];
  });
  const float largest = logits[static_cast<size_t>(order[0])];
  const auto weight = [&](int32_t id) {
    return double{std::exp((logits[static_cast<size_t>(id)] - largest) / p.temperature)};
  };
  if (p.top_k > 0 && static_cast<size_t>(p.top_k) < order.size())
    order.resize(static_cast<size_t>(p.top_k));
  while (weight(order.back()) < p.min_p) order.pop_back();
  double total = 0.0, reached = 0.0;
  for (int32_t id : order) total += weight(id);
  size_t kept = 0;
  while (kept < order.size() && (kept == 0 || reached < p.top_p * total))
    reached += weight(order[kept++]);
  order.resize(kept);
  std::sort(order.begin(), order.end());
  const double target = UniformOf(p.seed, p.sequence_index, p.position) * reached;
  double sum = 0.0;
  for (int32_t id : order) {
    sum += weight(id);
    if (sum > target) return id;
  }
  return order.back();
}

TEST(SampleRow, SaysWhetherTheRowIsSound) {
  const float inf = std::numeric_limits<float>::infinity();
  EXPECT_TRUE(LogitsAreSound(std::vector<float>{1.0f, -2.0f, -inf}));
  EXPECT_FALSE(LogitsAreSound(std::vector<float>{1.0f, inf}));
  EXPECT_FALSE(LogitsAreSound(std::vector<float>{kNan, 1.0f}));
}

TEST(SampleRow, EqualsTheDefinitionBySortingOnLargeRows) {
  std::mt19937 random(4);
  std::normal_distribution<float> normal(0.0f, 3.0f);
  for (uint32_t row = 0; row < 300; ++row) {
    std::vector<float> logits(1 + random() % 3000);
    for (float& l : logits) l = std::round(normal(random) * 8) / 8;  // many ties
    const SampleParams params{
        .temperature = 0.3f + 0.01f * static_cast<float>(row % 100),
        .top_k = static_cast<int32_t>(row % 4 == 0 ? 0 : random() % 60),
        .top_p = row % 3 == 0 ? 1.0f : 0.1f + 0.003f * static_cast<float>(row),
        .min_p = row % 5 == 0 ? 0.013f : 0.0f,
        .seed = 99,
        .position = row};
    EXPECT_EQ(Sample(logits, params), SampleBySorting(logits, params)) << "row " << row;
  }
}

TEST(SampleRow, LogprobsAreOfTheModelsOwnDistribution) {
  std::vector<float> logits = LogsOf({0.125f, 0.5f, 0.25f, 0.125f});
  std::vector<TokenLogprob> scratch(8), top(4);
  const std::vector<int32_t> banned = {1};
  SampleResult result;
  result.top = top;
  SampleRow(logits, {.temperature = 0.0f, .num_logprobs = 4, .banned_ids = banned}, scratch,
            result);
  EXPECT_EQ(result.token_id, 2);
  EXPECT_NEAR(result.logprob, std::log(0.25f), 1e-6f);
  ASSERT_EQ(result.top.size(), 4u);
  const int32_t ids[] = {1, 2, 0, 3};
  double sum = 0.0;
  for (size_t i = 0; i < 4; ++i) {
    EXPECT_EQ(result.top[i].token_id, ids[i]);
    EXPECT_NEAR(result.top[i].logprob, logits[static_cast<size_t>(ids[i])], 1e-6f);
    sum += std::exp(result.top[i].logprob);
  }
  EXPECT_NEAR(sum, 1.0, 1e-6);
}

TEST(SampleRow, ReportsAtMostTheVocabularyAndLeavesInfinitiesOut) {
  std::vector<TokenLogprob> scratch(6), top(10);
  SampleResult result;
  result.top = top;
  std::vector<float> logits = {kNan, 2.0f, -kInf};
  SampleRow(logits, {.temperature = 1.0f, .num_logprobs = 10}, scratch, result);
  EXPECT_EQ(result.token_id, 1);
  EXPECT_EQ(result.logprob, 0.0f);
  ASSERT_EQ(result.top.size(), 3u);
  EXPECT_EQ(result.top[0].token_id, 1);
  EXPECT_EQ(result.top[1].logprob, -kInf);
}

TEST(SampleRow, EditsAreBiasThenRepetitionThenPenalty) {
  const auto edited = [](float x, LogitEdit edit, float repetition) {
    return EditedLogit(x, edit, repetition);
  };
  EXPECT_EQ(edited(3.0f, {.bias = 1.0f}, 2.0f), 4.0f);
  EXPECT_EQ(edited(3.0f, {.bias = 1.0f, .penalty = 0.5f, .repeated = 1}, 2.0f), 1.5f);
  EXPECT_EQ(edited(-3.0f, {.penalty = 0.5f, .repeated = 1}, 2.0f), -6.5f);
  EXPECT_EQ(edited(-kInf, {.bias = 100.0f, .repeated = 1}, 0.5f), -kInf);
}

TEST(SampleRow, EditsDecideTheDrawAndLeaveLogitsAndLogprobsAlone) {
  const std::vector<float> before = LogsOf({0.125f, 0.5f, 0.25f, 0.125f});
  std::vector<float> logits = before;
  std::vector<TokenLogprob> scratch(8), top(1);
  const std::vector<LogitEdit> edits = {{.token_id = 1, .penalty = 5.0f},
                                        {.token_id = 3, .bias = 1.0f}};
  SampleResult result;
  result.top = top;
  SampleRow(logits, {.temperature = 0.0f, .num_logprobs = 1, .edits = edits}, scratch, result);
  EXPECT_EQ(result.token_id, 3);
  EXPECT_NEAR(result.logprob, before[3], 1e-6f);
  EXPECT_EQ(result.top[0].token_id, 1);
  EXPECT_EQ(logits, before);
}

TEST(SampleRow, DrawsOnlyWhatTheMaskAllows) {
  const std::vector<float> logits(70, 1.0f);
  const std::vector<uint32_t> mask = {1u << 4, 1u << 31, 1u << 2};
  EXPECT_EQ(Drawn(logits, {.allowed_mask = mask}), (std::set<int32_t>{4, 63, 66}));
  const std::vector<int32_t> banned = {63};
  EXPECT_EQ(Drawn(logits, {.banned_ids = banned, .allowed_mask = mask}),
            (std::set<int32_t>{4, 66}));
  EXPECT_EQ(Sample(logits, {.temperature = 0.0f, .allowed_mask = mask}), 4);
}

TEST(SampleRow, AForcedTokenIsReportedAsIfDrawn) {
  std::vector<float> logits = LogsOf({0.125f, 0.5f, 0.25f, 0.125f});
  std::vector<TokenLogprob> scratch(8), top(1);
  SampleResult result;
  result.top = top;
  SampleRow(logits, {.temperature = 0.0f, .num_logprobs = 1, .forced_id = 2}, scratch, result);
  EXPECT_EQ(result.token_id, 2);
  EXPECT_NEAR(result.logprob, std::log(0.25f), 1e-6f);
}

}  // namespace
}  // namespace quantd
