// What the tests of LLM.int8's kernels share: emulated device memory and matrices in it.
#pragma once

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <span>
#include <string>
#include <vector>

#include "kernels/cuda/ops.h"
#include "kernels/cuda/runtime.h"
#include "kernels/quant/float_types.h"
#include "kernels/quant/format.h"

namespace quantd::cuda_emulated {

using Scope = ActivationQuant::OutlierScope;

inline constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
inline constexpr float kInfinity = std::numeric_limits<float>::infinity();

/// Device memory, which the host may touch while no stream has work.
template <typename T>
class DeviceVector {
 public:
  explicit DeviceVector(size_t size)
      : size_(size), data_(static_cast<T*>(DeviceAllocate(std::max<size_t>(size, 1) * sizeof(T)))) {
    EXPECT_NE(data_, nullptr);
  }
  explicit DeviceVector(const std::vector<T>& values) : DeviceVector(values.size()) {
    std::copy(values.begin(), values.end(), data_);
  }
  DeviceVector(const DeviceVector&) = delete;
  DeviceVector& operator=(const DeviceVector&) = delete;
  ~DeviceVector() { DeviceFree(data_); }

  T* data() const { return data_; }
  size_t size() const { return size_; }
  T& operator[](size_t i) const { return data_[i]; }

 private:
  size_t size_;
  T* data_;
};

class TestStream {
 public:
  TestStream() : stream_(CreateStream()) {}
  ~TestStream() { DestroyStream(stream_); }
  operator Stream() const { return stream_; }  // NOLINT: stands in for the stream in calls
  void Finish() const { ASSERT_TRUE(Synchronize(stream_).ok()) << FirstError(); }

 private:
  Stream stream_;
};

inline size_t SizeOf(FloatType type) { return type == FloatType::kF32 ? 4 : 2; }

inline void StoreAs(FloatType type, void* at, float v) {
  if (type == FloatType::kF32) std::memcpy(at, &v, 4);
  const F16 h(v);
  const BF16 b(v);
  if (type == FloatType::kF16) std::memcpy(at, &h, 2);
  if (type == FloatType::kBF16) std::memcpy(at, &b, 2);
}

inline float LoadAs(FloatType type, const void* at) {
  float f = 0.0f;
  F16 h;
  BF16 b;
  if (type == FloatType::kF32) std::memcpy(&f, at, 4);
  if (type == FloatType::kF16) std::memcpy(&h, at, 2), f = static_cast<float>(h);
  if (type == FloatType::kBF16) std::memcpy(&b, at, 2), f = static_cast<float>(b);
  return f;
}

/// A matrix in device memory with a gap of 0xA5 bytes behind every row.
class DeviceRows {
 public:
  DeviceRows(FloatType type, int32_t rows, int32_t cols, int32_t gap)
      : view_{type, nullptr, rows, cols, cols + gap},
        bytes_(static_cast<size_t>(rows * (cols + gap)) * SizeOf(type)) {
    std::memset(bytes_.data(), 0xA5, bytes_.size());
    view_.data = bytes_.data();
  }
  DeviceRows(FloatType type, int32_t rows, int32_t cols, int32_t gap, std::span<const float> values)
      : DeviceRows(type, rows, cols, gap) {
    for (int32_t i = 0; i < rows * cols; ++i) {
      StoreAs(type, At(i / cols, i % cols), values[static_cast<size_t>(i)]);
    }
  }
  Matrix view() const { return view_; }
  /// Fails the test when a gap was written to.
  std::vector<float> Read() const {
    std::vector<float> values;
    for (int32_t r = 0; r < view_.rows; ++r) {
      for (int32_t c = 0; c < view_.cols; ++c) values.push_back(LoadAs(view_.type, At(r, c)));
      for (const unsigned char* p = At(r, view_.cols); p != At(r, 0) + RowBytes(); ++p) {
        EXPECT_EQ(*p, 0xA5) << "behind row " << r;
      }
    }
    return values;
  }

 private:
  size_t RowBytes() const { return static_cast<size_t>(view_.stride) * SizeOf(view_.type); }
  unsigned char* At(int32_t row, int32_t col) const {
    return bytes_.data() + static_cast<size_t>(row) * RowBytes() +
           static_cast<size_t>(col) * SizeOf(view_.type);
  }

  Matrix view_;
  DeviceVector<unsigned char> bytes_;
};

/// Fails the test unless all are the same to the bit; any NaN equals any other.
inline void ExpectSameBits(std::span<const float> a, std::span<const float> b,
                           const std::string& what) {
  ASSERT_EQ(a.size(), b.size()) << what;
  for (size_t i = 0; i < a.size(); ++i) {
    if (std::isnan(a[i]) && std::isnan(b[i])) continue;
    ASSERT_EQ(std::bit_cast<uint32_t>(a[i]), std::bit_cast<uint32_t>(b[i]))
        << what << ", element " << i << ": " << a[i] << ", " << b[i];
  }
}

}  // namespace quantd::cuda_emulated
