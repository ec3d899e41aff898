// Sample of sampling.cu against SampleRow, the definition, on thousands of random rows.
//
// The token must be the same unless the decision lies within rounding of a boundary. Such a case is
// not just waved through: Accepts() recomputes the row in double and asks whether the token drawn
// follows from moving each boundary by no more than both sides' rounding. Excuses must be rare.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cfloat>

#include "kernels/cuda/emulation/fibers.h"
#include "kernels/sampling.h"
#include "tests/kernels/cuda/rows_on_device.h"

namespace quantd::cuda_emulated {
namespace {

using on_device::Array;
using on_device::Execute;
using on_device::Layout;
using on_device::Rows;

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

/// One row and how to draw from it. The lists of `params` are not used.
struct SamplingCase {
  std::vector<float> logits;
  SampleParams params;
  std::vector<int32_t> banned;
  std::vector<uint32_t> mask;  // empty: all allowed
  std::vector<LogitEdit> edits;

  bool Allows(int32_t id) const {
    const auto i = static_cast<size_t>(id);
    return std::find(banned.begin(), banned.end(), id) == banned.end() &&
           (mask.empty() || (mask[i / 32] >> (i % 32) & 1u) != 0);
  }
  /// What the draw sees.
  std::vector<float> Edited() const {
    std::vector<float> edited = logits;
    for (const LogitEdit& e : edits) {
      float& logit = edited[static_cast<size_t>(e.token_id)];
      logit = EditedLogit(logit, e, params.repetition_penalty);
    }
    return edited;
  }
};

struct Drawn {
  DeviceSampleResult result;
  int32_t sampled = 0;
  std::vector<DeviceTokenLogprob> top;
};

/// One launch for all cases, which share the size of the vocabulary.
std::vector<Drawn> SampleOnDevice(const std::vector<SamplingCase>& cases, Layout layout) {
  const size_t vocab = cases[0].logits.size(), rows = cases.size();
  std::vector<float> values;
  std::vector<DeviceSampleParams> params;
  std::vector<int32_t> banned;
  std::vector<uint32_t> masks;
  std::vector<DeviceLogitEdit> edits;
  for (const SamplingCase& c : cases) {
    values.insert(values.end(), c.logits.begin(), c.logits.end());
    params.push_back(
        {.temperature = c.params.temperature,
         .top_p = c.params.top_p,
         .min_p = c.params.min_p,
         .uniform = UniformOf(c.params.seed, c.params.sequence_index, c.params.position),
         .top_k = c.params.top_k,
         .num_logprobs = c.params.num_logprobs,
         .repetition_penalty = c.params.repetition_penalty,
         .forced_id = c.params.forced_id,
         .first_banned = static_cast<int32_t>(banned.size()),
         .num_banned = static_cast<int32_t>(c.banned.size()),
         .first_mask = c.mask.empty() ? -1 : static_cast<int32_t>(masks.size()),
         .first_edit = static_cast<int32_t>(edits.size()),
         .num_edits = static_cast<int32_t>(c.edits.size())});
    banned.insert(banned.end(), c.banned.begin(), c.banned.end());
    masks.insert(masks.end(), c.mask.begin(), c.mask.end());
    for (const LogitEdit& e : c.edits) {
      edits.push_back({e.token_id, e.bias, e.penalty, e.repeated, kNaN});
    }
  }
  const Rows logits(FloatType::kF32, rows, vocab, values, layout);
  const Array<DeviceSampleParams> device_params(params);
  const Array<uint32_t> device_masks(masks);
  const Array<DeviceLogitEdit> device_edits(edits);
  const Array<int32_t> device_banned(banned), sampled(std::vector<int32_t>(rows, -1));
  const Array<DeviceSampleResult> results{std::vector<DeviceSampleResult>(rows, {-1, -1, -1, -1})};
  const Array<DeviceTokenLogprob> top{
      std::vector<DeviceTokenLogprob>(rows * kMaxTopLogprobs, {-1, kNaN})};
  Execute([&](Stream s) {
    Sample(logits, device_params.data(),
           {device_banned.data(), device_masks.data(), device_edits.data()}, results.data(),
           top.data(), sampled.data(), s);
  });
  on_device::ExpectSame(logits.Read(), values, "edits are undone");
  std::vector<Drawn> drawn(rows);
  for (size_t r = 0; r < rows; ++r) {
    drawn[r].result = results.span()[r];
    drawn[r].sampled = sampled.span()[r];
    for (size_t i = 0; i < static_cast<size_t>(kMaxTopLogprobs); ++i) {
      drawn[r].top.push_back(top.span()[r * kMaxTopLogprobs + i]);
    }
  }
  return drawn;
}

SampleResult Expected(const SamplingCase& c, std::vector<TokenLogprob>& top) {
  SampleParams params = c.params;
  params.banned_ids = c.banned;
  params.allowed_mask = c.mask;
  params.edits = c.edits;
  top.resize(static_cast<size_t>(params.num_logprobs));
  SampleResult result;
  result.top = top;
  std::vector<TokenLogprob> scratch(2 * c.logits.size());
  std::vector<float> logits = c.logits;
  SampleRow(logits, params, scratch, result);
  return result;
}

float SaneLogit(float logit) { return std::isnan(logit) ? -kInfinity : std::min(logit, FLT_MAX); }

/// True when `token` follows from boundaries moved by what both sides may round.
///
/// exp errs by 2 ulps at most on either side, so a sum of weights by 2^-22 of itself on each; a
/// boundary compares two such sums: 4 * 2^-22 of the larger. Fixed point drops up to 2^-45 a weight
/// (of 1 at most): vocab * 2^-45, twice. The bound of min_p is a logarithm: an ulp on each side.
bool Accepts(const SamplingCase& c, int32_t token) {
  const SampleParams& p = c.params;
  const size_t vocab = c.logits.size();
  const std::vector<float> edited = c.Edited();
  if (p.temperature <= 0.0f) return false;      // greedy compares logits: exact
  std::vector<std::pair<float, int32_t>> best;  // (exponent, id), best first
  std::vector<int32_t> allowed;
  for (size_t i = 0; i < vocab; ++i) {
    const auto id = static_cast<int32_t>(i);
    if (c.Allows(id) && SaneLogit(edited[i]) > -kInfinity) allowed.push_back(id);
  }
  if (allowed.empty()) return false;
  const auto logit = [&](int32_t id) { return SaneLogit(edited[static_cast<size_t>(id)]); };
  std::stable_sort(allowed.begin(), allowed.end(),
                   [&](int32_t a, int32_t b) { return logit(a) > logit(b); });
  const float largest = logit(allowed[0]);
  for (int32_t id : allowed) best.emplace_back((logit(id) - largest) / p.temperature, id);

  const float bound = p.min_p > 0.0f ? std::log(std::min(p.min_p, 1.0f)) : -kInfinity;
  std::vector<size_t> candidate_counts;
  for (float b : {bound, std::nextafter(bound, kInfinity), std::nextafter(bound, -kInfinity)}) {
    size_t count = 0;
    while (count < best.size() && best[count].first >= b) ++count;
    if (p.top_k > 0) count = std::min(count, static_cast<size_t>(p.top_k));
    candidate_counts.push_back(std::max<size_t>(count, 1));
  }
  for (size_t count : candidate_counts) {
    std::vector<double> prefix = {0.0};
    for (size_t i = 0; i < count; ++i) {
      prefix.push_back(prefix.back() + std::exp(static_cast<double>(best[i].first)));
    }
    const double slack = 0x1p-20 * prefix.back() + static_cast<double>(2 * vocab) * 0x1p-45;
    const double wanted = p.top_p < 1.0f ? p.top_p * prefix.back() : kInfinity;
    for (size_t kept = 1; kept <= count; ++kept) {
      const bool may_end = p.top_p >= 1.0f ? kept == count
                                           : (prefix[kept] >= wanted - slack || kept == count) &&
                                                 (kept == 1 || prefix[kept - 1] < wanted + slack);
      if (!may_end) continue;
      std::vector<std::pair<float, int32_t>> by_id(
          best.begin(), best.begin() + static_cast<std::ptrdiff_t>(kept));
      std::sort(by_id.begin(), by_id.end(),
                [](const auto& a, const auto& b) { return a.second < b.second; });
      const double target =
          static_cast<double>(UniformOf(p.seed, p.sequence_index, p.position)) * prefix[kept];
      double reached = 0.0;
      for (const auto& [exponent, id] : by_id) {
        const double before = reached;
        reached += std::exp(static_cast<double>(exponent));
        if (id == token && before <= target + slack && target - slack <= reached) return true;
      }
    }
  }
  return false;
}

struct Tally {
  int cases = 0;
  int excused = 0;
};

void Compare(const std::vector<SamplingCase>& cases, Layout layout, Tally& tally) {
  const std::vector<Drawn> drawn = SampleOnDevice(cases, layout);
  for (size_t r = 0; r < cases.size(); ++r) {
    const SamplingCase& c = cases[r];
    const DeviceSampleResult& actual = drawn[r].result;
    std::vector<TokenLogprob> top;
    const SampleResult expected = Expected(c, top);
    const std::string what = fmt::format(
        "vocabulary of {}, temperature {}, top_k {}, top_p {}, min_p {}, {} banned, seed {}",
        c.logits.size(), c.params.temperature, c.params.top_k, c.params.top_p, c.params.min_p,
        c.banned.size(), c.params.seed);
    ++tally.cases;
    if (actual.token_id != expected.token_id) {
      ++tally.excused;
      ASSERT_TRUE(Accepts(c, actual.token_id))
          << what << ": token " << actual.token_id << ", expected " << expected.token_id;
    }
    ASSERT_EQ(drawn[r].sampled, actual.token_id) << what;
    ASSERT_EQ(actual.finite != 0, expected.finite) << what;

    ASSERT_EQ(actual.num_top, static_cast<int32_t>(expected.top.size())) << what;
    if (c.params.num_logprobs == 0) {
      ASSERT_EQ(drawn[r].top[0].token_id, -1) << what << ": a list nobody asked for";
      continue;
    }
    // The logarithm of a sum that errs by 2 ulps a side, then two f32 roundings a side.
    const auto near = [](float a, float b) {
      if (std::isinf(b)) return a == b;
      return std::fabs(a - b) <= 0x1p-20f + 0x1p-22f * std::fabs(b);
    };
    if (actual.token_id == expected.token_id) {
      ASSERT_PRED2(near, actual.logprob, expected.logprob) << what;
    }
    for (size_t i = 0; i < expected.top.size(); ++i) {
      ASSERT_EQ(drawn[r].top[i].token_id, expected.top[i].token_id) << what << ", top " << i;
      ASSERT_PRED2(near, drawn[r].top[i].logprob, expected.top[i].logprob) << what << ", top " << i;
    }
  }
}

/// Random rows and parameters.
class Cases {
 public:
  explicit Cases(uint32_t seed) : engine_(seed) {}

