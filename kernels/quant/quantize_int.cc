// One pass over a row at a time. lrintf is one instruction; codes are far inside its range, since
// each scale is at least (nearly) the largest magnitude over the largest code.
#include "kernels/quant/quantize_int.h"

#include <vector>

#include "kernels/quant/read_row.h"
#include "kernels/quant/rounding.h"

namespace quantd {
namespace {

constexpr float kF32Epsilon = 0x1p-23f;

ScaleType ScaleTypeOf(DType dtype) {
  return dtype == DType::kBF16  ? ScaleType::kBF16
         : dtype == DType::kF16 ? ScaleType::kF16
                                : ScaleType::kF32;
}

QuantizedMatrix EmptyMatrix(const TensorView& w, const QuantFormat& format) {
  QuantizedMatrix q;
  q.format = format;
  q.n = w.rows;
  q.k = w.cols;
  q.codes.resize(static_cast<size_t>(w.rows * w.cols));
  return q;
}

/// Row `r` of `w`, rounded to `dtype` where it has another.
template <typename Round>
void ReadRounded(const TensorView& w, DType dtype, const Round& round, int64_t r,
                 std::span<float> to) {
  ReadRow(w, r, 0, to);
  if (w.dtype == dtype) return;
  for (float& v : to) v = round(v);
}

struct Extremes {
  float low = 0.0f, high = 0.0f;
};

/// The smallest normal number of the dtype: 2^-126, but 2^-14 of f16.
template <typename Round>
float SmallestNormal(const Round& round) {
  return round(0x1p-126f) > 0.0f ? 0x1p-126f : 0x1p-14f;
}

Extremes ExtremesOf(std::span<const float> x, float start) {
  Extremes e{start, start};
  for (const float v : x) {
    e.low = std::min(e.low, v);
    e.high = std::max(e.high, v);
  }
  return e;
}

}  // namespace

QuantizedMatrix QuantizeInt8SymmetricRows(const TensorView& w, DType dtype, bool whole) {
  QuantFormat format;
  format.codec = Codec::kInt8;
  format.block = {BlockShape::Kind::kRow, 0, 0};
  format.scale = ScaleType::kF32;
  QuantizedMatrix q = EmptyMatrix(w, format);
  std::vector<float> row(static_cast<size_t>(w.cols));
  WithRounding(dtype, [&](const auto& round) {
    float largest = 0.0f;
    for (int64_t r = 0; whole && r < w.rows; ++r) {
      ReadRounded(w, dtype, round, r, row);
      largest = std::max(largest, LargestMagnitude(row));
    }
    for (int64_t r = 0; r < w.rows; ++r) {
      ReadRounded(w, dtype, round, r, row);
      const float absmax = whole ? largest : LargestMagnitude(row);
      const float scale = std::max(round(absmax / 127.5f), kF32Epsilon);
      q.scales.push_back(scale);
      const float inverse = 1.0f / scale;
      uint8_t* codes = q.codes.data() + r * w.cols;
      for (const float v : row) {
        *codes++ = static_cast<uint8_t>(std::clamp<long>(std::lrintf(v * inverse), -128, 127));
      }
    }
  });
  return q;
}

QuantFormat IntGroups::Format(DType dtype) const {
  QuantFormat f;
  f.codec = bits <= 4 ? (symmetric ? Codec::kInt4 : Codec::kUInt4)
                      : (symmetric ? Codec::kInt8 : Codec::kUInt8);
  f.block = group == 0 ? BlockShape{BlockShape::Kind::kRow, 0, 0}
                       : BlockShape{BlockShape::Kind::kGroup, group, 0};
  f.scale = ScaleTypeOf(dtype);
  f.zero = symmetric ? ZeroType::kNone : ZeroType::kU8;
  return f;
}

QuantizedMatrix QuantizeIntGroups(const TensorView& w, DType dtype, const IntGroups& how) {
  QuantizedMatrix q = EmptyMatrix(w, how.Format(dtype));
  const float levels = static_cast<float>((1 << how.bits) - 1);
  const float least = static_cast<float>(-(1 << (how.bits - 1)));
  const float most = least + levels;
  // Codes of two's complement, or plus half of the codec's range.
  const int offset = how.symmetric ? 0 : how.bits <= 4 ? 8 : 128;
  const int mask = how.bits <= 4 ? 0xf : 0xff;
  std::vector<float> row(static_cast<size_t>(w.cols));
  const size_t size = how.group == 0 ? row.size() : static_cast<size_t>(how.group);
  WithRounding(dtype, [&](const auto& round) {
    const float smallest = SmallestNormal(round);
    for (int64_t r = 0; r < w.rows; ++r) {
      ReadRounded(w, dtype, round, r, row);
      uint8_t* codes = q.codes.data() + r * w.cols;
      for (size_t first = 0; first < row.size(); first += size) {
        const std::span<const float> x =
            std::span<const float>(row).subspan(first, std::min(size, row.size() - first));
        const Extremes e = ExtremesOf(x, 0.0f);
        const float wide = how.symmetric ? round(std::max(-e.low, e.high) / (levels / 2))
                                         : round(round(e.high - e.low) / levels);
        const float scale = std::max(wide, smallest);
        const float zero =
            how.symmetric ? 0.0f
                          : std::clamp(least - std::nearbyint(round(e.low / scale)), least, most);
        q.scales.push_back(scale);
        if (!how.symmetric) q.zeros.push_back(zero + static_cast<float>(offset));
        const float inverse = round(1.0f / scale);
        const long zero_code = static_cast<long>(zero);
        for (const float v : x) {
          const long code = std::clamp(std::lrintf(round(v * inverse)) + zero_code,
                                       static_cast<long>(least), static_cast<long>(most));
          *codes++ = static_cast<uint8_t>((code + offset) & mask);
        }
      }
    }
  });
  return q;
}

QuantFormat Int4OffsetFormat(DType dtype, int32_t group) {
  QuantFormat f;
  f.codec = Codec::kInt4;
  f.block = {BlockShape::Kind::kGroup, group, 0};
  f.scale = ScaleTypeOf(dtype);
  f.zero = dtype == DType::kBF16 ? ZeroType::kAddedBF16 : ZeroType::kAddedF32;
  return f;
}

QuantizedMatrix QuantizeInt4Offset(const TensorView& w, DType dtype, int32_t group) {
  QuantizedMatrix q = EmptyMatrix(w, Int4OffsetFormat(dtype, group));
  std::vector<float> row(static_cast<size_t>(w.cols));
  const size_t size = static_cast<size_t>(group);
  WithRounding(dtype, [&](const auto& round) {
    for (int64_t r = 0; r < w.rows; ++r) {
      ReadRounded(w, dtype, round, r, row);
      uint8_t* codes = q.codes.data() + r * w.cols;
      for (size_t first = 0; first < row.size(); first += size) {
        const std::span<const float> x =
            std::span<const float>(row).subspan(first, std::min(size, row.size() - first));
        const Extremes e = ExtremesOf(x, x.front());
        const float scale = std::max(e.high - e.low, 1e-6f) / 15.0f;
        q.scales.push_back(round(scale));
        q.zeros.push_back(round(e.low + scale * 8.0f));
        for (const float v : x) {
          const long code = std::clamp<long>(std::lrintf((v - e.low) / scale), 0, 15) - 8;
          *codes++ = static_cast<uint8_t>(code & 0xf);
        }
      }
    }
  });
  return q;
}

}  // namespace quantd
