// Arrivals, lengths, percentiles, goodput and requests of a load: arithmetic, without a clock.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <set>

#include "kernels/status.h"
#include "server/bench/arrivals.h"
#include "server/bench/lengths.h"
#include "server/bench/measurement.h"
#include "server/bench/request_source.h"

namespace quantd::bench {
namespace {

using ::testing::DoubleNear;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Pair;

constexpr double kInfinite = std::numeric_limits<double>::infinity();

std::vector<double> Gaps(double rate, double burstiness, uint64_t seed, int count) {
  Arrivals arrivals(rate, burstiness, seed);
  std::vector<double> gaps;
  double last = arrivals.Next();
  EXPECT_EQ(last, 0.0);
  for (int i = 0; i < count; ++i) {
    const double next = arrivals.Next();
    gaps.push_back(next - last);
    last = next;
  }
  return gaps;
}

// Mean and squared coefficient of variation.
std::pair<double, double> Moments(const std::vector<double>& values) {
  double mean = 0, square = 0;
  for (const double v : values) mean += v / static_cast<double>(values.size());
  for (const double v : values) square += (v - mean) * (v - mean);
  return {mean, square / static_cast<double>(values.size()) / (mean * mean)};
}

TEST(BenchArrivals, HaveTheRateAndTheBurstinessAskedFor) {
  // Gaps of a gamma distribution of shape b have a squared coefficient of variation of 1 / b.
  EXPECT_THAT(Moments(Gaps(50, 1.0, 1, 20000)),
              Pair(DoubleNear(0.02, 0.0005), DoubleNear(1.0, 0.05)));
  EXPECT_THAT(Moments(Gaps(50, 0.25, 1, 20000)),
              Pair(DoubleNear(0.02, 0.001), DoubleNear(4.0, 0.4)));
  for (const double gap : Gaps(50, kInfinite, 1, 1000)) EXPECT_NEAR(gap, 0.02, 1e-12);
  for (const double gap : Gaps(kInfinite, 1, 1, 10)) EXPECT_EQ(gap, 0.0);
}

TEST(BenchArrivals, AreThoseOfTheirSeed) {
  EXPECT_EQ(Gaps(8, 1, 7, 100), Gaps(8, 1, 7, 100));
  EXPECT_NE(Gaps(8, 1, 7, 100), Gaps(8, 1, 8, 100));
}

std::vector<double> Lengths(const std::string& text, int32_t most = 100000) {
  const auto lengths = LengthDistribution::Parse("--len", text);
  EXPECT_TRUE(lengths.ok()) << text;
  std::mt19937_64 random(3);
  std::vector<double> out;
  for (int i = 0; i < 20000; ++i) out.push_back(lengths->Draw(random, most));
  return out;
}

TEST(BenchLengths, HaveTheirMeanAndDeviation) {
  EXPECT_THAT(Moments(Lengths("128")), Pair(DoubleNear(128, 1e-9), DoubleNear(0, 1e-12)));
  const std::vector<double> uniform = Lengths("10:13");
  EXPECT_THAT(std::set<double>(uniform.begin(), uniform.end()), ElementsAre(10, 11, 12, 13));
  EXPECT_THAT(Moments(Lengths("normal:200:20")), Pair(DoubleNear(200, 1), DoubleNear(0.01, 0.001)));
  EXPECT_THAT(Moments(Lengths("lognormal:200:100")),
              Pair(DoubleNear(200, 3), DoubleNear(0.25, 0.03)));
  const std::vector<double> cut = Lengths("normal:1:50", 40);
  EXPECT_EQ(*std::min_element(cut.begin(), cut.end()), 1);
  EXPECT_EQ(*std::max_element(cut.begin(), cut.end()), 40);
}

TEST(BenchLengths, AreWrittenAsTheyAreRead) {
  for (const char* text : {"5", "5:6", "normal:10:2.5", "lognormal:10:0"}) {
    EXPECT_EQ(LengthDistribution::Parse("--len", text)->ToString(), text);
  }
  EXPECT_EQ(LengthDistribution::Parse("--len", "uniform:5:6")->ToString(), "5:6");
  for (const char* text : {"", "0", "-3", "x", "5:4", "5:6:7", "normal:10", "normal:0:1", "normal",
                           "normal:10:-1", "1e3", "20000000", "uniform", "normal:nan:1"}) {
    const absl::Status bad = LengthDistribution::Parse("--len", text).status();
    EXPECT_EQ(bad.code(), absl::StatusCode::kInvalidArgument) << text;
    EXPECT_THAT(Message(bad), HasSubstr("--len is \"" + std::string(text) + "\", allowed: N"));
  }
}

TEST(BenchMeasurement, PercentilesAreLinearBetweenValues) {
  EXPECT_EQ(Percentile({}, 0.5), 0.0);
  EXPECT_EQ(Percentile({7}, 0.99), 7.0);
  EXPECT_DOUBLE_EQ(Percentile({1, 2, 3, 4}, 0.5), 2.5);
  EXPECT_DOUBLE_EQ(Percentile({10, 20}, 0.9), 19.0);
  std::vector<double> values;
  for (int i = 100; i >= 0; --i) values.push_back(i);
  const Summary s = Summarize(values);
  EXPECT_THAT(
      (std::vector<double>{s.mean, s.p50, s.p90, s.p95, s.p99, s.max}),
      ElementsAre(50, 50, DoubleNear(90, 1e-9), DoubleNear(95, 1e-9), DoubleNear(99, 1e-9), 100));
}

RequestRecord Completed(double scheduled, double sent, double first, std::vector<double> gaps) {
  RequestRecord r;
  r.scheduled = scheduled;
  r.sent = sent;
  r.first = r.last = first;
  for (const double gap : gaps) r.last += gap;
  r.end = r.last;
  r.gaps = std::move(gaps);
  r.responses = static_cast<int32_t>(r.gaps.size()) + 1;
  r.output_tokens = r.responses;
  r.prompt_tokens = 10;
  return r;
}

RequestRecord Ended(double scheduled, double end, absl::StatusCode code, double first = -1) {
  RequestRecord r;
  r.scheduled = r.sent = scheduled;
  r.first = r.last = first;
  r.end = end;
  r.code = code;
  r.message = "why";
  return r;
}

TEST(BenchMeasurement, SloIsMetOnlyByWhatMeetsAll) {
  Slo slo;
  EXPECT_FALSE(slo.any());
  ASSERT_TRUE(slo.Add("--goodput", "ttft:200,itl:50").ok());
  ASSERT_TRUE(slo.Add("--goodput", "e2e:500").ok());
  EXPECT_EQ(slo.ToString(), "ttft:200,itl:50,e2el:500");
  const RequestRecord good = Completed(0, 0, 0.1, {0.02, 0.04});
  EXPECT_TRUE(slo.Met(good));
  EXPECT_FALSE(slo.Met(Completed(0, 0, 0.21, {0.02}))) << "TTFT";
  EXPECT_FALSE(slo.Met(Completed(0, 0.15, 0.21, {0.02}))) << "TTFT is that of the arrival";
  EXPECT_FALSE(slo.Met(Completed(0, 0, 0.1, {0.02, 0.06}))) << "one gap";
  EXPECT_FALSE(slo.Met(Completed(0, 0, 0.19, std::vector<double>(10, 0.04)))) << "end to end";
  RequestRecord failed = good;
  failed.code = absl::StatusCode::kInternal;
  EXPECT_FALSE(slo.Met(failed));
  ASSERT_TRUE(slo.Add("--goodput", "tpot:25").ok());
  EXPECT_FALSE(slo.Met(good)) << "30 ms a token";
  for (const char* text : {"", "ttft", "ttft:", "ttft:0", "ttft:-1", "ttft:x", "p99:5", "itl:1,"}) {
    EXPECT_THAT(Message(slo.Add("--goodput", text)), HasSubstr("--goodput is \"")) << text;
  }
}

TEST(BenchMeasurement, RunsAreCountedByHowRequestsEnded) {
  Slo slo;
  ASSERT_TRUE(slo.Add("--goodput", "ttft:150").ok());
  using Code = absl::StatusCode;
  std::vector<RequestRecord> records = {
      Completed(0, 0, 0.1, {0.1, 0.3}),
      Completed(1, 1.5, 1.6, {0.2}),  // sent half a second late
      Ended(2, 2.5, Code::kResourceExhausted),
      Ended(2, 2.5, Code::kUnavailable),
      Ended(3, 3.5, Code::kUnavailable, /*first=*/3.1),
      Ended(4, 10, Code::kDeadlineExceeded),
  };
  records[0].attempts = 3;
  records[1].output_tokens = 5;  // a response of several
  const RunResult run = Evaluate({1.5, 0}, slo, records, {{0, 4}, {1, 1}});
  EXPECT_EQ(run.requests, 6);
  EXPECT_EQ(run.completed, 2);
  EXPECT_THAT(run.refused, ElementsAre(Pair("RESOURCE_EXHAUSTED", 1), Pair("UNAVAILABLE", 1)));
  EXPECT_THAT(run.failed, ElementsAre(Pair("DEADLINE_EXCEEDED", 1), Pair("UNAVAILABLE", 1)));
  EXPECT_EQ(run.first_error, "why");
  EXPECT_EQ(run.retries, 2);
  EXPECT_DOUBLE_EQ(run.duration, 10.0);
  EXPECT_DOUBLE_EQ(run.offered_rate, 5.0 / 4.0);
  EXPECT_DOUBLE_EQ(run.request_throughput, 0.2);
  EXPECT_DOUBLE_EQ(run.goodput, 0.1);
  EXPECT_DOUBLE_EQ(run.output_throughput, 0.8);
  EXPECT_DOUBLE_EQ(run.input_throughput, 2.0);
  EXPECT_DOUBLE_EQ(run.tokens_per_response, 8.0 / 5.0);
  EXPECT_EQ(run.most_in_flight, 2);
  EXPECT_NEAR(run.ttft.max, 0.6, 1e-9) << "from the arrival, not from when it was sent";
  EXPECT_EQ(run.itl.count, 3);
  EXPECT_NEAR(run.itl.max, 0.3, 1e-9);
  EXPECT_NEAR(run.tpot.max, 0.2, 1e-9);
  EXPECT_NEAR(run.lag.max, 0.5, 1e-9);
  EXPECT_EQ(run.waiting.mean, 2.0);
  EXPECT_EQ(run.ttft_quantiles.size(), 101u);
  EXPECT_EQ(Evaluate({1, 0}, slo, {}, {}).completed, 0);
}

TEST(BenchRequests, AreThoseOfTheirNumberAndSeed) {
  RequestOptions options;
  options.input = *LengthDistribution::Parse("", "20:30");
  options.output = *LengthDistribution::Parse("", "normal:1000:1000");
  options.prefix_tokens = 16;
  options.prefix_share = 0.5;
  const auto source = RequestSource::Create(options, 500, 128);
  ASSERT_TRUE(source.ok());
  int shared = 0;
  const auto prefix = [](const v1::GenerateRequest& r) {
    const auto& ids = r.token_ids().ids();
    return std::vector<int32_t>(ids.begin(), ids.begin() + 16);
  };
  std::map<std::vector<int32_t>, int> prefixes;
  for (uint64_t i = 0; i < 200; ++i) {
    const v1::GenerateRequest r = source->Make(i % 2, i);
    EXPECT_EQ(r.SerializeAsString(), source->Make(i % 2, i).SerializeAsString());
    EXPECT_LE(r.token_ids().ids_size() + r.sampling().max_tokens(), 128);
    for (const int32_t id : r.token_ids().ids()) EXPECT_TRUE(id >= 0 && id < 500);
    EXPECT_TRUE(r.sampling().ignore_eos());
    shared = std::max(shared, ++prefixes[prefix(r)]);
  }
  EXPECT_NEAR(shared, 100, 25) << "of all runs";
  EXPECT_NE(source->Make(0, 1).SerializeAsString(), source->Make(1, 1).SerializeAsString());

  options.text_tokens = {1, 2, 3};
  const auto slices = RequestSource::Create(options, 500, 128);
  const v1::GenerateRequest slice = slices->Make(0, 0);
  const auto& ids = slice.token_ids().ids();
  for (int i = ids.size() - 20 + 1; i < ids.size(); ++i) EXPECT_EQ(ids[i], ids[i - 1] % 3 + 1);
  options.input = LengthDistribution(128);
  EXPECT_THAT(Message(RequestSource::Create(options, 500, 128).status()),
              HasSubstr("come to 145 tokens, but the model's context is 128"));
}

}  // namespace
}  // namespace quantd::bench