  size_t Vocab(size_t most) {
    return static_cast<size_t>(std::exp(Real(0.0, std::log(static_cast<double>(most) + 0.999))));
  }
  std::vector<float> Logits(size_t vocab) {
    std::vector<float> logits(vocab);
    const float scale = Pick({0.05f, 1.0f, 3.0f, 10.0f});
    std::normal_distribution<float> normal(Pick({0.0f, 0.0f, -30.0f, 20.0f}), scale);
    for (float& x : logits) x = normal(engine_);
    switch (Int(0, 7)) {
      case 0:  // many ties
        for (float& x : logits) x = std::round(2.0f * x / scale) / 2.0f;
        break;
      case 1:  // all equal, zeros of both signs
        for (float& x : logits) x = Int(0, 1) == 0 ? 0.0f : -0.0f;
        break;
      case 2: std::sort(logits.begin(), logits.end()); break;
      case 3: std::sort(logits.rbegin(), logits.rend()); break;
      case 4:  // mostly masked, by -inf or by a large negative number
        for (float& x : logits) {
          if (Int(0, 9) > 0) x = Pick({-kInfinity, -1e9f});
        }
        break;
      default: break;
    }
    return logits;
  }
  /// Some broken, huge or impossible logits.
  void Damage(std::vector<float>& logits) {
    const bool all = Int(0, 9) == 0;
    for (float& x : logits) {
      if (all) {
        x = Pick({-kInfinity, kNaN});
      } else if (Int(0, 15) == 0) {
        x = Pick({kNaN, kInfinity, -kInfinity, FLT_MAX, -FLT_MAX, 1e-40f});
      }
    }
  }
  std::vector<int32_t> Banned(const std::vector<float>& logits) {
    const auto vocab = static_cast<int32_t>(logits.size());
    std::vector<int32_t> banned;
    switch (Int(0, 3)) {
      case 0:  // the best ones
        for (int i = 0; i < 3; ++i) {
          std::vector<float> left = logits;
          for (int32_t id : banned) left[static_cast<size_t>(id)] = -kInfinity;
          banned.push_back(
              static_cast<int32_t>(std::max_element(left.begin(), left.end()) - left.begin()));
        }
        break;
      case 1:  // all, or all but one
        for (int32_t i = 0; i < vocab; ++i) banned.push_back(i);
        if (Int(0, 1) == 0) banned.pop_back();
        break;
      default:  // repeated, and beyond the vocabulary
        for (int i = 0; i < 20; ++i) banned.push_back(Int(-2, vocab + 3));
        break;
    }
    return banned;
  }
  /// Biases and penalties of some ids, the best one likely among them; often a mask; rarely a token
  /// that is forced.
  void Edit(SamplingCase& c) {
    const auto vocab = static_cast<int32_t>(c.logits.size());
    const int one_in = PickInt({1, 3, 50});
    const auto best =
        static_cast<int32_t>(std::max_element(c.logits.begin(), c.logits.end()) - c.logits.begin());
    c.params.repetition_penalty = Pick({1.0f, 1.1f, 2.0f, 0.5f});
    for (int32_t id = 0; id < vocab; ++id) {
      if (id != best && Int(1, one_in) > 1) continue;
      c.edits.push_back({.token_id = id,
                         .bias = Pick({0.0f, 0.0f, 1.5f, -1.5f, 100.0f, -100.0f}),
                         .penalty = Pick({0.0f, 0.7f, -0.7f, 30.0f}),
                         .repeated = Int(0, 1)});
    }
    if (Int(0, 1) == 0) {
      for (int32_t word = 0; word < (vocab + 31) / 32; ++word) {
        c.mask.push_back(static_cast<uint32_t>(engine_()));
      }
    }
    if (Int(0, 19) == 0) c.params.forced_id = Int(0, vocab - 1);
  }
  SampleParams Params(size_t vocab, bool top_k, bool top_p, bool min_p) {
    const auto size = static_cast<int32_t>(vocab);
    SampleParams params;
    params.temperature = Pick({1.0f, 0.7f, 0.1f, 5.0f, 1e-6f, 1e-38f, 1e30f});
    if (top_k) params.top_k = PickInt({0, 1, 2, 5, 40, size / 2, size - 1, size, size + 1});
    if (top_p) {
      params.top_p = Pick({1.0f, 0.9999999f, 0.95f, 0.5f, 0.1f, 1e-6f, FLT_MIN,
                           static_cast<float>(Real(0.01, 1.0))});
    }
    if (min_p) params.min_p = Pick({0.0f, 1e-30f, 1e-4f, 0.05f, 0.5f, 1.0f});
    params.seed = engine_();
    params.position = static_cast<uint32_t>(Int(0, 5000));
    params.sequence_index = static_cast<uint32_t>(Int(0, 3));
    return params;
  }

