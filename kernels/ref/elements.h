// Reading and writing single elements of a view as f32: what lets every loop of `ref` be written
// once for f32, f16 and bf16. The rounding of a store is the op's only rounding.
#pragma once

#include <vector>

#include "kernels/quant/float_types.h"
#include "kernels/tensor.h"

namespace quantd::ref {

/// Element `i` of an array of `dtype` (f32, f16 or bf16).
inline float LoadElement(DType dtype, const void* data, int64_t i) {
  switch (dtype) {
    case DType::kF32: return static_cast<const float*>(data)[i];
    case DType::kF16: return static_cast<float>(static_cast<const F16*>(data)[i]);
    case DType::kBF16: return static_cast<float>(static_cast<const BF16*>(data)[i]);
    default: break;
  }
  QUANTD_CHECK(false, "{} is not a floating-point type", ToString(dtype));
  return 0.0f;
}

/// Stores `value`, rounded to `dtype`.
inline void StoreElement(DType dtype, void* data, int64_t i, float value) {
  switch (dtype) {
    case DType::kF32: static_cast<float*>(data)[i] = value; return;
    case DType::kF16: static_cast<F16*>(data)[i] = F16(value); return;
    case DType::kBF16: static_cast<BF16*>(data)[i] = BF16(value); return;
    default: break;
  }
  QUANTD_CHECK(false, "{} is not a floating-point type", ToString(dtype));
}

/// `value` as `dtype` holds it.
inline float Rounded(DType dtype, float value) {
  switch (dtype) {
    case DType::kF16: return static_cast<float>(F16(value));
    case DType::kBF16: return static_cast<float>(BF16(value));
    default: return value;
  }
}

/// Element `i` of row `row` of a half of a KV cache; `scales` is null for float types.
inline double LoadCached(DType dtype, const void* half, const float* scales, int64_t row,
                         int64_t head_dim, int64_t i) {
  if (dtype != DType::kI8) return static_cast<double>(LoadElement(dtype, half, row * head_dim + i));
  const int8_t code = static_cast<const int8_t*>(half)[row * head_dim + i];
  return static_cast<double>(code) * static_cast<double>(scales[row]);
}

inline float Load(const TensorView& x, int64_t row, int64_t col) {
  return LoadElement(x.dtype, x.data, row * x.stride + col);
}

inline void Store(const TensorView& x, int64_t row, int64_t col, float value) {
  StoreElement(x.dtype, x.data, row * x.stride + col, value);
}

/// All of `x` as f32, row-major without gaps.
inline std::vector<float> ToFloats(const TensorView& x) {
  std::vector<float> floats(static_cast<size_t>(x.rows * x.cols));
  size_t i = 0;
  for (int64_t r = 0; r < x.rows; ++r) {
    for (int64_t c = 0; c < x.cols; ++c) floats[i++] = Load(x, r, c);
  }
  return floats;
}

}  // namespace quantd::ref
