// The packer: Unpack inverts it, the layout is weight_view.h's, and it takes no more bytes than
// planned.
#include "kernels/cuda/packed_weight.h"

#include <gtest/gtest.h>

#include "tests/kernels/cuda/weight_on_device.h"

namespace quantd::cuda_emulated {
namespace {

using namespace on_device;

const char* const kFormats[] = {"nf4.flat64.f32",
                                "nf4.flat64.nested",
                                "fp4.flat64.f32",
                                "fp4.flat128.f32",
                                "nf4.flat128.nested",
                                "nf4.flat32.nested",
                                "bf16",
                                "f16",
                                "f32",
                                "int8.row.absmax",
                                "int4.group64.f16",
                                "int4.group128.bf16",
                                "int4.row.f32",
                                "int4.group32.f16",
                                "int4.group64.bf16.offset_bf16",
                                "int4.group64.f16.reordered",
                                "uint4.group64.f16.zero_u8",
                                "uint4.group128.f16.zero_u8.reordered",
                                "uint4.group32.f16.zero_u8",
                                "uint4.flat64.f16.zero_f16",
                                "uint4.flat64.f32.zero_f32",
                                "uint4.flat64.bf16.zero_bf16",
                                "uint8.group64.f16.zero_u8",
                                "int8.group128.bf16",
                                "int8.row.f32",
                                "int8.row.bf16",
                                "uint2.group64.f16.zero_u8",
                                "uint2.flat64.f32.zero_f32",
                                "e4m3.row.f32",
                                "e4m3.tile128x128.bf16",
                                "e4m3.tile16x32.f32",
                                "e2m1.group16.e4m3"};

QuantFormat Format(const std::string& text) {
  const auto format = QuantFormat::Parse(text);
  EXPECT_TRUE(format.ok()) << text;
  return *format;
}

void ExpectUnpacksTo(const CudaPackedWeight& weight, size_t segment,
                     const QuantizedMatrix& expected) {
  const QuantizedMatrix m = weight.Unpack(
      segment,
      [](const void* device, size_t bytes, void* host) { std::memcpy(host, device, bytes); });
  EXPECT_EQ(m.format, expected.format);
  EXPECT_EQ(m.n, expected.n);
  EXPECT_EQ(m.k, expected.k);
  EXPECT_EQ(m.codes, expected.codes);
  EXPECT_EQ(m.scales, expected.scales);
  EXPECT_EQ(m.global_scale, expected.global_scale);
  EXPECT_EQ(m.zeros, expected.zeros);
  EXPECT_EQ(m.columns, expected.columns);
  EXPECT_EQ(m.nested_codes, expected.nested_codes);
  EXPECT_EQ(m.nested_map, expected.nested_map);
  EXPECT_EQ(m.nested_absmax, expected.nested_absmax);
  EXPECT_EQ(m.nested_offset, expected.nested_offset);
}

TEST(PackedWeight, UnpackGivesBackWhatWasPacked) {
  for (const char* name : kFormats) {
    for (int64_t k : {1, 64, 72, 256, 320}) {
      SCOPED_TRACE(std::string(name) + " k " + std::to_string(k));
      const std::vector<QuantizedMatrix> matrices = {RandomWeight(Format(name), 17, k, 1),
                                                     RandomWeight(Format(name), 32, k, 2),
                                                     RandomWeight(Format(name), 1, k, 3)};
      const auto weight = PackOnDevice(matrices);
      for (size_t i = 0; i < matrices.size(); ++i) ExpectUnpacksTo(*weight, i, matrices[i]);
    }
  }
}

TEST(PackedWeight, UnpackGivesBackStridedBlocks) {
  for (const char* name : {"uint4.strided64.bf16.zero_bf16", "uint2.strided16.f32.zero_f32"}) {
    const std::vector<QuantizedMatrix> matrices = {RandomWeight(Format(name), 16, 40, 1),
                                                   RandomWeight(Format(name), 32, 40, 2)};
    const auto weight = PackOnDevice(matrices);
    EXPECT_EQ(weight->view().segments[1].blocks, 32 * 40 / matrices[0].format.block.size);
    for (size_t i = 0; i < matrices.size(); ++i) ExpectUnpacksTo(*weight, i, matrices[i]);
  }
}

TEST(PackedWeight, CodesLieWhereTheLayoutSays) {
  for (const char* name : {"nf4.flat64.f32", "int4.group64.bf16", "uint4.group64.f16.zero_u8"}) {
    SCOPED_TRACE(name);
    const QuantizedMatrix m = RandomWeight(Format(name), 37, 192, 4);
    const auto weight = PackOnDevice({m});
    const WeightSegment& s = weight->view().segments[0];
    EXPECT_EQ(weight->view().order, BlockOrder::kTiled);
    for (int64_t i = 0; i < m.n * m.k; ++i) {
      const int64_t row = i / m.k, col = i % m.k;
      const NibblePlace place = PlaceOfNibble(row, col, 192);
      const uint8_t pair = s.codes[place.byte];
      ASSERT_EQ(place.high ? pair >> 4 : pair & 15, m.codes[static_cast<size_t>(i)])
          << row << ", " << col;
      const int64_t at = (row / 16 * 3 + col / 64) * 16 + row % 16;
      if (weight->view().paired) {
        const auto* const halves = static_cast<const F16*>(s.scales) + 2 * at;
        ASSERT_EQ(static_cast<float>(halves[0]), m.Scale(row, col));
        ASSERT_EQ(static_cast<float>(halves[1]), m.zeros[static_cast<size_t>(row * 3 + col / 64)]);
      } else if (weight->view().scale == Stored::kBF16) {
        ASSERT_EQ(static_cast<float>(static_cast<const BF16*>(s.scales)[at]), m.Scale(row, col));
      } else {
        ASSERT_EQ(static_cast<const float*>(s.scales)[at], m.Scale(row, col));
      }
    }
  }
}

TEST(PackedWeight, BlocksOfWholeTilesAreTiledAndOthersAreNot) {
  const auto order = [](const char* name, int64_t k) {
    return PackOnDevice({RandomWeight(Format(name), 2, k, 1)})->view().order;
  };
  EXPECT_EQ(order("int4.group128.f16", 200), BlockOrder::kTiled);  // the last one is short
  EXPECT_EQ(order("int4.group96.f16", 72), BlockOrder::kTiled);    // one a row
  EXPECT_EQ(order("int4.row.f32", 72), BlockOrder::kTiled);
  EXPECT_EQ(order("int4.group96.f16", 192), BlockOrder::kGrid);
  EXPECT_EQ(order("uint4.flat64.f16.zero_f16", 128), BlockOrder::kTiled);
  EXPECT_EQ(order("uint4.flat64.f16.zero_f16", 96), BlockOrder::kFlat);
  EXPECT_EQ(order("uint4.flat64.f32.zero_f32", 128), BlockOrder::kGrid);   // no pair of halves
  EXPECT_EQ(order("uint4.flat64.f16.zero_bf16", 128), BlockOrder::kGrid);  // of two types
  EXPECT_EQ(order("e2m1.group64.e4m3", 128), BlockOrder::kGrid);
  EXPECT_EQ(order("uint4.strided64.f16.zero_f16", 128), BlockOrder::kStrided);
}

TEST(PackedWeight, PaddingDecodesToZero) {
  for (const char* name : {"nf4.flat32.f32", "fp4.flat32.f32"}) {
    const QuantizedMatrix m = RandomWeight(Format(name), 3, 65, 5);
    const auto weight = PackOnDevice({m});
    EXPECT_NE(weight->view().order, BlockOrder::kTiled);
    const float* const table = TableOf(m.format.codec);
    for (int64_t row = 0; row < 16; ++row) {
      for (int64_t col = 0; col < 128; ++col) {
        if (row < m.n && col < m.k) continue;
        const NibblePlace place = PlaceOfNibble(row, col, 128);
        const uint8_t pair = weight->view().segments[0].codes[place.byte];
        ASSERT_EQ(table[place.high ? pair >> 4 : pair & 15], 0.0f) << row << ", " << col;
      }
    }
  }
}

TEST(PackedWeight, PlainAndInt8SegmentsAreOneRowMajorMatrix) {
  for (const char* name : {"bf16", "f32", "int8.row.absmax"}) {
    const std::vector<QuantizedMatrix> matrices = {RandomWeight(Format(name), 5, 24, 1),
                                                   RandomWeight(Format(name), 7, 24, 2)};
    const auto weight = PackOnDevice(matrices);
    const WeightView& view = weight->view();
    EXPECT_EQ(view.segments[1].codes, view.segments[0].codes + matrices[0].codes.size()) << name;
    if (view.codec == Codec::kInt8) {
      EXPECT_EQ(view.segments[1].scales, static_cast<const float*>(view.segments[0].scales) + 5);
    }
  }
}

TEST(PackedWeight, TakesLittleMoreThanACheckpoint) {
  for (const char* name : kFormats) {
    const QuantFormat format = Format(name);
    for (int64_t n : {256, 1000, 4096}) {
      for (int64_t k : {256, 896, 4096}) {
        const auto plan = CudaPackedWeight::PlanFor(format, k, {{"w", 0, n}});
        EXPECT_LE(static_cast<double>(plan.code_bytes + plan.scale_bytes),
                  1.05 * static_cast<double>(format.StoredBytes(n, k)))
            << name << " " << n << " x " << k;
      }
    }
  }
}

TEST(PackedWeight, LargeSegmentsAreUploadedInPieces) {
  const QuantFormat format = Format("nf4.flat64.nested");
  QuantizedMatrix m;
  m.format = format;
  m.n = 1500;
  m.k = 6144;
  m.codes.resize(static_cast<size_t>(m.n * m.k));
  for (size_t i = 0; i < m.codes.size(); ++i) m.codes[i] = (i * 2654435761u >> 7) & 15;
  m.nested_codes.assign(m.codes.begin(), m.codes.begin() + m.n * m.k / 64);
  m.nested_map.assign(256, 0.5f);
  m.nested_absmax.assign(static_cast<size_t>((m.n * m.k / 64 + 255) / 256), 2.0f);
  ExpectUnpacksTo(*PackOnDevice({m}), 0, m);
}

TEST(PackedWeight, RefusesMoreSegmentsThanAViewHolds) {
  const QuantFormat format = Format("bf16");
  std::vector<RowSegment> segments(4, RowSegment{"w", 0, 8});
  EXPECT_TRUE(CudaPackedWeight::CheckSupported(format, 64, segments).ok());
  segments.push_back({"w", 32, 8});
  EXPECT_EQ(CudaPackedWeight::CheckSupported(format, 64, segments).code(),
            absl::StatusCode::kUnimplemented);
}

}  // namespace
}  // namespace quantd::cuda_emulated
