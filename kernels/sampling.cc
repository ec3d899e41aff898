// Sampling of one row; see sampling.h. Every backend whose logits the host can read calls
// SampleRow.
//
// The draw inverts the distribution function over the kept ids in ascending order of id. So the
// kept set needs no sorting: it is what is not worse than one cut element, found by partial
// selection.
//
// Thread-safe: no state but a thread's own room for the logits that edits replace.
#include "kernels/sampling.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "kernels/check.h"

namespace quantd {
namespace {

constexpr float kNever = -std::numeric_limits<float>::infinity();

/// NaN counts as -inf; +inf as the largest float, so that differences stay numbers.
float Sane(float logit) {
  if (std::isnan(logit)) return kNever;
  return std::min(logit, std::numeric_limits<float>::max());
}

/// The order of likelihood: larger logits first, lower ids first among equals. While selecting, the
/// `logprob` of an entry holds its logit.
bool Better(const TokenLogprob& a, const TokenLogprob& b) {
  return a.logprob > b.logprob || (a.logprob == b.logprob && a.token_id < b.token_id);
}

bool Contains(std::span<const int32_t> ids, int32_t id) {
  return std::find(ids.begin(), ids.end(), id) != ids.end();
}

bool Allows(const SampleParams& params, int32_t id) {
  const auto i = static_cast<size_t>(id);
  const bool masked =
      !params.allowed_mask.empty() && (params.allowed_mask[i / 32] >> (i % 32) & 1u) == 0;
  return !masked && !Contains(params.banned_ids, id);
}

/// The largest logit that `params` allow, lowest id on ties; token 0 with -inf when there is none.
TokenLogprob Best(std::span<const float> logits, const SampleParams& params) {
  TokenLogprob best{0, kNever};
  for (size_t i = 0; i < logits.size(); ++i) {
    // Whether an id is allowed is asked only where its logit would win, which is rare.
    const float logit = Sane(logits[i]);
    if (logit > best.logprob && Allows(params, static_cast<int32_t>(i))) {
      best = {static_cast<int32_t>(i), logit};
    }
  }
  return best;
}

/// The worst element that top_k and top_p, at least one of which excludes some, keep of
/// `candidates`. Reorders them.
TokenLogprob Cut(std::span<TokenLogprob> candidates, const SampleParams& params, float largest) {
  if (params.top_k > 0 && static_cast<size_t>(params.top_k) < candidates.size()) {
    const size_t k = static_cast<size_t>(params.top_k);
    const auto last = candidates.begin() + (params.top_k - 1);
    if (k < candidates.size() / 16) {  // one pass, as almost no element beats the k best so far
      std::partial_sort(candidates.begin(), last + 1, candidates.end(), Better);
    } else {
      std::nth_element(candidates.begin(), last, candidates.end(), Better);
    }
    candidates = candidates.first(k);
    if (params.top_p >= 1.0f) return candidates.back();
  }

  const auto weight_of = [&](std::span<const TokenLogprob> some) {
    double sum = 0.0;
    for (const TokenLogprob& c : some) sum += std::exp((c.logprob - largest) / params.temperature);
    return sum;
  };
  // The nucleus: the fewest candidates, best first, that reach top_p of the weight together; at
  // least one. Halve by rank, and go on in the half in which the nucleus ends.
  double wanted = params.top_p * weight_of(candidates);
  constexpr size_t kFewEnoughToSort = 32;
  while (candidates.size() > kFewEnoughToSort) {
    const size_t half = candidates.size() / 2;
    std::nth_element(candidates.begin(), candidates.begin() + static_cast<std::ptrdiff_t>(half),
                     candidates.end(), Better);
    const double better_half = weight_of(candidates.first(half));
    if (better_half >= wanted) {
      candidates = candidates.first(half);
    } else {
      wanted -= better_half;
      candidates = candidates.subspan(half);
    }
  }
  std::sort(candidates.begin(), candidates.end(), Better);
  size_t last = 0;
  for (double reached = weight_of(candidates.first(1));
       reached < wanted && last + 1 < candidates.size();) {
    reached += weight_of(candidates.subspan(++last, 1));
  }
  return candidates[last];
}

int32_t Draw(std::span<const float> logits, const SampleParams& params,
             std::span<TokenLogprob> scratch) {
  const float largest = Best(logits, params).logprob;
  if (largest == kNever) return 0;

  // Candidates in order of id. min_p keeps what is at least min_p times as likely as the best, a
  // bound on the logit; all three filters keep a best-first prefix, so it may come before top_k.
  const float bound = params.min_p > 0.0f ? std::log(std::min(params.min_p, 1.0f)) : kNever;
  size_t count = 0;
  for (size_t i = 0; i < logits.size(); ++i) {
    const float logit = Sane(logits[i]);
    if (logit == kNever || !((logit - largest) / params.temperature >= bound)) continue;
    if (!Allows(params, static_cast<int32_t>(i))) continue;
    scratch[count++] = {static_cast<int32_t>(i), logit};
  }
  const std::span<TokenLogprob> candidates = scratch.first(count);

  TokenLogprob cut{std::numeric_limits<int32_t>::max(), kNever};
  if (params.top_p < 1.0f || (params.top_k > 0 && static_cast<size_t>(params.top_k) < count)) {
    const std::span<TokenLogprob> copy = scratch.subspan(logits.size(), count);
    std::copy(candidates.begin(), candidates.end(), copy.begin());
    cut = Cut(copy, params, largest);
  }

  // The kept ones and their weights, still in order of id, over the candidates.
  double total = 0.0;
  size_t kept = 0;
  for (const TokenLogprob& c : candidates) {
    if (Better(cut, c)) continue;
    const float weight = std::exp((c.logprob - largest) / params.temperature);
    total += weight;
    candidates[kept++] = {c.token_id, weight};
  }
  const double target = UniformOf(params.seed, params.sequence_index, params.position) * total;
  double reached = 0.0;
  int32_t drawn = 0;
  for (const TokenLogprob& c : candidates.first(kept)) {
    if (c.logprob == 0.0f) continue;
    drawn = c.token_id;
    reached += c.logprob;
    if (reached > target) break;
  }
  return drawn;
}

/// Fills result.logprob and result.top from the model's own distribution: no edit, no ban, no
/// temperature.
void Report(std::span<const float> logits, int32_t num_logprobs, std::span<TokenLogprob> scratch,
            SampleResult& result) {
  const float largest = Best(logits, SampleParams{}).logprob;
  double total = 0.0;
  for (size_t i = 0; i < logits.size(); ++i) {
    const float logit = Sane(logits[i]);
    scratch[i] = {static_cast<int32_t>(i), logit};
    if (logit != kNever) total += static_cast<double>(std::exp(logit - largest));
  }
  const float log_total = static_cast<float>(std::log(total));
  const auto logprob = [&](float logit) {
    return logit == kNever ? kNever : logit - largest - log_total;
  };
  result.logprob = logprob(scratch[static_cast<size_t>(result.token_id)].logprob);

  const size_t count =
      std::min({static_cast<size_t>(num_logprobs), result.top.size(), logits.size()});
  const auto all = scratch.first(logits.size());
  std::partial_sort(all.begin(), all.begin() + static_cast<std::ptrdiff_t>(count), all.end(),
                    Better);
  for (size_t i = 0; i < count; ++i) result.top[i] = {all[i].token_id, logprob(all[i].logprob)};
  result.top = result.top.first(count);
}

// `params` with its list of bans, where that is long, in the mask: looked up for every token, a
// list would cost its length each time.
SampleParams WithBansInMask(const SampleParams& params, size_t vocab_size) {
  constexpr size_t kLong = 8;
  if (params.banned_ids.size() <= kLong) return params;
  thread_local std::vector<uint32_t> mask;
  if (params.allowed_mask.empty()) {
    mask.assign((vocab_size + 31) / 32, ~0u);
  } else {
    mask.assign(params.allowed_mask.begin(), params.allowed_mask.end());
  }
  for (const int32_t id : params.banned_ids) {
    const auto i = static_cast<size_t>(id);
    if (i < vocab_size) mask[i / 32] &= ~(1u << (i % 32));
  }
  SampleParams masked = params;
  masked.allowed_mask = mask;
  masked.banned_ids = {};
  return masked;
}

}  // namespace

std::array<uint32_t, 4> Philox4x32(std::array<uint32_t, 4> counter, std::array<uint32_t, 2> key) {
  constexpr uint64_t kMultiplier0 = 0xD2511F53, kMultiplier1 = 0xCD9E8D57;
  constexpr uint32_t kWeyl0 = 0x9E3779B9, kWeyl1 = 0xBB67AE85;
  for (int round = 0; round < 10; ++round) {
    const uint64_t p0 = kMultiplier0 * counter[0], p1 = kMultiplier1 * counter[2];
    counter = {static_cast<uint32_t>(p1 >> 32) ^ counter[1] ^ key[0], static_cast<uint32_t>(p1),
               static_cast<uint32_t>(p0 >> 32) ^ counter[3] ^ key[1], static_cast<uint32_t>(p0)};
    key = {key[0] + kWeyl0, key[1] + kWeyl1};
  }
  return counter;
}

float UniformOf(uint64_t seed, uint32_t sequence_index, uint32_t position) {
  const std::array<uint32_t, 4> words =
      Philox4x32({position, sequence_index, 0, 0},
                 {static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32)});
  return static_cast<float>(words[0] >> 8) * 0x1p-24f;
}