  int Int(int low, int high) { return std::uniform_int_distribution<int>(low, high)(engine_); }
  double Real(double low, double high) {
    return std::uniform_real_distribution<double>(low, high)(engine_);
  }
  float Pick(std::initializer_list<float> of) {
    return of.begin()[Int(0, static_cast<int>(of.size()) - 1)];
  }
  int32_t PickInt(std::initializer_list<int32_t> of) {
    return of.begin()[Int(0, static_cast<int>(of.size()) - 1)];
  }

 private:
  std::mt19937 engine_;
};

struct Kind {
  std::string name;
  bool top_k = false, top_p = false, min_p = false, bans = false, damage = false, logprobs = false;
  bool greedy = false, edits = false;
};

class CudaSample : public ::testing::TestWithParam<Kind> {};

TEST_P(CudaSample, DrawsWhatTheDefinitionDraws) {
  const Kind& kind = GetParam();
  Cases random(static_cast<uint32_t>(std::hash<std::string>()(kind.name)));
  Tally tally;
  for (int launch = 0; launch < 100; ++launch) {
    const size_t vocab = launch < 5 ? static_cast<size_t>(launch) + 1 : random.Vocab(2000);
    std::vector<SamplingCase> cases(5);
    for (SamplingCase& c : cases) {
      c.logits = random.Logits(vocab);
      if (kind.damage) random.Damage(c.logits);
      c.params = random.Params(vocab, kind.top_k, kind.top_p, kind.min_p);
      if (kind.bans && random.Int(0, 1) == 0) c.banned = random.Banned(c.logits);
      if (kind.edits) random.Edit(c);
      if (kind.logprobs) c.params.num_logprobs = random.PickInt({0, 1, 2, 5, 20, 64});
      if (kind.greedy) c.params.temperature = 0.0f;
    }
    Compare(cases, random.Int(0, 1) == 0 ? on_device::kWide : on_device::kNarrow, tally);
    if (HasFatalFailure()) return;
  }
  EXPECT_EQ(tally.cases, 500);
  EXPECT_LT(tally.excused, 5) << "of " << tally.cases;
  RecordProperty("excused", tally.excused);
}

INSTANTIATE_TEST_SUITE_P(
    Kinds, CudaSample,
    ::testing::Values(
        Kind{.name = "Plain"}, Kind{.name = "TopK", .top_k = true},
        Kind{.name = "TopP", .top_p = true}, Kind{.name = "MinP", .min_p = true},
        Kind{.name = "TopKTopP", .top_k = true, .top_p = true},
        Kind{
            .name = "AllFiltersAndBans", .top_k = true, .top_p = true, .min_p = true, .bans = true},
        Kind{.name = "Damaged",
             .top_k = true,
             .top_p = true,
             .min_p = true,
             .bans = true,
             .damage = true,
             .logprobs = true},
        Kind{.name = "Edited",
             .top_k = true,
             .top_p = true,
             .min_p = true,
             .bans = true,
             .logprobs = true,
             .edits = true},
        Kind{.name = "EditedDamaged", .damage = true, .logprobs = true, .edits = true},
        Kind{.name = "EditedGreedy", .logprobs = true, .greedy = true, .edits = true},
        Kind{.name = "Logprobs", .bans = true, .logprobs = true},
        Kind{.name = "Greedy", .bans = true, .greedy = true},
        Kind{.name = "GreedyDamaged",
             .bans = true,
             .damage = true,
             .logprobs = true,
             .greedy = true}),
    [](const auto& test) { return test.param.name; });

TEST(CudaSampleExcuses, AcceptTheDefinitionsTokenAndHardlyAnyOther) {
  Cases random(5);
  int accepted = 0, others = 0;
  for (int i = 0; i < 200; ++i) {
    SamplingCase c;
    c.logits = random.Logits(random.Vocab(40));
    c.params = random.Params(c.logits.size(), true, true, true);
    if (random.Int(0, 1) == 0) c.banned = random.Banned(c.logits);
    std::vector<TokenLogprob> top;
    const int32_t expected = Expected(c, top).token_id;
    for (int32_t id = 0; id < static_cast<int32_t>(c.logits.size()); ++id) {
      if (id != expected && Accepts(c, id)) ++others;
    }
    // A row without a candidate has nothing to accept: its token 0 must be equal.
    const bool none = std::all_of(c.logits.begin(), c.logits.end(), [&](float& x) {
      return x == -kInfinity ||
             std::find(c.banned.begin(), c.banned.end(), &x - c.logits.data()) != c.banned.end();
    });
    if (!none) {
      EXPECT_TRUE(Accepts(c, expected)) << i;
      ++accepted;
    }
  }
  EXPECT_GT(accepted, 100);
  EXPECT_LE(others, 10);
}

TEST(CudaSampleRow, IsTheSameBitsWhateverTheScheduleAndTheRowsBeside) {
  Cases random(7);
  std::vector<SamplingCase> cases(6);
  for (SamplingCase& c : cases) {
    c.logits = random.Logits(700);
    c.params = random.Params(700, true, true, true);
    c.params.num_logprobs = 10;
    c.banned = {1, 2, 3, 699};
  }
  const auto same = [](const Drawn& a, const Drawn& b) {
    return std::memcmp(&a.result, &b.result, sizeof(a.result)) == 0 && a.sampled == b.sampled &&
           std::memcmp(a.top.data(), b.top.data(), 10 * sizeof(a.top[0])) == 0;
  };
  const std::vector<Drawn> expected = SampleOnDevice(cases, on_device::kWide);
  for (ScheduleOrder order : {ScheduleOrder{ScheduleOrder::Kind::kReverse, 0},
                              ScheduleOrder{ScheduleOrder::Kind::kRandom, 3}}) {
    SetScheduleOrder(order);
    const std::vector<Drawn> actual = SampleOnDevice(cases, on_device::kNarrow);
    SetScheduleOrder({});
    for (size_t r = 0; r < cases.size(); ++r) EXPECT_TRUE(same(actual[r], expected[r])) << r;
  }
  for (size_t r = 0; r < cases.size(); ++r) {
    EXPECT_TRUE(same(SampleOnDevice({cases[r]}, {})[0], expected[r])) << r << " alone";
  }
}

TEST(CudaSampleRow, TakesLargeVocabularies) {
  // All threads of a block; a tile of ids per kMaxTiles would not reach 600000: larger tiles.
  for (size_t vocab : {size_t{40000}, size_t{128256}, size_t{600000}}) {
    Cases random(11);
    std::vector<SamplingCase> cases(vocab == 40000 ? 8 : 2);
    Tally tally;
    for (size_t r = 0; r < cases.size(); ++r) {
      cases[r].logits = on_device::Normal(vocab, static_cast<uint32_t>(r), 3.0f);
      cases[r].params.seed = r;
      cases[r].params.top_p = r % 2 == 0 ? 0.9f : 1.0f;
      cases[r].params.top_k = r % 4 >= 2 ? 50 : 0;
      cases[r].params.num_logprobs = r == 0 ? 3 : 0;
      cases[r].banned = {5, static_cast<int32_t>(vocab) - 1};
    }
    Compare(cases, {}, tally);
    EXPECT_EQ(tally.excused, 0);
  }
}

TEST(CudaSampleRow, DrawsEveryKeptTokenInProportionToItsWeight) {
  // 4096 draws of weights 1 : 2 : 5 in one launch: each count within four standard deviations.
  const std::vector<double> weights = {1.0, 2.0, 5.0};
  SamplingCase c;
  for (double w : weights) c.logits.push_back(static_cast<float>(std::log(w)));
  c.logits.push_back(-kInfinity);
  std::vector<SamplingCase> cases(4096, c);
  for (size_t i = 0; i < cases.size(); ++i) cases[i].params.position = static_cast<uint32_t>(i);
  std::vector<double> counts(4);
  for (const Drawn& d : SampleOnDevice(cases, {})) ++counts[static_cast<size_t>(d.sampled)];
  for (size_t i = 0; i < weights.size(); ++i) {
    const double p = weights[i] / 8.0, mean = 4096 * p;
    EXPECT_NEAR(counts[i], mean, 4.0 * std::sqrt(mean * (1.0 - p))) << i;
  }
  EXPECT_EQ(counts[3], 0.0);
}

}  // namespace
}  // namespace quantd::cuda_emulated
