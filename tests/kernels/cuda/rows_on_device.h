// Matrices and arrays in the emulated device's memory for tests that call the launchers of ops.h
// directly. The host may read this memory, so `ref` can be run over copies of the same bytes.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <random>
#include <span>
#include <string>
#include <vector>

#include "kernels/cuda/ops.h"
#include "kernels/cuda/runtime.h"
#include "kernels/quant/float_types.h"
#include "kernels/tensor.h"

namespace quantd::cuda_emulated::on_device {

inline constexpr FloatType kF32 = FloatType::kF32, kF16 = FloatType::kF16, kBF16 = FloatType::kBF16;
inline constexpr FloatType kTypes[] = {kF32, kF16, kBF16};

inline DType DTypeOf(FloatType type) {
  return type == FloatType::kF32   ? DType::kF32
         : type == FloatType::kF16 ? DType::kF16
                                   : DType::kBF16;
}
inline std::string NameOf(FloatType type) { return std::string(ToString(DTypeOf(type))); }
inline size_t SizeOfType(FloatType type) { return SizeOf(DTypeOf(type)); }

inline float LoadAs(FloatType type, const void* data, size_t i) {
  if (type == FloatType::kF32) return static_cast<const float*>(data)[i];
  if (type == FloatType::kF16) return static_cast<float>(static_cast<const F16*>(data)[i]);
  return static_cast<float>(static_cast<const BF16*>(data)[i]);
}
inline void StoreAs(FloatType type, void* data, size_t i, float value) {
  if (type == FloatType::kF32) {
    static_cast<float*>(data)[i] = value;
  } else if (type == FloatType::kF16) {
    static_cast<F16*>(data)[i] = F16(value);
  } else {
    static_cast<BF16*>(data)[i] = BF16(value);
  }
}
/// `value` rounded to `type`.
inline float Rounded(FloatType type, float value) {
  float room = 0.0f;
  StoreAs(type, &room, 0, value);
  return LoadAs(type, &room, 0);
}

/// Runs what `submit` submits to a stream, to its end.
template <typename F>
void Execute(F submit) {
  const Stream stream = CreateStream();
  submit(stream);
  const absl::Status status = Synchronize(stream);
  EXPECT_TRUE(status.ok()) << status;
  DestroyStream(stream);
}

/// An array in device memory.
template <typename T>
class Array {
 public:
  explicit Array(const std::vector<T>& values) : size_(values.size()) {
    data_ = static_cast<T*>(DeviceAllocate(size_ * sizeof(T) + 1));
    if (size_ > 0) std::memcpy(data_, values.data(), size_ * sizeof(T));
  }
  Array(const Array&) = delete;
  Array& operator=(const Array&) = delete;
  ~Array() { DeviceFree(data_); }

  T* data() const { return data_; }
  std::span<T> span() const { return {data_, size_}; }
  std::vector<T> Read() const { return {data_, data_ + size_}; }

 private:
  size_t size_;
  T* data_;
};

/// How a matrix lies in memory: `offset` elements before it, `gap` elements after every row.
struct Layout {
  size_t offset = 0;
  size_t gap = 0;
};
/// 16-byte aligned rows for every type, and rows aligned for nothing.
inline constexpr Layout kWide = {8, 24}, kNarrow = {1, 3};

/// A matrix in device memory. All bytes that are not its elements are canaries: NaNs that an op
/// must neither use nor overwrite.
class Rows {
 public:
  Rows(FloatType type, size_t rows, size_t cols, Layout layout = {})
      : type_(type), rows_(rows), cols_(cols), layout_(layout), stride_(cols + layout.gap) {
    bytes_ = (layout.offset + rows * stride_ + 8) * SizeOfType(type);
    data_ = static_cast<unsigned char*>(DeviceAllocate(bytes_));
    std::memset(data_, 0xff, bytes_);
  }
  Rows(FloatType type, size_t rows, size_t cols, std::span<const float> values, Layout layout = {})
      : Rows(type, rows, cols, layout) {
    for (size_t i = 0; i < rows * cols; ++i) {
      StoreAs(type, data_, layout.offset + i / cols * stride_ + i % cols, values[i]);
    }
  }
  Rows(const Rows&) = delete;
  Rows& operator=(const Rows&) = delete;
  ~Rows() { DeviceFree(data_); }

