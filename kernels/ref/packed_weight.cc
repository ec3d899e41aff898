// Packing and dequantizing of ref's weights; see packed_weight.h.
#include "kernels/ref/packed_weight.h"

#include <cstring>

#include "kernels/ref/elements.h"

namespace quantd::ref {
namespace {

/// Every part starts at a multiple of four bytes, so that f32 arrays can be read in place.
size_t Align4(size_t bytes) { return (bytes + 3) & ~size_t{3}; }

DType DTypeOf(Codec plain) {
  return plain == Codec::kF32 ? DType::kF32 : plain == Codec::kF16 ? DType::kF16 : DType::kBF16;
}

/// Types of one byte (kU8, kE4M3) have no DType of a float: nullopt.
std::optional<DType> DTypeOf(ScaleType scale) {
  switch (scale) {
    case ScaleType::kF16: return DType::kF16;
    case ScaleType::kBF16: return DType::kBF16;
    case ScaleType::kF32:
    case ScaleType::kAbsmax: return DType::kF32;
    default: return std::nullopt;
  }
}
std::optional<DType> DTypeOf(ZeroType zero) {
  switch (zero) {
    case ZeroType::kF16: return DType::kF16;
    case ZeroType::kBF16:
    case ZeroType::kAddedBF16: return DType::kBF16;
    case ZeroType::kF32:
    case ZeroType::kAddedF32: return DType::kF32;
    default: return std::nullopt;
  }
}
size_t BytesOf(std::optional<DType> dtype) { return dtype ? SizeOf(*dtype) : 1; }

template <typename T>
T Read(const std::byte* data, int64_t i) {
  return reinterpret_cast<const T*>(data)[i];
}

}  // namespace

RefPackedWeight::Plan RefPackedWeight::PlanFor(const QuantFormat& format, int64_t k,
                                               const std::vector<RowSegment>& segments) {
  Plan plan;
  const auto reserve = [&plan](size_t bytes) {
    const size_t at = plan.scales_bytes;
    plan.scales_bytes += Align4(bytes);
    return at;
  };
  for (const RowSegment& s : segments) {
    Layout layout;
    layout.codes = plan.codes_bytes;
    plan.codes_bytes += Align4(static_cast<size_t>(s.rows * k * BitsOf(format.codec) + 7) / 8);
    const size_t blocks = static_cast<size_t>(format.block.Count(s.rows, k));
    if (format.scale != ScaleType::kNone) {
      layout.scales = reserve(blocks * BytesOf(DTypeOf(format.scale)));
    }
    if (format.zero != ZeroType::kNone) {
      layout.zeros = reserve(blocks * BytesOf(DTypeOf(format.zero)));
    }
    if (format.scale == ScaleType::kNested) {
      constexpr size_t kNested = QuantizedMatrix::kNestedBlock;
      layout.nested_absmax = reserve((blocks + kNested - 1) / kNested * sizeof(float));
      layout.nested_map = reserve((256 + 1) * sizeof(float));
    }
    if (format.scale == ScaleType::kE4M3) layout.global_scale = reserve(sizeof(float));
    plan.segments.push_back(layout);
  }
  if (format.reordered) plan.columns = reserve(static_cast<size_t>(k) * sizeof(int32_t));
  return plan;
}

void RefPackedWeight::Fill(size_t segment, const QuantizedMatrix& matrix) {
  const Layout& layout = plan_.segments[segment];
  uint8_t* codes = codes_.as<uint8_t>() + layout.codes;
  const int bits = BitsOf(format().codec);
  if (bits < 8) {
    const size_t per_byte = 8 / static_cast<size_t>(bits);
    for (size_t i = 0; i < matrix.codes.size(); ++i) {
      const int code = matrix.codes[i] & ((1 << bits) - 1);
      const int shift = 8 - bits * static_cast<int>(i % per_byte + 1);
      codes[i / per_byte] |= static_cast<uint8_t>(code << shift);
    }
  } else {
    std::memcpy(codes, matrix.codes.data(), matrix.codes.size());
  }

  std::byte* scales = scales_.as<std::byte>();
  const auto floats = [](std::optional<DType> dtype, const std::vector<float>& from,
                         std::byte* to) {
    for (size_t i = 0; i < from.size(); ++i) {
      StoreElement(*dtype, to, static_cast<int64_t>(i), from[i]);
    }
  };
  if (format().scale == ScaleType::kNested) {
    std::memcpy(scales + layout.scales, matrix.nested_codes.data(), matrix.nested_codes.size());
    std::memcpy(scales + layout.nested_absmax, matrix.nested_absmax.data(),
                matrix.nested_absmax.size() * sizeof(float));
    std::memcpy(scales + layout.nested_map, matrix.nested_map.data(), 256 * sizeof(float));
    std::memcpy(scales + layout.nested_map + 256 * sizeof(float), &matrix.nested_offset,
                sizeof(float));
  } else if (format().scale == ScaleType::kE4M3) {
    for (size_t i = 0; i < matrix.scales.size(); ++i) {
      scales[layout.scales + i] = std::byte{E4M3Codec::Encode(matrix.scales[i])};
    }
    std::memcpy(scales + layout.global_scale, &matrix.global_scale, sizeof(float));
  } else if (format().scale != ScaleType::kNone) {
    floats(DTypeOf(format().scale), matrix.scales, scales + layout.scales);
  }
  if (format().zero == ZeroType::kU8) {
    for (size_t i = 0; i < matrix.zeros.size(); ++i) {
      scales[layout.zeros + i] = static_cast<std::byte>(matrix.zeros[i]);
    }
  } else if (format().zero != ZeroType::kNone) {
    floats(DTypeOf(format().zero), matrix.zeros, scales + layout.zeros);
  }
  if (format().reordered) {  // the same for every segment: CheckPackRows
    std::memcpy(scales + plan_.columns, matrix.columns.data(),
                matrix.columns.size() * sizeof(int32_t));
  }
}

size_t RefPackedWeight::SegmentOf(int64_t& row) const {
  QUANTD_CHECK(row >= 0 && row < n(), "row {} of {}", row, n());
  size_t s = 0;
  while (row >= segments()[s].rows) row -= segments()[s++].rows;
  return s;
}

uint8_t RefPackedWeight::CodeAt(const Layout& layout, int64_t flat) const {
  const int bits = BitsOf(format().codec);
  const int per_byte = 8 / bits;
  const uint8_t byte = Codes(layout)[flat / per_byte];
  const int shift = 8 - bits * (static_cast<int>(flat % per_byte) + 1);
  return static_cast<uint8_t>((byte >> shift) & ((1 << bits) - 1));
}

float RefPackedWeight::ScaleAt(const Layout& layout, int64_t block) const {
  const std::byte* scales = Scales(layout.scales);
  switch (format().scale) {
    case ScaleType::kNested: {
      // Multiplied, then added, each rounded to f32: the build compiles with -ffp-contract=off.
      const uint8_t code = Read<uint8_t>(scales, block);
      const float product =
          Read<float>(Scales(layout.nested_map), code) *
          Read<float>(Scales(layout.nested_absmax), block / QuantizedMatrix::kNestedBlock);
      return product + Read<float>(Scales(layout.nested_map), 256);
    }
    case ScaleType::kE4M3:
      return E4M3Codec::Decode(Read<uint8_t>(scales, block)) /
             Read<float>(Scales(layout.global_scale), 0);
    case ScaleType::kAbsmax: return Read<float>(scales, block) * kInt8Step;
    default: return LoadElement(*DTypeOf(format().scale), scales, block);
  }
}

float RefPackedWeight::ZeroAt(const Layout& layout, int64_t block) const {
  const std::byte* zeros = Scales(layout.zeros);
  if (format().zero == ZeroType::kU8) return Read<uint8_t>(zeros, block);
  return LoadElement(*DTypeOf(format().zero), zeros, block);
}

void RefPackedWeight::DequantizeRow(int64_t row, std::span<float> out) const {
  const size_t segment = SegmentOf(row);
  const Layout& layout = plan_.segments[segment];
  const int64_t rows = segments()[segment].rows;
  if (IsPlain(format().codec)) {
    for (int64_t c = 0; c < k(); ++c) {
      out[static_cast<size_t>(c)] =
          LoadElement(DTypeOf(format().codec), Codes(layout), row * k() + c);
    }
    return;
  }
  const Codec codec = format().codec;
  const float* table = TableOf(codec);
  int64_t block = -1;
  float scale = 0.0f, zero = 0.0f;
  for (int64_t c = 0; c < k(); ++c) {
    if (const int64_t b = format().block.IndexOf(rows, k(), row, c); b != block) {
      block = b;
      scale = ScaleAt(layout, block);
      if (format().zero != ZeroType::kNone) zero = ZeroAt(layout, block);
    }
    const uint8_t code = CodeAt(layout, row * k() + c);
    const float value = table != nullptr        ? table[code]
                        : codec == Codec::kInt8 ? Int8Codec::Decode(code)
                        : codec == Codec::kE4M3 ? E4M3Codec::Decode(code)
                                                : static_cast<float>(code);
    const int64_t input = format().reordered ? Read<int32_t>(Scales(plan_.columns), c) : c;
    float& to = out[static_cast<size_t>(input)];
    if (format().zero == ZeroType::kNone) {
      to = value * scale;
    } else if (IsAdded(format().zero)) {
      const float product = value * scale;
      to = product + zero;
    } else {
      to = (value - zero) * scale;
    }
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
