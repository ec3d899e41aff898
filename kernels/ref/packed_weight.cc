// Packing and dequantizing of ref's weights; see packed_weight.h.
#include "kernels/ref/packed_weight.h"

#include <cstring>

#include "kernels/ref/elements.h"

namespace quantd::ref {
namespace {

/// Every part starts at a multiple of four bytes, so that f32 arrays can be read in place.
size_t Align4(size_t bytes) { return (bytes + 3) & ~size_t{3}; }

int64_t BlocksOf(const QuantFormat& format, int64_t rows, int64_t k) {
  return format.block.kind == BlockShape::Kind::kRow
             ? rows
             : (rows * k + format.block.size - 1) / format.block.size;
}

DType DTypeOf(Codec plain) {
  return plain == Codec::kF32 ? DType::kF32 : plain == Codec::kF16 ? DType::kF16 : DType::kBF16;
}

template <typename T>
T Read(const std::byte* data, int64_t i) {
  return reinterpret_cast<const T*>(data)[i];
}

}  // namespace

RefPackedWeight::Plan RefPackedWeight::PlanFor(const QuantFormat& format, int64_t k,
                                               const std::vector<RowSegment>& segments) {
  Plan plan;
  for (const RowSegment& s : segments) {
    Layout layout;
    layout.codes = plan.codes_bytes;
    plan.codes_bytes += Align4(static_cast<size_t>(s.rows * k * BitsOf(format.codec) + 7) / 8);
    if (format.scale != ScaleType::kNone) {
      const size_t blocks = static_cast<size_t>(BlocksOf(format, s.rows, k));
      layout.scales = plan.scales_bytes;
      if (format.scale == ScaleType::kF32) {
        plan.scales_bytes += blocks * sizeof(float);
      } else {
        constexpr size_t kNested = QuantizedMatrix::kNestedBlock;
        layout.nested_absmax = layout.scales + Align4(blocks);
        layout.nested_map = layout.nested_absmax + (blocks + kNested - 1) / kNested * sizeof(float);
        plan.scales_bytes = layout.nested_map + (256 + 1) * sizeof(float);
      }
    }
    plan.segments.push_back(layout);
  }
  return plan;
}

void RefPackedWeight::Fill(size_t segment, const QuantizedMatrix& matrix) {
  const Layout& layout = plan_.segments[segment];
  uint8_t* codes = codes_.as<uint8_t>() + layout.codes;
  if (BitsOf(format().codec) == 4) {
    for (size_t i = 0; i < matrix.codes.size(); ++i) {
      const uint8_t code = matrix.codes[i] & 15;
      codes[i / 2] |= static_cast<uint8_t>(i % 2 == 0 ? code << 4 : code);
    }
  } else {
    std::memcpy(codes, matrix.codes.data(), matrix.codes.size());
  }

  std::byte* scales = scales_.as<std::byte>();
  if (format().scale == ScaleType::kF32) {
    std::memcpy(scales + layout.scales, matrix.scales.data(), matrix.scales.size() * sizeof(float));
  } else if (format().scale == ScaleType::kNested) {
    std::memcpy(scales + layout.scales, matrix.nested_codes.data(), matrix.nested_codes.size());
    std::memcpy(scales + layout.nested_absmax, matrix.nested_absmax.data(),
                matrix.nested_absmax.size() * sizeof(float));
    std::memcpy(scales + layout.nested_map, matrix.nested_map.data(), 256 * sizeof(float));
    std::memcpy(scales + layout.nested_map + 256 * sizeof(float), &matrix.nested_offset,
                sizeof(float));
  }
}

size_t RefPackedWeight::SegmentOf(int64_t& row) const {
  QUANTD_CHECK(row >= 0 && row < n(), "row {} of {}", row, n());
  size_t s = 0;
  while (row >= segments()[s].rows) row -= segments()[s++].rows;
  return s;
}

float RefPackedWeight::ScaleOf(const Layout& layout, int64_t block) const {
  if (format().scale == ScaleType::kF32) return Read<float>(Scales(layout.scales), block);
  // Multiplied, then added, each rounded to f32: the build compiles with -ffp-contract=off.
  const uint8_t code = Read<uint8_t>(Scales(layout.scales), block);
  const float product =
      Read<float>(Scales(layout.nested_map), code) *
      Read<float>(Scales(layout.nested_absmax), block / QuantizedMatrix::kNestedBlock);
  return product + Read<float>(Scales(layout.nested_map), 256);
}

void RefPackedWeight::DequantizeRow(int64_t row, std::span<float> out) const {
  const Layout& layout = plan_.segments[SegmentOf(row)];
  const uint8_t* codes = Codes(layout);
  if (IsPlain(format().codec)) {
    const DType dtype = DTypeOf(format().codec);
    for (int64_t c = 0; c < k(); ++c) {
      out[static_cast<size_t>(c)] = LoadElement(dtype, codes, row * k() + c);
    }
    return;
  }
  if (format().codec == Codec::kInt8) {
    const float step = Read<float>(Scales(layout.scales), row) * kInt8Step;
    for (int64_t c = 0; c < k(); ++c) {
      out[static_cast<size_t>(c)] = Int8Codec::Decode(codes[row * k() + c]) * step;
    }
    return;
  }
  const float* table = format().codec == Codec::kNf4 ? kNf4Table : kFp4Table;
  float scale = 0.0f;
  for (int64_t c = 0; c < k(); ++c) {
    const int64_t i = row * k() + c;
    if (c == 0 || i % format().block.size == 0) scale = ScaleOf(layout, i / format().block.size);
    const uint8_t pair = codes[i / 2];
    out[static_cast<size_t>(c)] = table[i % 2 == 0 ? pair >> 4 : pair & 15] * scale;
  }
}

std::span<const int8_t> RefPackedWeight::Int8Row(int64_t row) const {
  const Layout& layout = plan_.segments[SegmentOf(row)];
  return {reinterpret_cast<const int8_t*>(Codes(layout) + row * k()), static_cast<size_t>(k())};
}

float RefPackedWeight::Int8Scale(int64_t row) const {
  const Layout& layout = plan_.segments[SegmentOf(row)];
  return Read<float>(Scales(layout.scales), row);
}

}  // namespace quantd::ref
