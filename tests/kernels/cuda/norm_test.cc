// The norms of norm.cu against ref, whose sums are double; and what a row's bits may depend on:
// its values and nothing else.
#include <gtest/gtest.h>

#include "kernels/cuda/emulation/fibers.h"
#include "kernels/ref/ops.h"
#include "tests/kernels/cuda/rows_on_device.h"

namespace quantd::cuda_emulated {
namespace {

using on_device::Array;
using on_device::Execute;
using on_device::ExpectNear;
using on_device::ExpectSame;
using on_device::kNarrow;
using on_device::kTypes;
using on_device::kWide;
using on_device::Layout;
using on_device::NameOf;
using on_device::Normal;
using on_device::Rounded;
using on_device::Rows;

constexpr float kEps = 1e-5f;

std::vector<float> Norm(FloatType type, size_t rows, size_t cols, std::span<const float> values,
                        const Array<float>& weight, Layout layout) {
  const Rows x(type, rows, cols, values, layout), out(type, rows, cols, layout);
  Execute([&](Stream s) { RmsNorm(x, weight.data(), kEps, out, s); });
  return out.Read();
}

class CudaNorm : public ::testing::TestWithParam<size_t> {};

TEST_P(CudaNorm, IsNearRefAndARowsBitsDependOnItsValuesOnly) {
  const size_t cols = GetParam(), rows = 4;
  const std::vector<float> weights = Normal(cols, 2);
  const Array<float> weight(weights);
  for (FloatType type : kTypes) {
    std::vector<float> values = Normal(rows * cols, 1, 3.0f);
    for (size_t c = 0; c < cols; ++c) {
      values[cols + c] = 0.0f;  // only eps
      values[2 * cols + c] *= 1e-3f;
    }
    values = Rounded(type, values);
    const std::string what = NameOf(type) + ", " + std::to_string(cols) + " columns";

    const Rows in(FloatType::kF32, rows, cols, values), exact(FloatType::kF32, rows, cols);
    ref::RmsNorm(in.View(), weights.data(), kEps, exact.View());
    const std::vector<float> reference = exact.Read();
    const std::vector<float> actual = Norm(type, rows, cols, values, weight, kWide);
    // A thread's chain of at most 40 squares and ten levels of tree, halved by the root; division,
    // eps, root, division, two products, ref's own rounding.
    ExpectNear(actual, {reference.begin(), reference.end()}, (0.5 * 50 + 7) * 0x1p-24, 0.0, type,
               what);

    ExpectSame(Norm(type, rows, cols, values, weight, kNarrow), actual, what + ", alignment");
    SetScheduleOrder({ScheduleOrder::Kind::kReverse, 0});
    ExpectSame(Norm(type, rows, cols, values, weight, kWide), actual, what + ", reverse order");
    SetScheduleOrder({});
    for (size_t r : {0, 2}) {
      const auto from = actual.begin() + static_cast<std::ptrdiff_t>(r * cols);
      ExpectSame(Norm(type, 1, cols, std::span(values).subspan(r * cols, cols), weight, kWide),
                 {from, from + static_cast<std::ptrdiff_t>(cols)}, what + ", alone");
    }
  }
}

TEST_P(CudaNorm, AddRoundsTheResidualAndNormsWhatItStored) {
  const size_t cols = GetParam(), rows = 3;
  const Array<float> weight(Normal(cols, 3));
  for (FloatType type : kTypes) {
    const std::vector<float> r0 = Rounded(type, Normal(rows * cols, 1, 2.0f)),
                             x0 = Rounded(type, Normal(rows * cols, 2));
    std::vector<float> sum(rows * cols);
    for (size_t i = 0; i < sum.size(); ++i) sum[i] = Rounded(type, r0[i] + x0[i]);
    const std::vector<float> expected = Norm(type, rows, cols, sum, weight, kWide);
    for (Layout layout : {kWide, kNarrow}) {
      const std::string what = NameOf(type) + ", " + std::to_string(cols) + " columns";
      const Rows residual(type, rows, cols, r0, layout), x(type, rows, cols, x0, kWide);
      const Rows out(type, rows, cols, layout);
      Execute([&](Stream s) { AddRmsNorm(residual, x, weight.data(), kEps, out, s); });
      ExpectSame(residual.Read(), sum, what + ", residual");
      ExpectSame(out.Read(), expected, what + ", norm of the stored sum");
      ExpectSame(x.Read(), x0, what + ", x is unchanged");

      const Rows again(type, rows, cols, r0, layout);  // out in place of x
      Execute([&](Stream s) { AddRmsNorm(again, x, weight.data(), kEps, x, s); });
      ExpectSame(x.Read(), expected, what + ", over x");
    }
  }
}

TEST_P(CudaNorm, MayWriteInPlace) {
  const size_t cols = GetParam();
  const Array<float> weight(Normal(cols, 3));
  const std::vector<float> values = Rounded(FloatType::kBF16, Normal(2 * cols, 1));
  const std::vector<float> expected = Norm(FloatType::kBF16, 2, cols, values, weight, kWide);
  for (Layout layout : {kWide, kNarrow}) {
    const Rows x(FloatType::kBF16, 2, cols, values, layout);
    Execute([&](Stream s) { RmsNorm(x, weight.data(), kEps, x, s); });
    ExpectSame(x.Read(), expected, std::to_string(cols) + " columns");
  }
}

TEST(CudaNormHeads, IsNearRefAndAHeadsBitsDependOnItsValuesOnly) {
  const AttentionShape shapes[] = {
      {4, 4, 32, 1.0f}, {9, 3, 128, 1.0f}, {6, 1, 80, 1.0f}, {2, 2, 6, 1.0f}, {1, 1, 256, 1.0f}};
  for (const AttentionShape& shape : shapes) {
    const size_t d = static_cast<size_t>(shape.head_dim);
    const size_t q_cols = static_cast<size_t>(shape.num_heads) * d,
                 k_cols = static_cast<size_t>(shape.num_kv_heads) * d, rows = 3;
    const std::vector<float> q_weights = Normal(d, 2), k_weights = Normal(d, 3);
    const Array<float> q_weight(q_weights), k_weight(k_weights);
    for (FloatType type : kTypes) {
      const std::vector<float> values = Rounded(type, Normal(rows * (q_cols + 2 * k_cols), 1));
      const std::string what = NameOf(type) + ", heads of " + std::to_string(d);
      const auto run = [&](FloatType t, Layout layout, size_t first, size_t count) {
        const size_t cols = q_cols + 2 * k_cols;
        const Rows all(t, count, cols, std::span(values).subspan(first * cols, count * cols),
                       layout);
        Execute([&](Stream s) {
          NormHeads(all.Cols(0, q_cols), all.Cols(q_cols, k_cols), q_weight.data(), k_weight.data(),
                    kEps, shape, s);
        });
        return all.Read();
      };
      const Rows exact(FloatType::kF32, rows, q_cols + 2 * k_cols, values);
      const AttentionSpec spec{shape.num_heads, shape.num_kv_heads, shape.head_dim, 1.0f};
      ref::NormHeads(exact.View().Cols(0, static_cast<int64_t>(q_cols)),
                     exact.View().Cols(static_cast<int64_t>(q_cols), static_cast<int64_t>(k_cols)),
                     q_weights.data(), k_weights.data(), kEps, spec);
      const std::vector<float> reference = exact.Read(), actual = run(type, kWide, 0, rows);
      ExpectNear(actual, {reference.begin(), reference.end()}, (0.5 * 13 + 7) * 0x1p-24, 0.0, type,
                 what);
      ExpectSame(run(type, kNarrow, 0, rows), actual, what + ", alignment");
      ExpectSame(run(type, kWide, 1, 1),
                 {actual.begin() + static_cast<std::ptrdiff_t>(q_cols + 2 * k_cols),
                  actual.begin() + static_cast<std::ptrdiff_t>(2 * (q_cols + 2 * k_cols))},
                 what + ", alone");
    }
  }
}

// One lane, part of a warp, one group a thread, two, three and four of them, more than fit.
INSTANTIATE_TEST_SUITE_P(Columns, CudaNorm,
                         ::testing::Values(1, 8, 30, 72, 1024, 4100, 5120, 9000, 14336, 16400));

}  // namespace
}  // namespace quantd::cuda_emulated
