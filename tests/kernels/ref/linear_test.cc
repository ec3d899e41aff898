// ref's Linear against loops written another way, from QuantizedMatrix itself: the oracle is
// checked by something that shares no code with it.
#include <gtest/gtest.h>

#include <cmath>

#include "kernels/quant/quantize.h"
#include "tests/kernels/conformance.h"

namespace quantd::testing {
namespace {

constexpr int64_t kRows = 5;

TEST(RefLinear, EqualsTheSumOfDequantizedProducts) {
  for (const char* text : {"f32",
                           "f16",
                           "bf16",
                           "int8.row.absmax",
                           "nf4.flat64.f32",
                           "fp4.flat64.f32",
                           "nf4.flat64.nested",
                           "fp4.flat32.nested",
                           "nf4.flat128.f32",
                           "fp4.flat4096.nested",
                           "int8.row.f32",
                           "int8.group32.bf16",
                           "uint8.group64.f16.zero_u8",
                           "uint8.flat64.f32.zero_f32",
                           "int4.group32.f16",
                           "int4.row.f32",
                           "uint4.group64.f16.zero_u8.reordered",
                           "uint4.flat64.f16.zero_f16",
                           "uint4.strided1.bf16.zero_bf16",
                           "uint2.group32.f16.zero_u8",
                           "uint2.flat16.f32.zero_f32",
                           "int4.group128.bf16.offset_bf16",
                           "int4.row.f32.offset_f32",
                           "e2m1.group16.e4m3",
                           "e4m3.row.f32",
                           "e4m3.tile16x32.f32",
                           "int4.group32.f16.reordered"}) {
    for (int64_t k : {1, 8, 33, 64, 72, 200}) {
      SCOPED_TRACE(fmt::format("{} k {}", text, k));
      std::vector<QuantizedMatrix> segments;
      for (int64_t n : {3, 1, 17}) {
        std::vector<float> values =
            RandomFloats(static_cast<size_t>(n * k), static_cast<uint32_t>(n));
        segments.push_back(MatrixOf(*QuantFormat::Parse(text), values, n));
      }
      const std::vector<float> x = RandomFloats(static_cast<size_t>(kRows * k), 50),
                               bias = RandomFloats(21, 51);
      const DeviceMatrix xs(Ref(), DType::kF32, kRows, k, x, 1),
          y(Ref(), DType::kF32, kRows, 21, 2);
      Ref().Linear(*Pack(Ref(), segments), {}, xs, bias.data(), y);

      std::vector<float> expected;
      std::vector<double> tolerance;
      for (int64_t r = 0; r < kRows; ++r) {
        size_t o = 0;
        for (const QuantizedMatrix& w : segments) {
          const std::vector<float> values = w.DequantizeAll();
          for (int64_t n = 0; n < w.n; ++n, ++o) {
            long double sum = bias[o], magnitude = std::fabs(bias[o]);
            for (int64_t c = 0; c < k; ++c) {
              const long double product =
                  static_cast<long double>(values[static_cast<size_t>(n * k + c)]) *
                  x[static_cast<size_t>(r * k + c)];
              sum += product;
              magnitude += std::fabs(product);
            }
            expected.push_back(static_cast<float>(sum));
            tolerance.push_back(static_cast<double>(magnitude) * 1e-13);  // of double sums
          }
        }
      }
      ExpectClose(y.Read(), expected, tolerance, DType::kF32, "y");
    }
  }
}

TEST(RefLinear, RoundsOnceToTheDtypeOfY) {
  std::vector<float> values = RandomFloats(9 * 40, 1);
  const std::vector<QuantizedMatrix> w = {MatrixOf(QuantFormat::Plain(DType::kBF16), values, 9)};
  const auto weight = Pack(Ref(), w);
  for (DType dtype : {DType::kF16, DType::kBF16}) {
    const DeviceMatrix x(Ref(), dtype, 4, 40, RandomFloats(160, 2)), y(Ref(), dtype, 4, 9),
        exact(Ref(), DType::kF32, 4, 9);
    Ref().Linear(*weight, {}, x, nullptr, y);
    Ref().Linear(*weight, {}, x, nullptr, exact);
    ExpectSameBits(y.Read(), RoundedTo(dtype, exact.Read()), "y");
  }
}

/// A small LLM.int8 problem whose numbers can be followed by hand: SCB 127 makes the weights their
/// codes.
class RefInt8 : public ::testing::Test {
 protected:
  std::vector<float> Run(std::vector<float> x, int64_t rows, const ActivationQuant& activation) {
    std::vector<float> w = {127, 1,    2, -3,   // y0
                            0,   -127, 5, 10};  // y1
    const std::vector<QuantizedMatrix> matrices = {
        QuantizeInt8Rows(TensorView(DType::kF32, w.data(), 2, 4))};
    const DeviceMatrix xs(Ref(), DType::kF32, rows, 4, x), y(Ref(), DType::kF32, rows, 2);
    Ref().Linear(*Pack(Ref(), matrices), activation, xs, nullptr, y);
    return y.Read();
  }
  static ActivationQuant Int8(
      float threshold, ActivationQuant::OutlierScope scope = ActivationQuant::OutlierScope::kRow) {
    return {ActivationQuant::Kind::kInt8Outlier, threshold, scope};
  }
};

TEST_F(RefInt8, QuantizesTheRowByItsLargestMagnitude) {
  // absmax 127/64: q = rint(64 x) = {127, 32, -13, 0}, as 0.2 * 64 = 12.8 rounds.
  const std::vector<float> y = Run({127.0f / 64, 0.5f, -0.2f, 0.001f}, 1, Int8(6.0f));
  EXPECT_FLOAT_EQ(y[0], (127 * 127 + 32 - 26) / 64.0f);
  EXPECT_FLOAT_EQ(y[1], (-32 * 127 - 65) / 64.0f);
}

TEST_F(RefInt8, RoundsHalfToEven) {
  // absmax 127: q = rint(x).
  const std::vector<float> y = Run({127.0f, 0.5f, 1.5f, 2.5f}, 1, Int8(0.0f));
  EXPECT_FLOAT_EQ(y[0], 127 * 127 + 0 + 2 * 2 - 3 * 2);
}

TEST_F(RefInt8, KeepsOutliersInFloatingPointAndOutOfTheScale) {
  // Column 1 is an outlier (at the threshold); the scale is 127/64 all the same, and 6 is not
  // rounded.
  const std::vector<float> y = Run({127.0f / 64, 6.0f, 0.0f, 0.0f}, 1, Int8(6.0f));
  EXPECT_FLOAT_EQ(y[0], 127 * 127 / 64.0f + 6.0f);
  EXPECT_FLOAT_EQ(y[1], -127 * 6.0f);
}

TEST_F(RefInt8, ThresholdZeroHasNoOutliers) {
  const std::vector<float> y = Run({254.0f, 7.0f, 0.0f, 0.0f}, 1, Int8(0.0f));
  EXPECT_FLOAT_EQ(y[1], -127 * 8.0f);  // step 2: 3.5 rounds to 4
}

TEST_F(RefInt8, OutlierColumnsOfACallTakeEveryRowsElementsButNotTheirPartInTheScale) {
  using Scope = ActivationQuant::OutlierScope;
  // Row 1's 3.3 in column 1 is below the threshold, but the column is an outlier column because of
  // row 0.
  const std::vector<float> x = {0.5f, 8.0f, 0.0f, 0.0f,  //
                                1.0f, 3.3f, 0.0f, 0.0f};
  const std::vector<float> row = Run(x, 2, Int8(6.0f, Scope::kRow)),
                           call = Run(x, 2, Int8(6.0f, Scope::kCall));
  EXPECT_EQ(row[0], call[0]);  // row 0 has its own outlier either way
  EXPECT_FLOAT_EQ(row[3], -127 * static_cast<float>(F16(3.3f)));  // q is 127, the scale 3.3
  EXPECT_FLOAT_EQ(call[3], -127 * 3.3f);                          // x itself, not through f16
  // The scale of row 1 stays 3.3: 1.0 becomes rint(127 / 3.3) = 38 steps of 3.3 / 127.
  const float step = static_cast<float>(F16(3.3f)) / 127;
  EXPECT_FLOAT_EQ(call[2], 127 * 38 * step + 3.3f);
}

TEST_F(RefInt8, RowsOfZerosAndRowsOfOutliersAreExact) {
  const std::vector<float> y = Run({0, 0, 0, 0, 6, -7, 8, 9}, 2, Int8(6.0f));
  EXPECT_EQ(y[0], 0.0f);
  EXPECT_EQ(y[1], 0.0f);
  EXPECT_FLOAT_EQ(y[2], 127 * 6 - 7 + 16 - 27);
  EXPECT_FLOAT_EQ(y[3], 127 * 7 + 40 + 90);
}

TEST_F(RefInt8, ShowsNanAndBeyondF16InsteadOfHidingThem) {
  EXPECT_TRUE(std::isnan(Run({1, NAN, 0, 0}, 1, Int8(6.0f))[0]));
  EXPECT_FLOAT_EQ(Run({0, 1e6f, 0, 0}, 1, Int8(6.0f))[1], -127e6f);  // infinite as f16: an outlier
}

}  // namespace
}  // namespace quantd::testing
