// What every host quantizer starts with: rows of floats as f32, and their extremes. Pure functions.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <span>

#include "kernels/check.h"
#include "kernels/quant/float_types.h"
#include "kernels/tensor.h"

namespace quantd {

/// Columns [col, col + to.size()) of row `row` of `w` (f32, f16 or bf16) as f32.
inline void ReadRow(const TensorView& w, int64_t row, int64_t col, std::span<float> to) {
  const auto convert = [&](const auto* from) {
    for (size_t i = 0; i < to.size(); ++i) to[i] = static_cast<float>(from[i]);
  };
  switch (w.dtype) {
    case DType::kF32:
      std::memcpy(to.data(), w.Row<const float>(row) + col, to.size_bytes());
      return;
    case DType::kF16: return convert(w.Row<const F16>(row) + col);
    case DType::kBF16: return convert(w.Row<const BF16>(row) + col);
    default: break;
  }
  QUANTD_CHECK(false, "cannot quantize {}", ToString(w.dtype));
}

inline float LargestMagnitude(std::span<const float> x) {
  // Four chains: a maximum takes four cycles, and each waits for the one before.
  float m[4] = {};
  size_t i = 0;
  for (; i + 4 <= x.size(); i += 4) {
    for (size_t j = 0; j < 4; ++j) m[j] = std::max(m[j], std::fabs(x[i + j]));
  }
  for (; i < x.size(); ++i) m[0] = std::max(m[0], std::fabs(x[i]));
  return std::max(std::max(m[0], m[1]), std::max(m[2], m[3]));
}

}  // namespace quantd
