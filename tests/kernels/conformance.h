// The conformance harness: which backends are measured against `ref`, matrices in a backend's
// memory with canaries around every row, and comparison within derived tolerances.
//
// To put another backend under all conformance tests, add it to BackendsUnderTest().
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "kernels/backend.h"
#include "tests/kernels/quant/matrix_of.h"

namespace quantd::testing {

struct BackendUnderTest {
  std::string name;      // "cpu_avx512_2threads"
  std::string baseline;  // name of the backend whose results must be equal to the bit; empty: none
  std::function<std::unique_ptr<Backend>()> create;
  // A row of a Linear does not depend on how many rows there are.
  bool batch_invariant = true;
  // Between the two factors of a product, what is not stored may be rounded to the 16-bit type of
  // the activations: dequantized weights, attention's weights; and products before their bias is
  // added.
  bool rounds_to_16_bit = false;
  // 4-bit weights are padded to so many columns.
  int64_t tile_columns = 1;
};

/// `cpu` on every instruction set of this machine, with one thread and with two; `cuda` under
/// emulation, in both determinisms, where it is built in.
const std::vector<BackendUnderTest>& BackendsUnderTest();
/// Puts `backends` in their place. To be called before InitGoogleTest, which names the tests.
void SetBackendsUnderTest(std::vector<BackendUnderTest> backends);
/// Indices into BackendsUnderTest(), and their names, for INSTANTIATE_TEST_SUITE_P.
std::vector<size_t> BackendIndices();
/// An instance of BackendsUnderTest()[index], made once for the process.
Backend& BackendAt(size_t index);
/// The instance of the baseline of BackendsUnderTest()[index], or nullptr.
Backend* BaselineOf(size_t index);
/// The oracle, made once for the process.
Backend& Ref();

/// A matrix in a backend's memory. Between and behind its rows are canaries: NaNs that an op must
/// neither use nor overwrite.
class DeviceMatrix {
 public:
  /// `gap` elements of canary after every row. Elements start as canaries too.
  DeviceMatrix(Backend& backend, DType dtype, int64_t rows, int64_t cols, int64_t gap = 0);
  /// Elements rounded from `values` [rows * cols].
  DeviceMatrix(Backend& backend, DType dtype, int64_t rows, int64_t cols,
               std::span<const float> values, int64_t gap = 0);

  const TensorView& view() const { return view_; }
  operator TensorView() const { return view_; }  // NOLINT: stands in for a view in calls
  /// The elements as f32, row-major. Fails the test when a canary between or behind rows has
  /// changed.
  std::vector<float> Read() const;

 private:
  Backend& backend_;
  Buffer buffer_;
  TensorView view_;
};

/// An int32 or float array in a backend's memory.
template <typename T>
class DeviceArray {
 public:
  DeviceArray(Backend& backend, const std::vector<T>& values)
      : backend_(backend), size_(values.size()) {
    auto buffer = backend.Allocate(values.size() * sizeof(T), MemoryComponent::kWorkspace);
    QUANTD_CHECK(buffer.ok());
    buffer_ = *std::move(buffer);
    backend.Upload(values.data(), values.size() * sizeof(T), buffer_.data());
  }
  std::span<T> span() const { return {buffer_.template as<T>(), size_}; }
  T* data() const { return buffer_.template as<T>(); }
  std::vector<T> Read() const {
    std::vector<T> values(size_);
    backend_.Download(buffer_.data(), size_ * sizeof(T), values.data());
    return values;
  }

 private:
  Backend& backend_;
  Buffer buffer_;
  size_t size_;
};

/// Normal(0, scale) numbers of a seed.
std::vector<float> RandomFloats(size_t count, uint32_t seed, float scale = 1.0f);
/// `values` rounded to `dtype` and back.
std::vector<float> RoundedTo(DType dtype, std::vector<float> values);
/// Half the distance between neighbours of `dtype` at `magnitude`: the error of one rounding.
double HalfUlp(DType dtype, double magnitude);

/// |actual - expected| <= tolerance + half an ulp of `dtype`, element by element. `expected` is not
/// rounded to `dtype`. At most five failures are printed, after `what`.
void ExpectClose(std::span<const float> actual, std::span<const float> expected,
                 std::span<const double> tolerance, DType dtype, const std::string& what);
/// Bit for bit the same.
void ExpectSameBits(std::span<const float> actual, std::span<const float> expected,
                    const std::string& what);

/// A packed weight made of `segments`; the test fails when packing does.
std::unique_ptr<PackedWeight> Pack(Backend& backend, std::span<const QuantizedMatrix> segments);

}  // namespace quantd::testing
