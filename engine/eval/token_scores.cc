#include "engine/eval/token_scores.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <cmath>
#include <thread>

#include "kernels/check.h"

namespace quantd {
namespace {

using Top = std::array<int32_t, kTopTokens>;

// Ids of the largest logits, largest first; -1 where the vocabulary is smaller.
Top TopOf(std::span<const float> row) {
  Top top;
  top.fill(-1);
  std::array<float, kTopTokens> value;
  value.fill(-INFINITY);
  for (size_t i = 0; i < row.size(); ++i) {
    if (!(row[i] > value.back()) && top.back() >= 0) continue;
    size_t at = kTopTokens - 1;
    while (at > 0 && (top[at - 1] < 0 || row[i] > value[at - 1])) {
      top[at] = top[at - 1];
      value[at] = value[at - 1];
      --at;
    }
    top[at] = static_cast<int32_t>(i);
    value[at] = row[i];
  }
  return top;
}

float Largest(std::span<const float> row) { return *std::max_element(row.begin(), row.end()); }

TokenScore ScoreOne(std::span<const float> row, int32_t target) {
  const float largest = Largest(row);
  double sum = 0.0;
  for (const float x : row) sum += static_cast<double>(std::exp(x - largest));
  TokenScore score;
  score.nll = static_cast<float>(std::log(sum) + largest - row[static_cast<size_t>(target)]);
  return score;
}

// KL(p || q) = sum p (log p - log q) = sum p (x_p - x_q) - (log Z_p - log Z_q), x the logits less
// their largest.
TokenScore CompareOne(std::span<const float> row, std::span<const float> reference,
                      int32_t target) {
  const float q_largest = Largest(row), p_largest = Largest(reference);
  double q_sum = 0.0, p_sum = 0.0, difference = 0.0;
  for (size_t i = 0; i < row.size(); ++i) {
    const float xq = row[i] - q_largest, xp = reference[i] - p_largest;
    const double p = static_cast<double>(std::exp(xp));
    q_sum += static_cast<double>(std::exp(xq));
    p_sum += p;
    difference += p * (static_cast<double>(xp) - static_cast<double>(xq));
  }
  const double q_log = std::log(q_sum), p_log = std::log(p_sum);
  const size_t t = static_cast<size_t>(target);
  TokenScore score;
  score.nll = static_cast<float>(q_log - static_cast<double>(row[t] - q_largest));
  score.reference_nll = static_cast<float>(p_log - static_cast<double>(reference[t] - p_largest));
  // Never negative but for rounding.
  score.kl = static_cast<float>(std::max(0.0, difference / p_sum - (p_log - q_log)));
  const Top q_top = TopOf(row), p_top = TopOf(reference);
  score.top1 = q_top[0] == p_top[0];
  for (const int32_t id : p_top) {
    if (id >= 0 && std::find(q_top.begin(), q_top.end(), id) != q_top.end()) ++score.top5;
  }
  return score;
}

}  // namespace

std::vector<TokenScore> ScoreTokens(std::span<const float> logits, std::span<const float> reference,
                                    std::span<const int32_t> targets, int64_t vocab, int threads) {
  const size_t cols = static_cast<size_t>(vocab);
  QUANTD_CHECK(logits.size() == targets.size() * cols &&
                   (reference.empty() || reference.size() == logits.size()),
               "{} and {} logits for {} targets of {}", logits.size(), reference.size(),
               targets.size(), vocab);
  std::vector<TokenScore> scores(targets.size());
  std::atomic<size_t> next{0};
  const auto work = [&] {
    for (size_t i = next++; i < targets.size(); i = next++) {
      const auto row = logits.subspan(i * cols, cols);
      scores[i] = reference.empty()
                      ? ScoreOne(row, targets[i])
                      : CompareOne(row, reference.subspan(i * cols, cols), targets[i]);
    }
  };
  std::vector<std::thread> helpers;
  for (int t = 1; t < threads; ++t) helpers.emplace_back(work);
  work();
  for (std::thread& helper : helpers) helper.join();
  return scores;
}

int32_t Likeliest(std::span<const float> row) {
  return static_cast<int32_t>(std::max_element(row.begin(), row.end()) - row.begin());
}

}  // namespace quantd
