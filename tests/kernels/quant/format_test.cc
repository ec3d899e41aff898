// QuantFormat's text form and byte counts, and the codec tables.
#include "kernels/quant/format.h"

#include <gtest/gtest.h>

#include <cmath>

namespace quantd {
namespace {

struct FormatCase {
  const char* text;
  QuantFormat format;
  int64_t n, k, bytes;
};

const std::vector<FormatCase>& FormatCases() {
  static const std::vector<FormatCase> cases = {
      {"f32", QuantFormat::Plain(DType::kF32), 3, 5, 60},
      {"f16", QuantFormat::Plain(DType::kF16), 3, 5, 30},
      {"bf16", QuantFormat::Plain(DType::kBF16), 3, 5, 30},
      {"int8.row.absmax", QuantFormat::Int8Row(), 3, 5, 15 + 12},
      {"nf4.flat64.f32", QuantFormat::Block4(Codec::kNf4, 64, false), 3, 65, 98 + 4 * 4},
      {"fp4.flat64.f32", QuantFormat::Block4(Codec::kFp4, 64, false), 4, 64, 128 + 4 * 4},
      {"nf4.flat64.nested", QuantFormat::Block4(Codec::kNf4, 64, true), 257, 64,
       257 * 32 + 257 + 2 * 4 + 1024 + 4},
      {"fp4.flat4096.nested", QuantFormat::Block4(Codec::kFp4, 4096, true), 1, 4096,
       2048 + 1 + 4 + 1024 + 4},
      {"uint4.group128.f16.zero_u8",
       {Codec::kUInt4, {BlockShape::Kind::kGroup, 128, 0}, ScaleType::kF16, ZeroType::kU8},
       3,
       129,
       194 + 3 * 2 * 3},
      {"int4.group32.bf16.offset_bf16.reordered",
       {Codec::kInt4,
        {BlockShape::Kind::kGroup, 32, 0},
        ScaleType::kBF16,
        ZeroType::kAddedBF16,
        true},
       2,
       64,
       64 + 4 * 4 + 256},
      {"uint2.strided16.f32.zero_f32",
       {Codec::kUInt2, {BlockShape::Kind::kStrided, 16, 0}, ScaleType::kF32, ZeroType::kF32},
       4,
       32,
       32 + 8 * 8},
      {"e4m3.tile128x64.f32",
       {Codec::kE4M3, {BlockShape::Kind::kTile, 64, 128}, ScaleType::kF32},
       129,
       65,
       129 * 65 + 4 * 4},
      {"e2m1.group16.e4m3",
       {Codec::kE2M1, {BlockShape::Kind::kGroup, 16, 0}, ScaleType::kE4M3},
       2,
       32,
       32 + 4 + 4},
      {"int8.row.f32",
       {Codec::kInt8, {BlockShape::Kind::kRow, 0, 0}, ScaleType::kF32},
       3,
       5,
       15 + 12},
  };
  return cases;
}

TEST(QuantFormat, TextRoundTrips) {
  for (const FormatCase& c : FormatCases()) {
    EXPECT_EQ(c.format.ToString(), c.text);
    const auto parsed = QuantFormat::Parse(c.text);
    ASSERT_TRUE(parsed.ok()) << c.text;
    EXPECT_TRUE(*parsed == c.format) << c.text;
  }
}

TEST(QuantFormat, RejectsOtherText) {
  for (const char* text :
       {"", "nf4", "nf3.flat64.f32", "nf4.flat0.f32", "nf4.flat-64.f32", "bf16.flat64.f32",
        "nf4.flat64", "nf4.flat064.f32", "nf4.flat64.f32 ", "int8.flat64.absmax", "int8",
        "uint4.group64.f16", "e4m3.row.f32.zero_u8", "nf4.row.nested", "int8.tile4.f32",
        "int4.flat64.f16.reordered", "int4.group64.f16.zero_u8.",
        "nf4.flat99999999999999999999.f32"}) {
    const auto parsed = QuantFormat::Parse(text);
    EXPECT_EQ(parsed.status().code(), absl::StatusCode::kInvalidArgument) << text;
  }
}

TEST(QuantFormat, CountsStoredBytes) {
  for (const FormatCase& c : FormatCases())
    EXPECT_EQ(c.format.StoredBytes(c.n, c.k), c.bytes) << c.text;
}

TEST(Codecs, Nf4EncodesEveryLevelToItselfAndTiesDown) {
  for (uint8_t code = 0; code < 16; ++code) {
    EXPECT_EQ(Nf4Codec::Encode(Nf4Codec::Decode(code)), code);
    if (code == 15) continue;
    const float middle = (kNf4Table[code] + kNf4Table[code + 1]) / 2;
    EXPECT_EQ(Nf4Codec::Encode(middle), code);
    EXPECT_EQ(Nf4Codec::Encode(std::nextafter(middle, 2.0f)), code + 1);
  }
}

TEST(Codecs, Fp4EncodesToTheNearestLevel) {
  for (int i = -4000; i <= 4000; ++i) {
    const float s = static_cast<float>(i) / 4000.0f;
    const float decoded = Fp4Codec::Decode(Fp4Codec::Encode(s));
    for (float level : kFp4Table)
      EXPECT_LE(std::fabs(decoded - s), std::fabs(level - s) + 1e-7f) << s;
  }
}

TEST(QuantizedMatrix, DequantizesNestedScalesByMultiplyingThenAdding) {
  QuantizedMatrix q;
  q.format = QuantFormat::Block4(Codec::kNf4, 4, true);
  q.n = 2;
  q.k = 6;  // blocks of 4 cross the rows
  q.codes = {15, 0, 7, 15, 15, 15, 15, 15, 0, 15, 15, 15};
  q.nested_codes = {0, 1, 2};
  q.nested_map.assign(256, 0.0f);
  q.nested_map[0] = -0.5f;
  q.nested_map[1] = 0.0f;
  q.nested_map[2] = 1.0f;
  q.nested_absmax = {0.25f};
  q.nested_offset = 2.0f;
  EXPECT_EQ(q.Dequantize(0, 0), 1.875f);
  EXPECT_EQ(q.Dequantize(0, 1), -1.875f);
  EXPECT_EQ(q.Dequantize(0, 2), 0.0f);
  EXPECT_EQ(q.Dequantize(0, 5), 2.0f);    // flat element 5: block 1
  EXPECT_EQ(q.Dequantize(1, 2), -2.25f);  // flat element 8: block 2
}

}  // namespace
}  // namespace quantd
