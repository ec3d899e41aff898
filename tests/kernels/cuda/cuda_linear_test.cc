// Linears through the whole backend: which kernels are chosen, quantized activations, reordered
// columns.
#include <gtest/gtest.h>

#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/linear_plan.h"
#include "kernels/ref/ref_backend.h"
#include "kernels/status.h"
#include "tests/kernels/cuda/weight_on_device.h"

namespace quantd::cuda_emulated {
namespace {

// ---- choice of kernels

using Kind = ActivationQuant::Kind;

std::unique_ptr<CudaPackedWeight> WeightOf(const std::string& format, int64_t n, int64_t k) {
  return on_device::PackOnDevice({on_device::RandomWeight(*QuantFormat::Parse(format), n, k, 1)});
}

TEST(CudaLinearPlan, FollowsItsTable) {
  struct Row {
    const char* format;
    Kind kind;
    FloatType x;
    int32_t m, k;
    LinearWay fast, invariant;
    ActivationQuant more = {};
  };
  constexpr auto kBF16 = FloatType::kBF16;
  constexpr auto kF32 = FloatType::kF32;
  using Way = LinearWay;
  const Row table[] = {
      {"nf4.flat64.f32", Kind::kNone, kBF16, 1, 256, Way::kMma, Way::kMma},
      {"nf4.flat64.f32", Kind::kNone, kBF16, 64, 256, Way::kMma, Way::kMma},
      {"nf4.flat64.f32", Kind::kNone, kBF16, 65, 256, Way::kDequantizeGemm, Way::kMma},
      {"nf4.flat64.f32", Kind::kNone, kBF16, 65, 200, Way::kDequantizeGemm, Way::kGeneric},
      {"nf4.flat64.f32", Kind::kNone, kBF16, 3, 200, Way::kDequantizeGemm, Way::kGeneric},
      {"nf4.flat64.f32", Kind::kNone, kBF16, 65, 204, Way::kGeneric, Way::kGeneric},
      {"nf4.flat64.f32", Kind::kNone, kF32, 65, 256, Way::kGeneric, Way::kGeneric},
      {"nf4.flat64.f32", Kind::kFp8Token, kBF16, 8, 256, Way::kMma, Way::kMma},
      {"nf4.flat64.f32",
       Kind::kNone,
       kBF16,
       8,
       256,
       Way::kDequantizeGemm,
       Way::kGeneric,
       {.reference = true}},
      {"nf4.flat64.f32",
       Kind::kNone,
       kBF16,
       9,
       256,
       Way::kDequantizeGemm,
       Way::kGeneric,
       {.reference = true}},
      {"int4.group128.f16", Kind::kNone, kBF16, 64, 256, Way::kMma, Way::kMma},
      {"uint4.group64.f16.zero_u8", Kind::kNone, kBF16, 65, 256, Way::kDequantizeGemm, Way::kMma},
      {"int4.group32.f16", Kind::kNone, kBF16, 9, 256, Way::kDequantizeGemm, Way::kGeneric},
      {"int4.group32.f16", Kind::kNone, kBF16, 8, 256, Way::kDequantizeGemm, Way::kGeneric},
      {"bf16", Kind::kNone, kBF16, 8, 256, Way::kMma, Way::kMma},
      {"bf16", Kind::kNone, kBF16, 8, 256, Way::kMma, Way::kMma, {.reference = true}},
      {"bf16", Kind::kNone, kBF16, 9, 256, Way::kGemm, Way::kMma},
      {"f16", Kind::kNone, kBF16, 9, 256, Way::kGeneric, Way::kGeneric},
      {"f32", Kind::kNone, kBF16, 9, 256, Way::kGeneric, Way::kGeneric},
      {"int8.row.absmax", Kind::kNone, kBF16, 32, 256, Way::kBytes, Way::kBytes},
      {"int8.row.absmax", Kind::kNone, kBF16, 33, 256, Way::kDequantizeGemm, Way::kBytes},
      {"int8.row.absmax", Kind::kNone, kF32, 8, 256, Way::kGeneric, Way::kGeneric},
      {"int8.row.absmax", Kind::kInt8Outlier, kBF16, 16, 256, Way::kInt8Mma, Way::kInt8Mma},
      {"int8.row.absmax", Kind::kInt8Outlier, kBF16, 17, 256, Way::kInt8Gemm, Way::kInt8Gemm},
      {"int8.row.absmax", Kind::kInt8Outlier, kF32, 17, 256, Way::kInt8Gemm, Way::kInt8Gemm},
      {"int8.row.absmax", Kind::kInt8Outlier, kBF16, 17, 33, Way::kInt8Mma, Way::kInt8Mma},
      {"int8.row.absmax", Kind::kInt8Token, kBF16, 8, 256, Way::kBytes, Way::kBytes},
      {"int8.row.f32", Kind::kInt8Token, kBF16, 16, 256, Way::kInt8Mma, Way::kInt8Mma},
      {"int8.row.bf16", Kind::kInt8Token, kBF16, 17, 256, Way::kInt8Gemm, Way::kInt8Gemm},
      {"int8.row.bf16",
       Kind::kInt8Token,
       kBF16,
       8,
       256,
       Way::kDequantizeGemm,
       Way::kGeneric,
       {.reference = true}},
      {"int8.row.bf16", Kind::kInt8Tensor, kBF16, 8, 256, Way::kInt8Mma, Way::kInt8Mma},
      {"int8.row.bf16",
       Kind::kInt8Tensor,
       kBF16,
       8,
       256,
       Way::kBytes,
       Way::kBytes,
       {.zero_point = 3}},
      {"e4m3.row.f32", Kind::kFp8Token, kBF16, 16, 256, Way::kBytes, Way::kBytes},
      {"e4m3.row.f32", Kind::kFp8Token, kBF16, 17, 256, Way::kFp8Gemm, Way::kBytes},
      {"e4m3.row.bf16", Kind::kFp8Tensor, kF32, 9, 256, Way::kFp8Gemm, Way::kGeneric},
      {"e4m3.row.f32", Kind::kFp8Token, kBF16, 33, 248, Way::kDequantizeGemm, Way::kBytes},
      {"e4m3.row.f32", Kind::kNone, kBF16, 9, 256, Way::kBytes, Way::kBytes},
      {"e4m3.row.f32",
       Kind::kFp8Token,
       kBF16,
       9,
       256,
       Way::kDequantizeGemm,
       Way::kGeneric,
       {.reference = true}},
      {"e4m3.tile128x128.f32",
       Kind::kFp8Group,
       kBF16,
       9,
       256,
       Way::kBytes,
       Way::kBytes,
       {.group = 128}},
      {"int8.row.f32", Kind::kInt8TokenAsym, kBF16, 8, 256, Way::kBytes, Way::kBytes},
      {"int8.row.e4m3", Kind::kInt8Token, kBF16, 8, 256, Way::kDequantizeGemm, Way::kGeneric},
      {"e4m3.row.e4m3", Kind::kFp8Token, kBF16, 9, 256, Way::kDequantizeGemm, Way::kGeneric},
      {"int8.group64.f32", Kind::kInt8Token, kBF16, 8, 256, Way::kBytes, Way::kBytes},
      {"int8.group32.f32", Kind::kInt8Token, kBF16, 8, 256, Way::kDequantizeGemm, Way::kGeneric},
      {"uint8.group256.f32.zero_u8", Kind::kInt8Token, kBF16, 8, 256, Way::kBytes, Way::kBytes},
  };
  for (const Row& row : table) {
    const auto packed = WeightOf(row.format, 64, row.k);
    const WeightView& w = packed->view();
    ActivationQuant activation = row.more;
    activation.kind = row.kind;
    const Matrix x = {row.x, nullptr, row.m, row.k, row.k}, y = {row.x, nullptr, row.m, 64, 64};
    const std::string what =
        fmt::format("{} activation {} x {} m {} k {}", row.format, static_cast<int>(row.kind),
                    static_cast<int>(row.x), row.m, row.k);
    EXPECT_EQ(PlanLinear(w, activation, x, y, {true, Determinism::kDefault, true}), row.fast)
        << what;
    EXPECT_EQ(PlanLinear(w, activation, x, y, {true, Determinism::kBatchInvariant, true}),
              row.invariant)
        << what;
    const Way without = PlanLinear(w, activation, x, y, {false, Determinism::kDefault});
    EXPECT_NE(PlanLinear(w, activation, x, y, {true, Determinism::kDefault, false}), Way::kFp8Gemm);
    EXPECT_TRUE(without == Way::kMma || without == Way::kBytes || without == Way::kGeneric ||
                without == Way::kInt8Mma)
        << what << " without cuBLASLt";
  }
}

TEST(CudaLinearPlan, LeavesUnalignedOperandsToOurOwnKernels) {
  const auto packed = WeightOf("nf4.flat64.f32", 64, 256);
  const WeightView& w = packed->view();
  const Matrix x = {FloatType::kBF16, nullptr, 100, 256, 256},
               y = {FloatType::kBF16, nullptr, 100, 64, 64};
  const LinearPolicy policy = {true, Determinism::kDefault, true};
  ASSERT_EQ(PlanLinear(w, {}, x, y, policy), LinearWay::kDequantizeGemm);
  Matrix gap = x, shifted = x, y_gap = y;
  gap.stride = 259;
  shifted.data = reinterpret_cast<void*>(2);
  y_gap.stride = 67;
  EXPECT_EQ(PlanLinear(w, {}, gap, y, policy), LinearWay::kMma);
  EXPECT_EQ(PlanLinear(w, {}, shifted, y, policy), LinearWay::kMma);
  EXPECT_EQ(PlanLinear(w, {}, x, y_gap, policy), LinearWay::kMma);
}

// ---- quantized activations and reordered columns, through the whole backend

// y [m, n] f32 of x [m, k] bf16 on `backend`.
std::vector<float> RunLinear(Backend& backend, const QuantizedMatrix& matrix,
                             const ActivationQuant& activation, const std::vector<float>& x,
                             int64_t m) {
  auto w = backend.CreatePacked(matrix.format, matrix.k, {{"w", 0, matrix.n}},
                                MemoryComponent::kWeights);
  EXPECT_TRUE(w.ok()) << w.status();
  EXPECT_TRUE(backend.PackRows(**w, 0, matrix).ok());
  std::vector<BF16> bits;
  for (int64_t i = 0; i < m * matrix.k; ++i) bits.push_back(BF16(x[static_cast<size_t>(i)]));
  const auto count = static_cast<size_t>(m * matrix.n);
  const auto from = backend.Allocate(bits.size() * sizeof(BF16), MemoryComponent::kWorkspace);
  const auto to = backend.Allocate(count * sizeof(float), MemoryComponent::kWorkspace);
  EXPECT_TRUE(from.ok() && to.ok());
  backend.Upload(bits.data(), bits.size() * sizeof(BF16), from->data());
  backend.Linear(**w, activation, TensorView(DType::kBF16, from->data(), m, matrix.k), nullptr,
                 TensorView(DType::kF32, to->data(), m, matrix.n));
  EXPECT_TRUE(backend.Synchronize().ok());
  std::vector<float> y(count);
  backend.Download(to->data(), count * sizeof(float), y.data());
  return y;
}

TEST(CudaLinear, TakesQuantizedActivationsAndReorderedColumnsByEveryWay) {
  constexpr int64_t kRows = 70, kN = 32, kK = 128;
  using Rounding = ActivationQuant::Rounding;
  const struct {
    const char* format;
    ActivationQuant activation;
  } cases[] = {
      {"int4.group64.f16.reordered", {}},
      {"uint4.group32.f16.zero_u8.reordered", {.kind = Kind::kFp8Group, .group = 48}},
      {"int4.group32.bf16", {.kind = Kind::kInt8TokenAsym}},
      {"int8.row.bf16", {.kind = Kind::kInt8Token, .rounding = Rounding::kEveryStep}},
      {"int8.row.f32", {.kind = Kind::kInt8Token, .rounding = Rounding::kScale}},
      {"int8.row.f32", {.kind = Kind::kInt8Tensor, .scale = 0.03f}},
      {"int8.row.f32", {.kind = Kind::kInt8Tensor, .scale = 0.03f, .zero_point = -7}},
      {"int8.row.f32", {.kind = Kind::kInt8Token, .reference = true}},
      {"e4m3.row.f32", {.kind = Kind::kFp8Token}},
      {"e4m3.row.f32", {.kind = Kind::kFp8Tensor, .scale = 0.02f}},
      {"e4m3.tile128x128.f32", {.kind = Kind::kFp8Group, .group = 128}},
      {"nf4.flat64.f32", {.kind = Kind::kFp8Token, .reference = true}},
  };
  const auto ref = CreateRefBackend();
  for (const auto determinism : {Determinism::kDefault, Determinism::kBatchInvariant}) {
    const auto backend = on_device::MakeBackend({.determinism = determinism});
    for (const auto& c : cases) {
      std::vector<float> values = on_device::Normal(kN * kK, 5),
                         x = on_device::Normal(kRows * kK, 6);
      std::fill_n(x.begin() + kK, kK, 0.0f);
      const QuantizedMatrix matrix = testing::MatrixOf(*QuantFormat::Parse(c.format), values, kN);
      for (const int64_t m : {int64_t{3}, int64_t{20}, kRows}) {
        const std::vector<float> actual = RunLinear(*backend, matrix, c.activation, x, m);
        const std::vector<float> expected = RunLinear(*ref, matrix, c.activation, x, m);
        // Of weights and of x', bf16 keeps 8 bits; the errors of 128 products mostly cancel.
        for (size_t i = 0; i < expected.size(); ++i) {
          ASSERT_NEAR(actual[i], expected[i], c.activation.reference ? 1e-4 : 0.15)
              << c.format << " kind " << static_cast<int>(c.activation.kind) << " m " << m
              << " element " << i;
        }
      }
    }
  }
}

TEST(CudaLinear, ANaNShowsInItsRowWhereCodesAreMultiplied) {
  const auto backend = on_device::MakeBackend();
  std::vector<float> values = on_device::Normal(32 * 64, 5), x = on_device::Normal(20 * 64, 6);
  x[3 * 64 + 7] = NAN;
  const QuantizedMatrix matrix = testing::MatrixOf(*QuantFormat::Parse("int8.row.f32"), values, 32);
  for (const int64_t m : {4, 20}) {
    const auto y = RunLinear(*backend, matrix, {.kind = Kind::kInt8Token}, x, m);
    for (size_t i = 0; i < y.size(); ++i) EXPECT_EQ(std::isnan(y[i]), i / 32 == 3) << i;
  }
}

}  // namespace
}  // namespace quantd::cuda_emulated
