// LinearGeneric against sums in double: every format, every pair of types, odd shapes; a row's bits
// do not depend on the batch.
#include <gtest/gtest.h>

#include "tests/kernels/cuda/weight_on_device.h"

namespace quantd::cuda_emulated {
namespace {

using namespace on_device;

std::vector<float> RunLinear(const CudaPackedWeight& w, const LinearProblem& p, int64_t first,
                             int64_t m, FloatType y_type, bool with_bias = true) {
  const size_t rows = static_cast<size_t>(m);
  const Rows x(p.x_type, rows, static_cast<size_t>(p.k), p.XRows(first, m), kNarrow);
  const Rows y(y_type, rows, static_cast<size_t>(p.n), kNarrow);
  const Array<float> bias(p.bias);
  Execute([&](Stream stream) {
    LinearGeneric(w.view(), x, with_bias ? bias.data() : nullptr, y, false, stream);
  });
  return y.Read();
}

struct GenericCase {
  std::string format;
  std::vector<int64_t> rows;
  int64_t k;
  FloatType x, y;
};

class LinearGenericTest : public ::testing::TestWithParam<GenericCase> {};

TEST_P(LinearGenericTest, IsCloseToTheSumsAndIndependentOfTheBatch) {
  const GenericCase& c = GetParam();
  constexpr int64_t kTokens = 65;
  const LinearProblem p(*QuantFormat::Parse(c.format), c.rows, c.k, c.x, kTokens);
  const auto w = PackOnDevice(p.matrices);
  const std::vector<float> whole = RunLinear(*w, p, 0, kTokens, c.y);
  p.ExpectClose(whole, c.y, 0, false);
  for (int64_t m : {1, 2, 3, 8, 9, 17, 33}) {
    const int64_t first = m * 5 % (kTokens - m + 1);
    const std::vector<float> part = RunLinear(*w, p, first, m, c.y);
    EXPECT_TRUE(std::equal(part.begin(), part.end(), whole.begin() + first * p.n))
        << "tokens " << first << " + " << m;
  }
}

INSTANTIATE_TEST_SUITE_P(
    Formats, LinearGenericTest,
    ::testing::Values(GenericCase{"f32", {3}, 33, kF32, kF32},
                      GenericCase{"f16", {17, 5}, 72, kBF16, kBF16},
                      GenericCase{"bf16", {70}, 31, kF32, kF32},
                      GenericCase{"bf16", {33, 1, 9}, 40, kF16, kF16},
                      GenericCase{"nf4.flat64.f32", {17, 31}, 128, kF32, kF32},
                      GenericCase{"nf4.flat64.nested", {80}, 72, kBF16, kBF16},
                      GenericCase{"fp4.flat64.nested", {15}, 192, kF16, kF32},
                      GenericCase{"fp4.flat64.f32", {3, 2, 1, 4}, 33, kBF16, kF32},
                      GenericCase{"nf4.flat32.nested", {18}, 64, kF16, kF16},
                      GenericCase{"nf4.flat128.f32", {20}, 128, kBF16, kBF16},
                      GenericCase{"fp4.flat4096.f32", {37}, 200, kF32, kF32},
                      GenericCase{"int8.row.absmax", {17, 48}, 65, kBF16, kBF16},
                      GenericCase{"int8.row.absmax", {5}, 130, kF16, kF32},
                      GenericCase{"int4.group32.f16", {17, 5}, 72, kBF16, kBF16},
                      GenericCase{"int4.row.f32", {18}, 100, kF32, kF32},
                      GenericCase{"uint4.group64.f16.zero_u8", {9, 3}, 130, kF32, kF32},
                      GenericCase{"uint4.flat48.bf16.zero_bf16", {9}, 33, kBF16, kF32},
                      GenericCase{"uint4.strided16.f32.zero_f32", {16}, 40, kF16, kF16},
                      GenericCase{"uint8.group32.f16.zero_u8", {20}, 72, kBF16, kBF16},
                      GenericCase{"int8.group64.bf16", {5, 17}, 96, kF16, kF16},
                      GenericCase{"uint2.flat24.f16.zero_f16", {21}, 33, kF32, kF32},
                      GenericCase{"e4m3.tile16x32.f32", {19, 4}, 72, kBF16, kBF16},
                      GenericCase{"e4m3.row.f32", {17}, 40, kF16, kF32},
                      GenericCase{"e2m1.group16.e4m3", {18}, 40, kBF16, kF32}),
    [](const auto& test) { return "case" + std::to_string(test.index); });

TEST(LinearGeneric, RoundsWeightsToTheActivationsTypeWhenAsked) {
  LinearProblem p(*QuantFormat::Parse("int4.group32.f32"), {7}, 40, kBF16, 3);
  const auto w = PackOnDevice(p.matrices);
  const Rows x(kBF16, 3, 40, p.x), y(kF32, 3, 7);
  Execute([&](Stream stream) { LinearGeneric(w->view(), x, nullptr, y, true, stream); });
  const std::vector<float> actual = y.Read();
  for (size_t t = 0; t < 3; ++t) {
    for (size_t r = 0; r < 7; ++r) {
      double sum = 0.0, magnitude = 0.0;
      for (size_t c = 0; c < 40; ++c) {
        const float weight =
            p.matrices[0].Dequantize(static_cast<int64_t>(r), static_cast<int64_t>(c));
        const double product = double{Rounded(kBF16, weight)} * double{p.x[t * 40 + c]};
        sum += product;
        magnitude += std::fabs(product);
      }
      EXPECT_NEAR(actual[t * 7 + r], sum, magnitude * p.RelativeTolerance(false));
    }
  }
}

TEST(LinearGeneric, AddsNothingWithoutBias) {
  LinearProblem p(*QuantFormat::Parse("nf4.flat64.f32"), {5}, 64, kF32, 3);
  const auto w = PackOnDevice(p.matrices);
  const std::vector<float> without = RunLinear(*w, p, 0, 3, kF32, false);
  std::fill(p.bias.begin(), p.bias.end(), 0.0f);
  EXPECT_EQ(without, RunLinear(*w, p, 0, 3, kF32));
}

}  // namespace
}  // namespace quantd::cuda_emulated
