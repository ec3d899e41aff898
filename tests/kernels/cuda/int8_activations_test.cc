// LLM.int8's activations on the emulated device equal plain loops to the bit.
#include <gtest/gtest.h>

#include <random>

#include "tests/kernels/cuda/int8_testing.h"

namespace quantd::cuda_emulated {
namespace {

struct ExpectedActivations {
  std::vector<int8_t> codes;
  std::vector<float> scales;
  std::vector<std::vector<int32_t>> outliers;
};

/// By plain loops, as kernels/ref/linear.cc; but a NaN among elements that are no outliers (without
/// a threshold) makes the scale a NaN.
ExpectedActivations PlainActivations(std::span<const float> x, int32_t m, int32_t k,
                                     float threshold, Scope scope) {
  ExpectedActivations e{std::vector<int8_t>(x.size()), std::vector<float>(static_cast<size_t>(m)),
                        std::vector<std::vector<int32_t>>(static_cast<size_t>(m))};
  const auto at = [&](int32_t r, int32_t c) {
    return static_cast<float>(F16(x[static_cast<size_t>(r * k + c)]));
  };
  const auto is_outlier = [&](int32_t r, int32_t c) {
    return threshold > 0.0f && !(std::fabs(at(r, c)) < threshold);
  };
  for (int32_t r = 0; r < m; ++r) {
    float absmax = 0.0f;
    for (int32_t c = 0; c < k; ++c) {
      if (is_outlier(r, c)) continue;
      if (std::isnan(at(r, c))) absmax = kNaN;
      if (std::fabs(at(r, c)) > absmax) absmax = std::fabs(at(r, c));
    }
    e.scales[static_cast<size_t>(r)] = absmax;
    const float inverse = absmax > 0.0f ? 127.0f / absmax : 0.0f;
    for (int32_t c = 0; c < k; ++c) {
      bool outlier = is_outlier(r, c);
      for (int32_t i = 0; i < m && scope == Scope::kCall; ++i)
        outlier = outlier || is_outlier(i, c);
      const float q = std::nearbyint(at(r, c) * inverse);
      if (outlier) {
        e.outliers[static_cast<size_t>(r)].push_back(c);
      } else if (std::fabs(q) <= 127.0f) {
        e.codes[static_cast<size_t>(r * k + c)] = static_cast<int8_t>(q);
      }
    }
  }
  return e;
}

void ExpectActivations(FloatType type, int32_t m, int32_t k, int32_t gap,
                       std::span<const float> values, float threshold, Scope scope) {
  const TestStream stream;
  const DeviceRows x(type, m, k, gap, values);
  const std::vector<float> rounded = x.Read();
  const DeviceVector<unsigned char> memory(Int8ActivationBytes(m, k));
  std::memset(memory.data(), 0xA5, memory.size());
  const Int8Activations a = Int8ActivationsAt(memory.data(), m, k);
  QuantizeInt8(x.view(), threshold, scope == Scope::kCall, a, stream);
  stream.Finish();
  const ExpectedActivations e = PlainActivations(rounded, m, k, threshold, scope);
  ASSERT_EQ(a.padded_k % 64, 0);
  for (int32_t r = 0; r < m; ++r) {
    const size_t row = static_cast<size_t>(r);
    ExpectSameBits({a.scales + r, 1}, {&e.scales[row], 1}, "scale");
    for (int32_t c = 0; c < a.padded_k; ++c) {
      const int expected = c < k ? e.codes[static_cast<size_t>(r * k + c)] : 0;
      ASSERT_EQ(a.codes[int64_t{r} * a.padded_k + c], expected) << "row " << r << " column " << c;
    }
    const std::vector<int32_t>& outliers = e.outliers[row];
    ASSERT_EQ(a.counts[r], static_cast<int32_t>(outliers.size())) << "row " << r;
    std::vector<uint32_t> mask(static_cast<size_t>(a.padded_k / 32));
    for (size_t i = 0; i < outliers.size(); ++i) {
      mask[static_cast<size_t>(outliers[i] / 32)] |= 1u << outliers[i] % 32;
      if (i >= Int8Activations::kMaxOutliers) continue;
      ASSERT_EQ(a.columns[r * Int8Activations::kMaxOutliers + static_cast<int32_t>(i)], outliers[i])
          << "row " << r;
    }
    for (size_t i = 0; i < mask.size(); ++i) {
      ASSERT_EQ(a.masks[row * mask.size() + i], mask[i]) << "row " << r << " word " << i;
    }
  }
}

TEST(Int8ActivationsTest, EqualPlainLoopsForEveryTypeScopeAndThreshold) {
  std::mt19937 random(5);
  std::normal_distribution<float> normal(0.0f, 2.5f);
  for (int32_t k : {1, 8, 33, 72, 400, 2100}) {
    constexpr int32_t kRows = 9;
    std::vector<float> x(static_cast<size_t>(kRows * k));
    for (float& v : x) v = normal(random);
    const auto row = [&](int32_t r) {
      return std::span(x).subspan(static_cast<size_t>(r * k), static_cast<size_t>(k));
    };
    for (float& v : row(1)) v = 0.0f;
    for (float& v : row(2)) v = v < 0.0f ? -6.0f : 6.0f;  // all at the threshold
    row(3)[0] = kNaN;
    row(3)[static_cast<size_t>(k - 1)] = -70000.0f;  // infinite as f16
    row(4)[static_cast<size_t>(k / 2)] = kInfinity;
    row(5)[0] = 5.998047f;               // below 6 in f16, 6 in bf16
    for (float& v : row(6)) v *= 1e-7f;  // subnormal in f16
    for (size_t i = 0; i < row(7).size(); ++i) row(7)[i] = static_cast<float>(i % 128) / 127.0f;
    for (float& v : row(8)) v *= 0.2f;  // no outliers of its own
    for (FloatType type : {FloatType::kF32, FloatType::kF16, FloatType::kBF16}) {
      for (float threshold : {0.0f, 6.0f}) {
        for (Scope scope : {Scope::kRow, Scope::kCall}) {
          SCOPED_TRACE(fmt::format("k {} type {} threshold {} scope {}", k, static_cast<int>(type),
                                   threshold, static_cast<int>(scope)));
          ExpectActivations(type, kRows, k, k % 8 == 0 ? 8 : 3, x, threshold, scope);
          if (k % 8 == 0) ExpectActivations(type, kRows, k, 1, x, threshold, scope);
        }
      }
    }
  }
}

}  // namespace
}  // namespace quantd::cuda_emulated
