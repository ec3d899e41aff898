// ref's other ops on numbers that can be checked by hand or by a formula written another way.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <complex>

#include "tests/kernels/conformance.h"

namespace quantd::testing {
namespace {

using ::testing::ElementsAre;
using ::testing::FloatEq;
using ::testing::FloatNear;

TEST(RefRmsNorm, DividesByTheRootOfTheMeanSquare) {
  const std::vector<float> values = {3, -4, 0, 0}, weight = {1, 1, 2, 10};
  const DeviceMatrix x(Ref(), DType::kF32, 2, 2, values), out(Ref(), DType::kF32, 2, 2);
  const std::vector<float> two = {1.0f, 2.0f};
  Ref().RmsNorm(x, two.data(), 0.0f, out);
  const float rms = std::sqrt(12.5f);
  const std::vector<float> y = out.Read();
  EXPECT_FLOAT_EQ(y[0], 3 / rms);
  EXPECT_FLOAT_EQ(y[1], -8 / rms);
  EXPECT_TRUE(std::isnan(y[2]));  // 0 / 0: eps is what prevents it
  Ref().RmsNorm(x, two.data(), 1e-5f, out);
  EXPECT_EQ(out.Read()[2], 0.0f);
}

TEST(RefAddRmsNorm, NormsTheRoundedSum) {
  // 1 + 2^-9 is not a bf16: it rounds to 1, and that is what is normed.
  const DeviceMatrix residual(Ref(), DType::kBF16, 1, 2, std::vector<float>{1.0f, 1.0f}),
      x(Ref(), DType::kBF16, 1, 2, std::vector<float>{0x1p-9f, 1.0f}),
      out(Ref(), DType::kBF16, 1, 2);
  const std::vector<float> weight = {1.0f, 1.0f};
  Ref().AddRmsNorm(residual, x, weight.data(), 0.0f, out);
  EXPECT_THAT(residual.Read(), ElementsAre(1.0f, 2.0f));
  const float rms = std::sqrt(2.5f);
  EXPECT_EQ(out.Read(), RoundedTo(DType::kBF16, {1 / rms, 2 / rms}));
}

TEST(RefRope, TurnsPairsOfHalvesAsComplexNumbers) {
  const AttentionSpec spec{2, 1, 8, 1.0f};
  std::vector<float> table(3 * 8), q = RandomFloats(16, 1), k = RandomFloats(8, 2),
                                   v = RandomFloats(8, 3);
  for (int i = 0; i < 4; ++i) {
    const double angle = 2 * std::pow(10.0, -i);
    table[static_cast<size_t>(16 + i)] = static_cast<float>(std::cos(angle));
    table[static_cast<size_t>(20 + i)] = static_cast<float>(std::sin(angle));
  }
  const DeviceMatrix qs(Ref(), DType::kF32, 1, 16, q), ks(Ref(), DType::kF32, 1, 8, k),
      vs(Ref(), DType::kF32, 1, 8, v);
  std::vector<float> cache_k(3 * 4 * 8, -1.0f), cache_v(3 * 4 * 8, -1.0f);
  const KvLayer cache{DType::kF32, cache_k.data(), cache_v.data(), 3, 4, 1, 8};
  const std::vector<int32_t> positions = {2}, slots = {9};  // block 2, offset 1
  Ref().RopeAndStoreKv(
      qs, ks, vs, table.data(), spec,
      {.positions = positions, .slots = slots, .seq_of_row = {}, .block_tables = {}}, cache);
  const std::vector<float> turned = qs.Read();
  const auto expect_turned = [](const float* to, const float* from, int i) {
    const std::complex<double> z =
        std::complex<double>(from[i], from[i + 4]) * std::polar(1.0, 2 * std::pow(10.0, -i));
    EXPECT_NEAR(to[i], z.real(), 1e-6);
    EXPECT_NEAR(to[i + 4], z.imag(), 1e-6);
  };
  for (int i = 0; i < 4; ++i) {
    expect_turned(turned.data(), q.data(), i);
    expect_turned(turned.data() + 8, q.data() + 8, i);
    expect_turned(cache_k.data() + 9 * 8, k.data(), i);
  }
  for (size_t i = 0; i < cache_v.size(); ++i) {
    EXPECT_EQ(cache_v[i], i / 8 == 9 ? v[i % 8] : -1.0f);
    EXPECT_TRUE(i / 8 == 9 || cache_k[i] == -1.0f) << i;
  }
}

TEST(RefAttention, WeighsValuesBySoftmaxOfScaledScores) {
  // One KV head of size 2, two query heads; three tokens in blocks of two, out of order in memory.
  const AttentionSpec spec{2, 1, 2, 0.5f};
  std::vector<float> k(4 * 2 * 2, NAN), v(4 * 2 * 2, NAN);
  const KvLayer cache{DType::kF32, k.data(), v.data(), 4, 2, 1, 2};
  const float keys[3][2] = {{1, 0}, {0, 1}, {2, 2}}, values[3][2] = {{10, 1}, {20, 2}, {30, 3}};
  const std::vector<int32_t> table = {3, 1};
  for (int t = 0; t < 3; ++t) {
    for (int i = 0; i < 2; ++i) {
      k[static_cast<size_t>(cache.Offset(table[static_cast<size_t>(t / 2)], 0, t % 2) + i)] =
          keys[t][i];
      v[static_cast<size_t>(cache.Offset(table[static_cast<size_t>(t / 2)], 0, t % 2) + i)] =
          values[t][i];
    }
  }
  const std::vector<float> q = {1, 2, 3, -1, 1, 2, 3, -1};  // two rows of two heads
  const std::vector<int32_t> positions = {1, 2}, seq_of_row = {0, 0};
  const DeviceMatrix qs(Ref(), DType::kF32, 2, 4, q), out(Ref(), DType::kF32, 2, 4);
  Ref().Attention(qs, spec,
                  {.positions = positions,
                   .slots = {},
                   .seq_of_row = seq_of_row,
                   .block_tables = table,
                   .num_seqs = 1,
                   .max_blocks = 2},
                  cache, out);
  const std::vector<float> y = out.Read();
  for (int row = 0; row < 2; ++row) {
    for (int head = 0; head < 2; ++head) {
      double total = 0, sum[2] = {0, 0};
      for (int t = 0; t <= row + 1; ++t) {
        const double weight = std::exp(0.5 * (q[static_cast<size_t>(head * 2)] * keys[t][0] +
                                              q[static_cast<size_t>(head * 2 + 1)] * keys[t][1]));
        total += weight;
        for (int i = 0; i < 2; ++i) sum[i] += weight * values[t][i];
      }
      for (int i = 0; i < 2; ++i) {
        EXPECT_FLOAT_EQ(y[static_cast<size_t>(row * 4 + head * 2 + i)],
                        static_cast<float>(sum[i] / total));
      }
    }
  }
}

TEST(RefGatedActivation, IsSiluOfTheFirstHalfTimesTheSecond) {
  const DeviceMatrix x(Ref(), DType::kF32, 1, 6, std::vector<float>{0, 1, -1000, 5, 2, 3}),
      out(Ref(), DType::kF32, 1, 3);
  Ref().GatedActivation(x, Activation::kSilu, out);
  EXPECT_THAT(out.Read(),
              ElementsAre(0.0f, FloatEq(2 / (1 + std::exp(-1.0f))), FloatNear(0.0f, 1e-30f)));
}

TEST(RefBackend, DescribesItself) {
  EXPECT_EQ(Ref().name(), "ref");
  EXPECT_GT(Ref().info().total_memory, 0);
  EXPECT_GT(Ref().info().free_memory, 0);
}

}  // namespace
}  // namespace quantd::testing
