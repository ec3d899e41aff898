// BF16 and F16: every pattern survives a round trip, and rounding is to nearest, ties to even,
// judged by a reference that works on the value in double instead of on the bits.
#include "kernels/quant/float_types.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>

namespace quantd {
namespace {

/// `f` rounded to a binary format of `fraction` fraction bits, smallest exponent `lowest` and
/// largest finite value `largest`: nearest multiple of its ulp, ties to even (nearbyint's mode).
double RoundTo(float f, int fraction, int lowest, double largest) {
  if (f == 0.0f || !std::isfinite(f)) return f;
  const double v = f;
  const int exponent = std::max(std::ilogb(v), lowest);
  const double ulp = std::ldexp(1.0, exponent - fraction);
  const double rounded = std::nearbyint(v / ulp) * ulp;
  if (std::fabs(rounded) > largest)
    return std::copysign(std::numeric_limits<double>::infinity(), v);
  return rounded;
}

double RoundToBF16(float f) { return RoundTo(f, 7, -126, 0x1.FEp127); }
double RoundToF16(float f) { return RoundTo(f, 10, -14, 65504.0); }

template <typename T>
void ExpectEveryPatternRoundTrips() {
  for (uint32_t bits = 0; bits < 65536; ++bits) {
    T value;
    value.bits = static_cast<uint16_t>(bits);
    const float f = static_cast<float>(value);
    const T back(f);
    if (std::isnan(f)) {
      EXPECT_TRUE(std::isnan(static_cast<float>(back))) << bits;
    } else {
      EXPECT_EQ(back.bits, bits);
    }
  }
}

TEST(BF16, EveryPatternRoundTrips) { ExpectEveryPatternRoundTrips<BF16>(); }
TEST(F16, EveryPatternRoundTrips) { ExpectEveryPatternRoundTrips<F16>(); }

TEST(F16, PatternsMeanWhatIeee754Says) {
  for (uint32_t bits = 0; bits < 0x7c00; ++bits) {
    F16 value;
    value.bits = static_cast<uint16_t>(bits);
    const int exponent = static_cast<int>(bits >> 10);
    const double fraction = bits & 0x3ff;
    const double expected =
        exponent == 0 ? std::ldexp(fraction, -24) : std::ldexp(1024.0 + fraction, exponent - 25);
    EXPECT_EQ(static_cast<float>(value), expected) << bits;
    value.bits = static_cast<uint16_t>(bits | 0x8000);
    EXPECT_EQ(static_cast<float>(value), -expected) << bits;
  }
}

TEST(Rounding, RandomFloatsGoToTheNearest) {
  std::mt19937 random(1);
  for (int i = 0; i < 1000000; ++i) {
    const float f = std::bit_cast<float>(static_cast<uint32_t>(random()));
    if (std::isnan(f)) continue;
    EXPECT_EQ(static_cast<float>(BF16(f)), RoundToBF16(f)) << f;
    EXPECT_EQ(static_cast<float>(F16(f)), RoundToF16(f)) << f;
  }
  // Most random patterns are beyond f16; stay within its range too, subnormals included.
  std::uniform_real_distribution<float> exponent(-27.0f, 17.0f);
  for (int i = 0; i < 1000000; ++i) {
    const float f = std::exp2(exponent(random)) * (i % 2 == 0 ? 1.0f : -1.0f);
    EXPECT_EQ(static_cast<float>(F16(f)), RoundToF16(f)) << f;
  }
}

TEST(Rounding, MidpointsAndTheirNeighboursFollowTiesToEven) {
  for (uint32_t bits = 0; bits < 0x7f80; ++bits) {
    const float middle = std::bit_cast<float>((bits << 16) | 0x8000u);
    for (float f :
         {middle, std::nextafter(middle, 0.0f), std::nextafter(middle, INFINITY), -middle}) {
      EXPECT_EQ(static_cast<float>(BF16(f)), RoundToBF16(f)) << f;
    }
  }
  for (uint32_t bits = 0; bits < 0x7c00; ++bits) {
    F16 low;
    low.bits = static_cast<uint16_t>(bits);
    const float above = bits == 0x7bff ? 65536.0f : [&] {
      F16 high;
      high.bits = static_cast<uint16_t>(bits + 1);
      return static_cast<float>(high);
    }();
    const float middle = (static_cast<float>(low) + above) / 2;
    for (float f :
         {middle, std::nextafter(middle, 0.0f), std::nextafter(middle, INFINITY), -middle}) {
      EXPECT_EQ(static_cast<float>(F16(f)), RoundToF16(f)) << f;
    }
  }
}

TEST(Rounding, KeepsNanInfinityAndTheSignOfZero) {
  for (float sign : {1.0f, -1.0f}) {
    EXPECT_EQ(static_cast<float>(BF16(sign * INFINITY)), sign * INFINITY);
    EXPECT_EQ(static_cast<float>(F16(sign * INFINITY)), sign * INFINITY);
    EXPECT_EQ(std::signbit(static_cast<float>(BF16(sign * 0.0f))), sign < 0);
    EXPECT_EQ(std::signbit(static_cast<float>(F16(sign * 0.0f))), sign < 0);
  }
  // A NaN whose payload is all in the bits that are cut off must not become infinity.
  const float nan = std::bit_cast<float>(0x7f800001u);
  EXPECT_TRUE(std::isnan(static_cast<float>(BF16(nan))));
  EXPECT_TRUE(std::isnan(static_cast<float>(F16(nan))));
  EXPECT_EQ(static_cast<float>(F16(65519.0f)), 65504.0f);
  EXPECT_EQ(static_cast<float>(F16(65520.0f)), INFINITY);
}

}  // namespace
}  // namespace quantd
