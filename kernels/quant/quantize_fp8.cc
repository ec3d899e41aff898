#include "kernels/quant/quantize_fp8.h"

#include <limits>
#include <vector>

#include "kernels/quant/read_row.h"
#include "kernels/quant/rounding.h"

namespace quantd {
namespace {

QuantizedMatrix EmptyMatrix(const TensorView& w, const BlockShape& block) {
  QuantizedMatrix q;
  q.format.codec = Codec::kE4M3;
  q.format.block = block;
  q.format.scale = ScaleType::kF32;
  q.n = w.rows;
  q.k = w.cols;
  q.codes.resize(static_cast<size_t>(w.rows * w.cols));
  return q;
}

/// 2^ceil(log2(scale)), as far as F8_E8M0 reaches.
float UpToPowerOfTwo(float scale) {
  return std::exp2(std::clamp(std::ceil(std::log2(scale)), -127.0f, 127.0f));
}

}  // namespace

QuantizedMatrix QuantizeE4M3Tiles(const TensorView& w, int32_t rows, int32_t columns,
                                  bool powers_of_two) {
  QuantizedMatrix q = EmptyMatrix(w, {BlockShape::Kind::kTile, columns, rows});
  const int64_t grid = (w.cols + columns - 1) / columns;
  std::vector<float> row(static_cast<size_t>(w.cols)), largest(static_cast<size_t>(grid)),
      factor(static_cast<size_t>(grid));
  const auto tile = [&](std::vector<float>& of, int64_t t) {
    return std::span<float>(of).subspan(
        static_cast<size_t>(t * columns),
        static_cast<size_t>(std::min<int64_t>(columns, w.cols - t * columns)));
  };
  for (int64_t first = 0; first < w.rows; first += rows) {
    const int64_t end = std::min<int64_t>(first + rows, w.rows);
    std::fill(largest.begin(), largest.end(), 0.0f);
    for (int64_t r = first; r < end; ++r) {
      ReadRow(w, r, 0, row);
      for (int64_t t = 0; t < grid; ++t) {
        float& m = largest[static_cast<size_t>(t)];
        m = std::max(m, LargestMagnitude(tile(row, t)));
      }
    }
    for (size_t t = 0; t < largest.size(); ++t) {
      // Finite also where the tile is all but zero: an infinity would make NaNs of its zeros.
      factor[t] = largest[t] > 0.0f ? std::min(E4M3Codec::kLargest / largest[t],
                                               std::numeric_limits<float>::max())
                                    : 1.0f;
      float scale = 1.0f / factor[t];
      if (powers_of_two) {
        scale = UpToPowerOfTwo(scale);
        factor[t] = 1.0f / scale;
      }
      q.scales.push_back(scale);
    }
    for (int64_t r = first; r < end; ++r) {
      ReadRow(w, r, 0, row);
      uint8_t* codes = q.codes.data() + r * w.cols;
      for (int64_t t = 0; t < grid; ++t) {
        const float s = factor[static_cast<size_t>(t)];
        for (const float v : tile(row, t)) *codes++ = E4M3Codec::Encode(v * s);
      }
    }
  }
  return q;
}

QuantizedMatrix QuantizeE4M3Rows(const TensorView& w, DType dtype, bool whole) {
  QuantizedMatrix q = EmptyMatrix(w, {BlockShape::Kind::kRow, 0, 0});
  std::vector<float> row(static_cast<size_t>(w.cols));
  WithRounding(dtype, [&](const auto& round) {
    const auto read = [&](int64_t r) {
      ReadRow(w, r, 0, row);
      if (w.dtype == dtype) return;
      for (float& v : row) v = round(v);
    };
    float largest = 0.0f;
    for (int64_t r = 0; whole && r < w.rows; ++r) {
      read(r);
      largest = std::max(largest, LargestMagnitude(row));
    }
    for (int64_t r = 0; r < w.rows; ++r) {
      read(r);
      const float scale = round((whole ? largest : LargestMagnitude(row)) / E4M3Codec::kLargest);
      q.scales.push_back(scale);
      if (scale == 0.0f) continue;  // all codes are zero already
      uint8_t* codes = q.codes.data() + r * w.cols;
      for (const float v : row) *codes++ = E4M3Codec::Encode(v / scale);
    }
  });
  return q;
}

}  // namespace quantd