  void* data() const { return data_ + layout_.offset * SizeOfType(type_); }
  operator Matrix() const {  // NOLINT: stands in for a matrix in calls
    return {type_, data(), static_cast<int32_t>(rows_), static_cast<int32_t>(cols_),
            static_cast<int64_t>(stride_)};
  }
  /// Columns [first, first + count).
  Matrix Cols(size_t first, size_t count) const {
    Matrix m = *this;
    m.data = static_cast<unsigned char*>(m.data) + first * SizeOfType(type_);
    m.cols = static_cast<int32_t>(count);
    return m;
  }
  /// For `ref`.
  TensorView View() const {
    TensorView view(DTypeOf(type_), data(), static_cast<int64_t>(rows_),
                    static_cast<int64_t>(cols_));
    view.stride = static_cast<int64_t>(stride_);
    return view;
  }
  /// The elements, row-major. Fails the test when a canary has changed.
  std::vector<float> Read() const {
    std::vector<float> values;
    const size_t size = SizeOfType(type_);
    for (size_t i = 0; i < bytes_ / size; ++i) {
      const bool inside = i >= layout_.offset && i < layout_.offset + rows_ * stride_ &&
                          (i - layout_.offset) % stride_ < cols_;
      if (inside) {
        values.push_back(LoadAs(type_, data_, i));
        continue;
      }
      for (size_t b = i * size; b < (i + 1) * size; ++b) {
        if (data_[b] == 0xff) continue;
        ADD_FAILURE() << "element " << i << ", outside the matrix, was written";
        return values;
      }
    }
    return values;
  }

 private:
  FloatType type_;
  size_t rows_, cols_;
  Layout layout_;
  size_t stride_, bytes_;
  unsigned char* data_;
};

inline std::vector<float> Normal(size_t count, uint32_t seed, float scale = 1.0f) {
  std::mt19937 engine(seed);
  std::normal_distribution<float> normal(0.0f, scale);
  std::vector<float> values(count);
  for (float& v : values) v = normal(engine);
  return values;
}
inline std::vector<float> Rounded(FloatType type, std::vector<float> values) {
  for (float& v : values) v = Rounded(type, v);
  return values;
}

/// Half the distance between neighbours of `type` at `value`.
inline double HalfUlp(FloatType type, double value) {
  const int fraction = type == FloatType::kF32 ? 23 : type == FloatType::kF16 ? 10 : 7;
  const int lowest = type == FloatType::kF16 ? -14 : -126;
  int exponent = 0;
  std::frexp(value, &exponent);
  return std::ldexp(0.5, std::max(exponent - 1, lowest) - fraction);
}

/// Bit for bit the same, NaNs included.
inline void ExpectSame(const std::vector<float>& actual, const std::vector<float>& expected,
                       const std::string& what) {
  ASSERT_EQ(actual.size(), expected.size()) << what;
  for (size_t i = 0; i < actual.size(); ++i) {
    ASSERT_EQ(std::bit_cast<uint32_t>(actual[i]), std::bit_cast<uint32_t>(expected[i]))
        << what << ", element " << i << ": " << actual[i] << ", expected " << expected[i];
  }
}

/// |actual - expected| <= relative * |expected| + absolute + half an ulp of `type`.
inline void ExpectNear(const std::vector<float>& actual, const std::vector<double>& expected,
                       double relative, double absolute, FloatType type, const std::string& what) {
  ASSERT_EQ(actual.size(), expected.size()) << what;
  for (size_t i = 0; i < actual.size(); ++i) {
    const double error = std::fabs(actual[i] - expected[i]);
    const double allowed =
        relative * std::fabs(expected[i]) + absolute + HalfUlp(type, expected[i]);
    ASSERT_LE(error, allowed) << what << ", element " << i << ": " << actual[i] << ", expected "
                              << expected[i];
  }
}

}  // namespace quantd::cuda_emulated::on_device
