// Floats in any format, for tests: the library's own quantizer where there is one, else the nearest
// codes with scale and zero point of the block's extremes, each exact in its type.
#pragma once

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "kernels/quant/quantize.h"

namespace quantd::testing {

namespace internal {

inline float Exact(ScaleType type, float v) {
  switch (type) {
    case ScaleType::kF16: return static_cast<float>(F16(v));
    case ScaleType::kBF16: return static_cast<float>(BF16(v));
    case ScaleType::kE4M3: return E4M3Codec::Decode(E4M3Codec::Encode(v));
    default: return v;
  }
}

inline float Exact(ZeroType type, float v) {
  switch (type) {
    case ZeroType::kU8: return std::clamp(std::nearbyint(v), 0.0f, 255.0f);
    case ZeroType::kF16: return static_cast<float>(F16(v));
    case ZeroType::kBF16:
    case ZeroType::kAddedBF16: return static_cast<float>(BF16(v));
    default: return v;
  }
}

/// Every value of a codec, by code; NaN where a code has none.
inline std::vector<float> ValuesOf(Codec codec) {
  std::vector<float> values(size_t{1} << BitsOf(codec));
  for (size_t i = 0; i < values.size(); ++i) {
    const uint8_t code = static_cast<uint8_t>(i);
    values[i] = TableOf(codec) != nullptr ? TableOf(codec)[i]
                : codec == Codec::kInt8   ? Int8Codec::Decode(code)
                : codec == Codec::kE4M3   ? E4M3Codec::Decode(code)
                                          : static_cast<float>(i);
  }
  return values;
}

/// The code whose value is nearest to `v`; of wide codes without a search through all of them.
inline uint8_t Nearest(Codec codec, const std::vector<float>& values, float v) {
  if (codec == Codec::kE4M3) return E4M3Codec::Encode(v);
  if (codec == Codec::kInt8) {
    return static_cast<uint8_t>(
        static_cast<int8_t>(std::clamp(std::nearbyint(v), -128.0f, 127.0f)));
  }
  if (codec == Codec::kUInt8) {
    return static_cast<uint8_t>(std::clamp(std::nearbyint(v), 0.0f, 255.0f));
  }
  size_t best = 0;
  for (size_t i = 1; i < values.size(); ++i) {
    if (std::fabs(values[i] - v) < std::fabs(values[best] - v)) best = i;
  }
  return static_cast<uint8_t>(best);
}

}  // namespace internal

/// `values` [n, k], row-major, columns in the input's order, in `format`. A reordered matrix gets a
/// fixed permutation of columns that depends on k only.
inline QuantizedMatrix MatrixOf(const QuantFormat& format, std::vector<float>& values, int64_t n) {
  const int64_t k = static_cast<int64_t>(values.size()) / n;
  const TensorView w(DType::kF32, values.data(), n, k);
  switch (format.codec) {
    case Codec::kF32: return PlainMatrix(w, DType::kF32);
    case Codec::kF16: return PlainMatrix(w, DType::kF16);
    case Codec::kBF16: return PlainMatrix(w, DType::kBF16);
    case Codec::kNf4:
    case Codec::kFp4: {
      if (format.block.kind != BlockShape::Kind::kFlat) break;
      QuantizedMatrix q = QuantizeBlock4(w, format.codec, format.block.size);
      if (format.scale == ScaleType::kNested) NestScales(q);
      return q;
    }
    default: break;
  }
  if (format == QuantFormat::Int8Row()) return QuantizeInt8Rows(w);

  QuantizedMatrix q;
  q.format = format;
  q.n = n;
  q.k = k;
  if (format.reordered) {
    q.columns.resize(static_cast<size_t>(k));
    std::iota(q.columns.begin(), q.columns.end(), 0);
    uint32_t state = 12345;
    for (size_t i = q.columns.size(); i > 1; --i) {
      state = state * 1664525u + 1013904223u;
      std::swap(q.columns[i - 1], q.columns[(state >> 8) % i]);
    }
  }
  const auto value_at = [&](int64_t row, int64_t col) {
    return values[static_cast<size_t>(
        row * k + (format.reordered ? q.columns[static_cast<size_t>(col)] : col))];
  };
  const size_t blocks = static_cast<size_t>(format.block.Count(n, k));
  std::vector<float> low(blocks, 0.0f), high(blocks, 0.0f);
  for (int64_t row = 0; row < n; ++row) {
    for (int64_t col = 0; col < k; ++col) {
      const size_t b = static_cast<size_t>(format.block.IndexOf(n, k, row, col));
      low[b] = std::min(low[b], value_at(row, col));
      high[b] = std::max(high[b], value_at(row, col));
    }
  }
  const std::vector<float> codes = internal::ValuesOf(format.codec);
  float largest = 0.0f;
  for (const float v : codes) largest = std::isnan(v) ? largest : std::max(largest, std::fabs(v));
  if (format.scale == ScaleType::kE4M3) q.global_scale = 37.5f;
  for (size_t b = 0; b < blocks; ++b) {
    const float span =
        format.zero == ZeroType::kNone ? std::max(-low[b], high[b]) : high[b] - low[b];
    const float levels =
        format.zero == ZeroType::kNone ? largest : static_cast<float>(codes.size() - 1);
    q.scales.push_back(internal::Exact(format.scale, span / levels * q.global_scale));
    if (format.zero == ZeroType::kNone) continue;
    const float scale = q.scales.back();
    const float lowest = *std::min_element(codes.begin(), codes.end());
    const float zero = IsAdded(format.zero) ? low[b] - lowest * scale
                       : scale > 0.0f       ? lowest - low[b] / scale
                                            : 0.0f;
    q.zeros.push_back(internal::Exact(format.zero, zero));
  }
  q.codes.resize(values.size());
  for (int64_t row = 0; row < n; ++row) {
    for (int64_t col = 0; col < k; ++col) {
      const size_t b = static_cast<size_t>(format.block.IndexOf(n, k, row, col));
      const float scale = q.scales[b] / q.global_scale;
      float v = value_at(row, col);
      if (IsAdded(format.zero)) v -= q.zeros[b];
      v = scale > 0.0f ? v / scale : 0.0f;
      if (format.zero != ZeroType::kNone && !IsAdded(format.zero)) v += q.zeros[b];
      q.codes[static_cast<size_t>(row * k + col)] = internal::Nearest(format.codec, codes, v);
    }
  }
  return q;
}

}  // namespace quantd::testing
