#include "engine/eval/eval_summary.h"

#include <algorithm>
#include <cmath>
#include <numbers>
#include <random>

namespace quantd {
namespace {

constexpr int kResamples = 1000;

// The value below which `share` of the sorted values lie; the larger neighbour.
double Quantile(std::span<const float> sorted, double share) {
  if (sorted.empty()) return 0.0;
  const double at = share * static_cast<double>(sorted.size() - 1);
  return static_cast<double>(sorted[static_cast<size_t>(std::ceil(at))]);
}

Interval Retention(std::span<const WindowScore> windows) {
  const auto of = [&](const auto& index, size_t count) {
    double nats = 0.0, tokens = 0.0;
    for (size_t i = 0; i < count; ++i) {
      const WindowScore& w = windows[index(i)];
      nats += w.reference_nll - w.nll;
      tokens += static_cast<double>(w.tokens);
    }
    return std::exp(nats / tokens);
  };
  Interval interval;
  interval.value = of([](size_t i) { return i; }, windows.size());
  if (windows.size() < 2) return interval;
  std::mt19937_64 random(20);
  std::vector<double> resampled;
  for (int r = 0; r < kResamples; ++r) {
    resampled.push_back(of([&](size_t) { return random() % windows.size(); }, windows.size()));
  }
  std::sort(resampled.begin(), resampled.end());
  interval.low = resampled[kResamples * 25 / 1000];
  interval.high = resampled[kResamples * 975 / 1000 - 1];
  return interval;
}

double Divergence(const ProfileResult& p) { return p.compared ? p.kl_mean : p.perplexity; }

}  // namespace

ProfileResult SummarizeProfile(ProfileFacts facts, std::span<const WindowScore> windows,
                               bool compared) {
  ProfileResult result;
  result.facts = std::move(facts);
  result.compared = compared;
  double nll = 0.0, seconds = 0.0, rows = 0.0;
  int64_t bytes = 0, top1 = 0, top5 = 0;
  std::vector<float> kl;
  for (const WindowScore& w : windows) {
    result.tokens += w.tokens;
    bytes += w.bytes;
    nll += w.nll;
    seconds += w.seconds;
    rows += static_cast<double>(w.rows);
    top1 += w.top1;
    top5 += w.top5;
    kl.insert(kl.end(), w.kl.begin(), w.kl.end());
  }
  const double tokens = static_cast<double>(result.tokens);
  result.perplexity = std::exp(nll / tokens);
  result.bits_per_byte = nll / std::numbers::ln2 / static_cast<double>(bytes);
  result.prefill_tokens_per_second = seconds > 0 ? rows / seconds : 0.0;
  if (!compared) return result;
  result.retention = Retention(windows);
  result.top1 = static_cast<double>(top1) / tokens;
  result.top5 = static_cast<double>(top5) / (5.0 * tokens);
  double sum = 0.0;
  for (const float value : kl) sum += static_cast<double>(value);
  std::sort(kl.begin(), kl.end());
  result.kl_mean = sum / tokens;
  result.kl_median = Quantile(kl, 0.5);
  result.kl_p99 = Quantile(kl, 0.99);
  result.kl_max = Quantile(kl, 1.0);
  return result;
}

std::vector<size_t> ParetoFront(std::span<const ProfileResult> profiles) {
  std::vector<size_t> order;
  for (size_t i = 0; i < profiles.size(); ++i) {
    if (profiles[i].refusal.empty()) order.push_back(i);
  }
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) {
    const ProfileResult &p = profiles[a], &q = profiles[b];
    return p.facts.resident_bytes != q.facts.resident_bytes
               ? p.facts.resident_bytes < q.facts.resident_bytes
               : Divergence(p) < Divergence(q);
  });
  std::vector<size_t> front;
  for (const size_t i : order) {
    if (front.empty() || Divergence(profiles[i]) < Divergence(profiles[front.back()])) {
      front.push_back(i);
    }
  }
  return front;
}

}  // namespace quantd
