// Quantized activations: to the bit what ref makes of x, seen through a Linear by the identity; and
// codes times scales are the same values.
#include <gtest/gtest.h>

#include "kernels/ref/ref_backend.h"
#include "tests/kernels/cuda/rows_on_device.h"
#include "tests/kernels/quant/matrix_of.h"

namespace quantd::cuda_emulated {
namespace {

using namespace on_device;
using Kind = ActivationQuant::Kind;
using Rounding = ActivationQuant::Rounding;

/// x' as ref has it: y = x' I, whose sums are exact.
std::vector<float> Expected(const ActivationQuant& q, FloatType type, const std::vector<float>& x,
                            int64_t rows, int64_t k) {
  const auto ref = CreateRefBackend();
  std::vector<float> identity(static_cast<size_t>(k * k), 0.0f);
  for (int64_t i = 0; i < k; ++i) identity[static_cast<size_t>(i * k + i)] = 1.0f;
  auto w = ref->CreatePacked(QuantFormat::Plain(DType::kF32), k, {{"w", 0, k}},
                             MemoryComponent::kWeights);
  EXPECT_TRUE(w.ok());
  const QuantizedMatrix matrix =
      PlainMatrix(TensorView(DType::kF32, identity.data(), k, k), DType::kF32);
  EXPECT_TRUE(ref->PackRows(**w, 0, matrix).ok());
  const Rows from(type, static_cast<size_t>(rows), static_cast<size_t>(k), x);
  const Rows to(type, static_cast<size_t>(rows), static_cast<size_t>(k));
  ref->Linear(**w, q, from.View(), nullptr, to.View());
  return to.Read();
}

/// Rows of different sizes, a row of zeros, one of ties, one with an infinity.
std::vector<float> Activations(FloatType type, int64_t rows, int64_t k) {
  std::vector<float> x = Normal(static_cast<size_t>(rows * k), static_cast<uint32_t>(k));
  for (int64_t c = 0; c < k; ++c) {
    x[static_cast<size_t>(k + c)] = 0.0f;
    x[static_cast<size_t>(2 * k + c)] = c == 0 ? 127.5f : static_cast<float>(c % 40) * 0.5f;
    x[static_cast<size_t>(3 * k + c)] *= 1e-6f;
  }
  return Rounded(type, x);
}

std::vector<ActivationQuant> Kinds() {
  std::vector<ActivationQuant> kinds;
  for (const Rounding rounding : {Rounding::kF32, Rounding::kScale, Rounding::kEveryStep}) {
    for (const Kind kind : {Kind::kInt8Token, Kind::kFp8Token}) {
      kinds.push_back({.kind = kind, .rounding = rounding});
    }
    for (const int32_t group : {16, 20, 128}) {
      kinds.push_back({.kind = Kind::kFp8Group, .rounding = rounding, .group = group});
    }
    kinds.push_back({.kind = Kind::kInt8Tensor, .rounding = rounding, .scale = 0.02f});
    kinds.push_back(
        {.kind = Kind::kInt8Tensor, .rounding = rounding, .scale = 0.013f, .zero_point = 5});
    kinds.push_back({.kind = Kind::kFp8Tensor, .rounding = rounding, .scale = 0.004f});
  }
  kinds.push_back({.kind = Kind::kInt8TokenAsym});
  return kinds;
}

std::string NameOf(const ActivationQuant& q, FloatType type) {
  return "kind " + std::to_string(static_cast<int>(q.kind)) + " rounding " +
         std::to_string(static_cast<int>(q.rounding)) + " " + on_device::NameOf(type);
}

TEST(Activations, ReplaceInputGivesRefsBits) {
  int i = 0;
  for (const ActivationQuant& q : Kinds()) {
    for (const FloatType type : kTypes) {
      const bool wide = ++i % 2 == 0;
      const int64_t k = wide ? 136 : 45;
      const std::vector<float> x = Activations(type, 5, k);
      const Rows from(type, 5, static_cast<size_t>(k), x, wide ? kWide : kNarrow);
      const Rows to(type, 5, static_cast<size_t>(k), wide ? kWide : kNarrow);
      Execute([&](Stream stream) { ReplaceInput(q, from, to, stream); });
      EXPECT_EQ(to.Read(), Expected(q, type, x, 5, k)) << NameOf(q, type);
    }
  }
}

TEST(Activations, CodesTimesScalesAreTheValues) {
  for (const ActivationQuant& q : Kinds()) {
    if (q.kind == Kind::kFp8Group || q.kind == Kind::kInt8TokenAsym || q.zero_point != 0) continue;
    for (const FloatType type : kTypes) {
      SCOPED_TRACE(NameOf(q, type));
      constexpr int kRows = 5, kK = 45, kPadded = 64;
      const std::vector<float> x = Activations(type, kRows, kK);
      const Rows from(type, kRows, kK, x, kNarrow);
      const Array<uint8_t> codes(std::vector<uint8_t>(kRows * kPadded, 0xee));
      const Array<float> scales(std::vector<float>(kRows, NAN));
      const Array<int32_t> counts(std::vector<int32_t>(kRows, -1));
      Execute([&](Stream stream) {
        QuantizeTokens(q, from, {codes.data(), scales.data(), counts.data(), kPadded}, stream);
      });
      const std::vector<float> expected = Expected(q, type, x, kRows, kK);
      for (size_t r = 0; r < kRows; ++r) {
        EXPECT_EQ(counts.span()[r], 0);
        for (size_t c = 0; c < kPadded; ++c) {
          const uint8_t code = codes.span()[r * kPadded + c];
          if (c >= kK) {
            ASSERT_EQ(code, 0);
            continue;
          }
          const float value = IsFp8(q.kind) ? E4M3Codec::Decode(code) : Int8Codec::Decode(code);
          ASSERT_EQ(Rounded(type, value * scales.span()[r]), expected[r * kK + c]) << r << " " << c;
        }
      }
    }
  }
}

TEST(Activations, ANaNOfARowShowsAndStaysThere) {
  std::vector<float> x = Normal(3 * 40, 1);
  x[40 + 13] = NAN;
  x[2 * 40 + 7] = std::numeric_limits<float>::infinity();
  for (const Kind kind : {Kind::kInt8Token, Kind::kFp8Token, Kind::kInt8TokenAsym}) {
    const ActivationQuant q = {.kind = kind};
    const Rows from(FloatType::kF32, 3, 40, x), to(FloatType::kF32, 3, 40);
    Execute([&](Stream stream) { ReplaceInput(q, from, to, stream); });
    const std::vector<float> y = to.Read();
    EXPECT_TRUE(std::isnan(y[40 + 13]));
    EXPECT_FALSE(std::isfinite(y[2 * 40 + 7]));
    for (size_t i = 0; i < 80; ++i) EXPECT_EQ(std::isnan(y[i]), i == 40 + 13) << i;
    if (kind == Kind::kInt8TokenAsym) continue;
    const Array<uint8_t> codes(std::vector<uint8_t>(3 * 64));
    const Array<float> scales(std::vector<float>(3));
    Execute([&](Stream stream) {
      QuantizeTokens(q, from, {codes.data(), scales.data(), nullptr, 64}, stream);
    });
    EXPECT_TRUE(std::isfinite(scales.span()[0]));
    EXPECT_TRUE(std::isnan(scales.span()[1]) || codes.span()[64 + 13] == 0x7f);
    EXPECT_FALSE(std::isfinite(scales.span()[2]));
  }
}

}  // namespace
}  // namespace quantd::cuda_emulated
