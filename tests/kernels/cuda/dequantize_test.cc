// Dequantize gives QuantizedMatrix::Dequantize rounded once, to the bit, for any rows of any
// segment.
#include <gtest/gtest.h>

#include "tests/kernels/cuda/weight_on_device.h"

namespace quantd::cuda_emulated {
namespace {

using namespace on_device;

void ExpectDequantizes(const std::string& format, const std::vector<int64_t>& rows, int64_t k,
                       int32_t first, int32_t count, FloatType type, Layout layout) {
  SCOPED_TRACE(format + " k " + std::to_string(k) + " rows " + std::to_string(first) + " + " +
               std::to_string(count) + " " + NameOf(type));
  std::vector<QuantizedMatrix> matrices;
  for (int64_t r : rows) {
    matrices.push_back(RandomWeight(*QuantFormat::Parse(format), r, k, static_cast<uint32_t>(r)));
  }
  const auto w = PackOnDevice(matrices);
  const Rows out(type, static_cast<size_t>(count), static_cast<size_t>(k), layout);
  Execute([&](Stream stream) { Dequantize(w->view(), first, out, stream); });
  const std::vector<float> actual = out.Read();
  std::vector<float> expected;
  int64_t row = 0;
  for (const QuantizedMatrix& m : matrices) {
    for (int64_t r = 0; r < m.n; ++r, ++row) {
      if (row < first || row >= first + count) continue;
      for (int64_t c = 0; c < k; ++c) expected.push_back(Rounded(type, m.Dequantize(r, c)));
    }
  }
  ASSERT_EQ(actual.size(), expected.size());
  int failures = 0;
  for (size_t i = 0; i < actual.size(); ++i) {
    if (std::bit_cast<uint32_t>(actual[i]) != std::bit_cast<uint32_t>(expected[i])) ++failures;
  }
  EXPECT_EQ(failures, 0) << "of " << actual.size();
}

TEST(Dequantize, GivesTheDefinitionsValuesInEveryFormatAndType) {
  for (const char* format : {"nf4.flat64.f32", "nf4.flat64.nested", "fp4.flat64.nested",
                             "fp4.flat128.f32", "nf4.flat32.f32", "int8.row.absmax"}) {
    for (FloatType type : kTypes) {
      ExpectDequantizes(format, {37}, 128, 0, 37, type, kWide);
      ExpectDequantizes(format, {18}, 328, 0, 18, type, kWide);
    }
  }
}

// Every codec, order of blocks, type of scales and zero points, and both signs of the latter.
TEST(Dequantize, GivesTheDefinitionsValuesOfScalesAndZeroPointsOfEveryKind) {
  int i = 0;
  for (const char* format : {"int4.group64.f16",
                             "int4.group32.bf16",
                             "int4.row.f32",
                             "int4.tile16x32.f32",
                             "int4.group64.bf16.offset_bf16",
                             "int4.group32.f16.offset_f32",
                             "uint4.group64.f16.zero_u8",
                             "uint4.group32.bf16.zero_u8",
                             "uint4.flat64.f32.zero_f32",
                             "uint4.flat64.f16.zero_f16",
                             "uint4.flat48.bf16.zero_bf16",
                             "uint4.strided64.f16.zero_f16",
                             "uint8.group64.f16.zero_u8",
                             "uint8.flat48.f32.zero_f32",
                             "uint8.strided16.bf16.zero_bf16",
                             "int8.group32.bf16",
                             "int8.row.bf16",
                             "int8.row.f32",
                             "uint2.group64.f16.zero_u8",
                             "uint2.flat24.f32.zero_f32",
                             "uint2.strided16.f16.zero_f16",
                             "e4m3.row.f32",
                             "e4m3.tile128x128.bf16",
                             "e4m3.tile16x32.f32",
                             "e2m1.group16.e4m3",
                             "e2m1.group64.f32"}) {
    const FloatType type = kTypes[i++ % 3];
    ExpectDequantizes(format, {32, 16}, 144, 0, 48, type, kWide);
    ExpectDequantizes(format, {16, 32}, 136, 13, 20, type, kNarrow);
    if (std::string(format).find("strided") == std::string::npos) {
      ExpectDequantizes(format, {19}, 33, 2, 15, type, kNarrow);
    }
  }
}

TEST(Dequantize, WritesTheRowsAskedForOfAnySegments) {
  for (const char* format : {"nf4.flat64.nested", "fp4.flat64.f32", "int8.row.absmax"}) {
    ExpectDequantizes(format, {17, 3, 40}, 64, 5, 14, kTypes[2], kWide);
    ExpectDequantizes(format, {17, 3, 40}, 64, 19, 33, kTypes[2], kWide);
    ExpectDequantizes(format, {17, 3, 40}, 64, 59, 1, kTypes[1], kWide);
  }
}

TEST(Dequantize, WritesMatricesAlignedForNothing) {
  for (const char* format : {"nf4.flat64.f32", "fp4.flat64.nested", "int8.row.absmax"}) {
    for (int64_t k : {1, 33, 72, 192}) {
      ExpectDequantizes(format, {19}, k, 0, 19, kTypes[2], kNarrow);
      ExpectDequantizes(format, {19}, k, 2, 5, kTypes[0], kNarrow);
    }
  }
}

}  // namespace
}  // namespace quantd::cuda_emulated
