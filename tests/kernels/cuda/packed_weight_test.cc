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
                                "int8.row.absmax"};

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

TEST(PackedWeight, CodesLieWhereTheLayoutSays) {
  const QuantizedMatrix m = RandomWeight(Format("nf4.flat64.f32"), 37, 192, 4);
  const auto weight = PackOnDevice({m});
  const WeightSegment& s = weight->view().segments[0];
  EXPECT_TRUE(weight->view().tiled_scales);
  for (int64_t i = 0; i < m.n * m.k; ++i) {
    const int64_t row = i / m.k, col = i % m.k;
    const NibblePlace place = PlaceOfNibble(row, col, 192);
    const uint8_t pair = s.codes[place.byte];
    ASSERT_EQ(place.high ? pair >> 4 : pair & 15, m.codes[static_cast<size_t>(i)])
        << row << ", " << col;
    ASSERT_EQ(s.scales[(row / 16 * 3 + col / 64) * 16 + row % 16], m.Scale(row, col));
  }
}

TEST(PackedWeight, PaddingDecodesToZero) {
  for (const char* name : {"nf4.flat32.f32", "fp4.flat32.f32"}) {
    const QuantizedMatrix m = RandomWeight(Format(name), 3, 65, 5);
    const auto weight = PackOnDevice({m});
    EXPECT_FALSE(weight->view().tiled_scales);
    const float* const table = m.format.codec == Codec::kNf4 ? kNf4Table : kFp4Table;
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
      EXPECT_EQ(view.segments[1].scales, view.segments[0].scales + 5);
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
