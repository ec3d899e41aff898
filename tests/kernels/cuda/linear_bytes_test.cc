// LinearBytes against sums in double, and its promise: a row's bits depend on neither the number of
// rows, nor its place among them, nor how x lies in memory. That every code is exact: ByteCodes in
// linear_conformance_test.cc.
#include <gtest/gtest.h>

#include "kernels/cuda/ops.h"
#include "tests/kernels/cuda/weight_on_device.h"

namespace quantd::cuda_emulated {
namespace {

using namespace on_device;

std::vector<float> RunLinear(const CudaPackedWeight& w, const LinearProblem& p, int64_t first,
                             int64_t m, FloatType y_type, Layout layout = kWide) {
  const size_t rows = static_cast<size_t>(m);
  const Rows x(p.x_type, rows, static_cast<size_t>(p.k), p.XRows(first, m), layout);
  const Rows y(y_type, rows, static_cast<size_t>(p.n), layout);
  const Array<float> bias(p.bias);
  Execute([&](Stream stream) { LinearBytes(w.view(), x, bias.data(), y, stream); });
  return y.Read();
}

struct BytesCase {
  std::string format;
  std::vector<int64_t> rows;
  int64_t k;
  FloatType x, y;
};

class LinearBytesTest : public ::testing::TestWithParam<BytesCase> {};

TEST_P(LinearBytesTest, IsCloseToTheSumsAndIndependentOfTheBatch) {
  const BytesCase& c = GetParam();
  constexpr int64_t kTokens = 35;
  const LinearProblem p(*QuantFormat::Parse(c.format), c.rows, c.k, c.x, kTokens);
  const auto w = PackOnDevice(p.matrices);
  ASSERT_TRUE(HasLinearBytes(w->view(), c.x));
  const std::vector<float> whole = RunLinear(*w, p, 0, kTokens, c.y);
  p.ExpectClose(whole, c.y, 0, /*rounds_table=*/false);
  for (int64_t m : {1, 2, 8, 9, 16, 17, 32}) {
    const int64_t first = m * 5 % (kTokens - m + 1);
    const std::vector<float> part =
        RunLinear(*w, p, first, m, c.y, m == 2 || m == 17 ? kNarrow : kWide);
    EXPECT_TRUE(std::equal(part.begin(), part.end(), whole.begin() + first * p.n))
        << "tokens " << first << " + " << m;
  }
}

// Turns of 256 columns for eight warps: fewer, as many and more; k that 16 does not divide; last
// blocks that are short; rows of several segments in a tile.
INSTANTIATE_TEST_SUITE_P(
    Formats, LinearBytesTest,
    ::testing::Values(BytesCase{"int8.group128.bf16", {80}, 320, kBF16, kBF16},
                      BytesCase{"int8.group64.f16", {33, 1, 9}, 2112, kF16, kF32},
                      BytesCase{"int8.group128.f32", {17}, 200, kBF16, kF32},
                      BytesCase{"int8.row.f32", {5, 17}, 72, kBF16, kBF16},
                      BytesCase{"int8.row.absmax", {20}, 2304, kF16, kF16},
                      BytesCase{"int8.row.f32", {3}, 67, kF16, kF32},
                      BytesCase{"uint8.group128.f16.zero_u8", {40}, 576, kBF16, kBF16},
                      BytesCase{"uint8.group64.bf16.zero_u8", {17, 31}, 200, kF16, kF32},
                      BytesCase{"uint8.flat64.f16.zero_f16", {24}, 320, kF16, kF16},
                      BytesCase{"uint8.flat64.f32.zero_f32", {24}, 2368, kBF16, kF32},
                      BytesCase{"uint8.group64.bf16.offset_bf16", {33, 1, 9, 7}, 640, kBF16, kBF16},
                      BytesCase{"uint8.group64.f32.offset_f32", {20}, 320, kF16, kF32},
                      BytesCase{"int8.group256.bf16.zero_u8", {40}, 1088, kBF16, kF32},
                      BytesCase{"int8.group512.f16", {20}, 4672, kBF16, kF32},
                      BytesCase{"e4m3.tile128x128.f32", {260}, 128, kBF16, kF32},
                      BytesCase{"e4m3.row.f32", {40}, 320, kBF16, kBF16},
                      BytesCase{"e4m3.row.bf16", {7, 7, 7}, 67, kF16, kF32},
                      BytesCase{"e4m3.tile128x128.f32", {140}, 328, kBF16, kBF16},
                      BytesCase{"e4m3.tile128x128.f32", {31, 128}, 2176, kF16, kF32}),
    [](const auto& test) { return "case" + std::to_string(test.index); });

TEST(LinearBytes, TakesOnlyWhatItsKernelsRead) {
  const auto has = [](const char* format, int64_t k, FloatType x) {
    return HasLinearBytes(
        PackOnDevice({RandomWeight(*QuantFormat::Parse(format), 2, k, 1)})->view(), x);
  };
  EXPECT_TRUE(has("int8.group128.bf16", 256, kBF16));
  EXPECT_TRUE(has("int8.row.f32", 67, kF16));
  EXPECT_TRUE(has("uint8.flat64.f16.zero_f16", 128, kBF16));
  EXPECT_TRUE(has("e4m3.tile128x128.f32", 256, kBF16));
  EXPECT_TRUE(has("int8.group96.bf16", 96, kBF16));    // one a row
  EXPECT_FALSE(has("int8.group96.bf16", 192, kBF16));  // blocks end within a piece
  EXPECT_FALSE(has("int8.group192.bf16", 576, kBF16));
  EXPECT_FALSE(has("int8.group32.bf16", 128, kBF16));
  EXPECT_FALSE(has("int8.row.e4m3", 128, kBF16));
  EXPECT_FALSE(has("int8.group128.bf16", 256, kF32));
  EXPECT_FALSE(has("uint8.flat64.f16.zero_f16", 96, kBF16));  // blocks cross rows
  EXPECT_FALSE(has("uint8.strided64.f16.zero_f16", 128, kBF16));
  EXPECT_FALSE(has("nf4.flat64.f32", 128, kBF16));
  EXPECT_FALSE(has("bf16", 128, kBF16));
}

}  // namespace
}  // namespace quantd::cuda_emulated
