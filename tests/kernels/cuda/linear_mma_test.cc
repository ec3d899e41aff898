// LinearMma against sums in double, and its promise: a row's bits depend on neither the number of
// rows, nor its place among them, nor the way the splits of k are added.
#include <gtest/gtest.h>

#include "kernels/cuda/linear_mma.h"
#include "tests/kernels/cuda/weight_on_device.h"

namespace quantd::cuda_emulated {
namespace {

using namespace on_device;

constexpr int64_t kAllSharedMemory = 227 << 10, kLittleSharedMemory = 99 << 10;

std::vector<float> RunLinear(const CudaPackedWeight& w, const LinearProblem& p, int64_t first,
                             int64_t m, FloatType y_type, int multiprocessors,
                             Layout layout = kWide, int64_t shared_memory = kAllSharedMemory) {
  const size_t rows = static_cast<size_t>(m);
  const Rows x(p.x_type, rows, static_cast<size_t>(p.k), p.XRows(first, m), layout);
  const Rows y(y_type, rows, static_cast<size_t>(p.n), layout);
  const Array<float> bias(p.bias);
  const DeviceLimits device{multiprocessors, 9, 0, shared_memory};
  const int32_t tokens = static_cast<int32_t>(m);
  const Array<float> partials(
      std::vector<float>(LinearMmaWorkspaceBytes(w.view(), tokens, device) / sizeof(float), NAN));
  const int32_t num_counters = LinearMmaCounters(w.view(), tokens, device);
  const Array<int32_t> counters(std::vector<int32_t>(static_cast<size_t>(num_counters), 0));
  const Workspace workspace{partials.data(), partials.span().size_bytes(), counters.data(),
                            num_counters};
  Execute(
      [&](Stream stream) { LinearMma(w.view(), x, bias.data(), y, workspace, device, stream); });
  for (int32_t counter : counters.Read()) EXPECT_EQ(counter, 0);
  return y.Read();
}

struct MmaCase {
  std::string format;
  std::vector<int64_t> rows;
  int64_t k;
  FloatType x, y;
  int multiprocessors;
};

/// The values of the codes are not exact in 16 bits.
bool RoundsTable(const MmaCase& c) {
  return c.format.starts_with("nf4") || c.format.starts_with("fp4");
}

class LinearMmaTest : public ::testing::TestWithParam<MmaCase> {};

TEST_P(LinearMmaTest, IsCloseToTheSumsAndIndependentOfTheBatch) {
  const MmaCase& c = GetParam();
  constexpr int64_t kTokens = 65;
  const LinearProblem p(*QuantFormat::Parse(c.format), c.rows, c.k, c.x, kTokens);
  const auto w = PackOnDevice(p.matrices);
  ASSERT_TRUE(HasLinearMma(w->view(), c.x));
  const std::vector<float> whole = RunLinear(*w, p, 0, kTokens, c.y, c.multiprocessors);
  p.ExpectClose(whole, c.y, 0, RoundsTable(c));
  for (int64_t m : {1, 2, 3, 8, 9, 16, 17, 33}) {
    const int64_t first = m * 5 % (kTokens - m + 1);
    const std::vector<float> part =
        RunLinear(*w, p, first, m, c.y, c.multiprocessors, m == 3 || m == 17 ? kNarrow : kWide);
    EXPECT_TRUE(std::equal(part.begin(), part.end(), whole.begin() + first * p.n))
        << "tokens " << first << " + " << m;
  }
}

// One multiprocessor: 65 tokens walk all splits in one block. More: the last block adds them. 140
// rows on one: no splits, and more k tiles than a slice of x has.
INSTANTIATE_TEST_SUITE_P(
    Formats, LinearMmaTest,
    ::testing::Values(MmaCase{"nf4.flat64.f32", {80}, 320, kBF16, kBF16, 4},
                      MmaCase{"nf4.flat64.f32", {17, 31}, 64, kF16, kF16, 1},
                      MmaCase{"nf4.flat64.nested", {80}, 576, kBF16, kBF16, 1},
                      MmaCase{"nf4.flat64.nested", {33, 1, 9}, 1088, kF16, kF32, 2},
                      MmaCase{"fp4.flat64.f32", {3}, 128, kBF16, kF32, 132},
                      MmaCase{"fp4.flat64.nested", {140}, 320, kBF16, kF32, 4},
                      MmaCase{"nf4.flat128.f32", {20}, 640, kF16, kF16, 132},
                      MmaCase{"nf4.flat192.nested", {20, 7, 5, 16}, 1344, kBF16, kBF16, 1},
                      MmaCase{"nf4.flat64.nested", {140}, 1344, kBF16, kBF16, 1},
                      MmaCase{"int4.group64.f16", {80}, 320, kBF16, kBF16, 4},
                      MmaCase{"int4.group128.bf16", {33, 1, 9}, 1096, kF16, kF32, 1},
                      MmaCase{"int4.row.f32", {17}, 200, kBF16, kBF16, 2},
                      MmaCase{"e2m1.group64.f16", {140}, 320, kBF16, kBF16, 4},
                      MmaCase{"uint4.group64.f16.zero_u8", {80}, 576, kBF16, kBF16, 1},
                      MmaCase{"uint4.group128.bf16.zero_u8", {17, 31}, 200, kF16, kF16, 4},
                      MmaCase{"uint4.flat64.f16.zero_f16", {140}, 320, kF16, kF32, 2},
                      MmaCase{"int4.group64.bf16.offset_bf16", {33, 1, 9}, 1344, kBF16, kBF16, 1},
                      MmaCase{"bf16", {80}, 320, kBF16, kBF16, 4},
                      MmaCase{"bf16", {5, 17}, 72, kBF16, kF32, 1},
                      MmaCase{"bf16", {140}, 584, kBF16, kBF16, 1},
                      MmaCase{"f16", {33, 1, 9}, 328, kF16, kF16, 132}),
    [](const auto& test) { return "case" + std::to_string(test.index); });

TEST(LinearMma, SplitsAreAddedAlikeByTheLastBlockAndWithinABlock) {
  // What LinearMmaTest compares to the bit with one multiprocessor are indeed the two ways.
  const auto w = PackOnDevice({RandomWeight(*QuantFormat::Parse("nf4.flat64.nested"), 80, 576, 1)});
  EXPECT_GT(MmaPlanOf(w->view(), 1).splits, 1);
  EXPECT_GT(LinearMmaWorkspaceBytes(w->view(), 64, {1, 9, 0, kAllSharedMemory}), 0u);
  EXPECT_GT(LinearMmaCounters(w->view(), 64, {1, 9, 0, kAllSharedMemory}), 0);
  EXPECT_EQ(LinearMmaWorkspaceBytes(w->view(), 65, {1, 9, 0, kAllSharedMemory}), 0u);
  EXPECT_EQ(LinearMmaCounters(w->view(), 65, {1, 9, 0, kAllSharedMemory}), 0);
  EXPECT_GT(LinearMmaWorkspaceBytes(w->view(), 65, {132, 9, 0, kAllSharedMemory}), 0u);
}

TEST(LinearMma, DevicesWithLittleSharedMemoryGiveTheSameBits) {
  const LinearProblem p(*QuantFormat::Parse("nf4.flat64.nested"), {80}, 576, kBF16, 65);
  const auto w = PackOnDevice(p.matrices);
  EXPECT_GT(LinearMmaWorkspaceBytes(w->view(), 65, {1, 8, 6, kLittleSharedMemory}), 0u);
  EXPECT_EQ(RunLinear(*w, p, 0, 65, kBF16, 1, kWide, kLittleSharedMemory),
            RunLinear(*w, p, 0, 65, kBF16, 1));
  WeightView large = w->view();
  large.n = large.k = large.padded_k = 8192;
  large.row_tiles = 512;
  ASSERT_GT(MmaPlanOf(large, 132).splits, 1);
  EXPECT_LE(LinearMmaWorkspaceBytes(large, 100000, {132, 8, 6, kLittleSharedMemory}),
            size_t{64} << 20);
}

TEST(LinearMma, NestedScalesThatCrossAGroupOf256AreDecodedOnBothSides) {
  // 24 blocks a row: groups change within rows 10, 21 and 32.
  const LinearProblem p(*QuantFormat::Parse("nf4.flat64.nested"), {48}, 24 * 64, kBF16, 2);
  const auto w = PackOnDevice(p.matrices);
  p.ExpectClose(RunLinear(*w, p, 0, 2, kF32, 1), kF32, 0, true);
}

TEST(LinearMma, PlanDependsOnTheWeightAndTheDeviceOnly) {
  WeightView w;
  w.codec = Codec::kNf4;
  w.order = BlockOrder::kTiled;
  for (int32_t n : {16, 1024, 4096, 28672, 128256}) {
    for (int32_t k : {64, 4096, 14336}) {
      w.n = n;
      w.k = k;
      w.row_tiles = n / 16;
      const MmaPlan plan = MmaPlanOf(w, 132);
      EXPECT_EQ(plan.k_tiles, k / 64);
      EXPECT_EQ(plan.tiles_per_split % kMmaSplitUnit, 0);
      EXPECT_GE(plan.tiles_per_split * plan.splits, plan.k_tiles);
      EXPECT_LT(plan.tiles_per_split * (plan.splits - 1), plan.k_tiles);
      for (int32_t m : {1, 8, 64, 512, 4096}) {
        EXPECT_LE(LinearMmaWorkspaceBytes(w, m, {132, 9, 0, kAllSharedMemory}), size_t{64} << 20)
            << n << " " << k;
      }
    }
  }
}

TEST(LinearMma, KeepsTheDeviceBusyForASmallWeight) {
  WeightView w;
  w.codec = Codec::kNf4;
  w.order = BlockOrder::kTiled;
  w.n = w.k = 4096;
  w.row_tiles = 256;
  const MmaPlan plan = MmaPlanOf(w, 132);
  EXPECT_GE(plan.row_groups * plan.splits, 132 * 3 / 2);
}

TEST(LinearMma, TakesOnlyWhatItsKernelsRead) {
  const auto has = [](const char* format, int64_t k, FloatType x) {
    return HasLinearMma(PackOnDevice({RandomWeight(*QuantFormat::Parse(format), 2, k, 1)})->view(),
                        x);
  };
  EXPECT_TRUE(has("nf4.flat64.f32", 128, kBF16));
  EXPECT_TRUE(has("fp4.flat128.nested", 128, kF16));
  EXPECT_FALSE(has("nf4.flat64.f32", 128, kF32));
  EXPECT_FALSE(has("nf4.flat64.f32", 96, kBF16));   // blocks cross rows
  EXPECT_FALSE(has("nf4.flat32.f32", 128, kBF16));  // two blocks a tile
  EXPECT_TRUE(has("int4.group128.f16", 200, kBF16));
  EXPECT_TRUE(has("int4.row.bf16", 72, kF16));
  EXPECT_TRUE(has("uint4.group64.f16.zero_u8", 128, kBF16));
  EXPECT_FALSE(has("uint4.group32.f16.zero_u8", 128, kBF16));
  EXPECT_FALSE(has("uint4.flat64.f32.zero_f32", 128, kBF16));
  EXPECT_FALSE(has("e2m1.group16.e4m3", 128, kBF16));
  EXPECT_TRUE(has("bf16", 72, kBF16));
  EXPECT_FALSE(has("bf16", 72, kF16));
  EXPECT_FALSE(has("bf16", 71, kBF16));  // rows are not 16-byte aligned
  EXPECT_FALSE(has("int8.row.absmax", 128, kBF16));
}

}  // namespace
}  // namespace quantd::cuda_emulated