bool LogitsAreSound(std::span<const float> logits) {
  // No early exit, so that the loop vectorizes: a broken row is rare.
  bool sound = true;
  for (const float x : logits) sound &= x < std::numeric_limits<float>::infinity();
  return sound;
}

void SampleRow(std::span<float> logits, const SampleParams& given, std::span<TokenLogprob> scratch,
               SampleResult& result) {
  const SampleParams params = WithBansInMask(given, logits.size());
  QUANTD_CHECK(!logits.empty() && scratch.size() >= 2 * logits.size(),
               "{} logits, {} scratch entries", logits.size(), scratch.size());
  result.finite = LogitsAreSound(logits);
  thread_local std::vector<float> originals;
  originals.clear();
  for (const LogitEdit& edit : params.edits) {
    float& logit = logits[static_cast<size_t>(edit.token_id)];
    originals.push_back(logit);
    logit = EditedLogit(logit, edit, params.repetition_penalty);
  }
  if (params.forced_id >= 0) {
    result.token_id = params.forced_id;
  } else if (params.temperature > 0.0f) {
    result.token_id = Draw(logits, params, scratch);
  } else {
    result.token_id = Best(logits, params).token_id;
  }
  for (size_t i = 0; i < originals.size(); ++i) {
    logits[static_cast<size_t>(params.edits[i].token_id)] = originals[i];
  }
  if (params.num_logprobs > 0) Report(logits, params.num_logprobs, scratch, result);
}

}  // namespace quantd
