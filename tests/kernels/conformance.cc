// The harness of conformance.h: backends by name, canaried matrices, comparisons. One thread.
#include "tests/kernels/conformance.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <random>

#include "kernels/cpu/cpu_backend.h"
#include "kernels/cuda/cuda_backend.h"
#include "kernels/quant/quantize.h"
#include "kernels/ref/ref_backend.h"

namespace quantd::testing {
namespace {

constexpr uint8_t kCanary = 0xff;   // a NaN in every floating-point type
constexpr int64_t kRowsBehind = 1;  // of canary

float ToFloat(DType dtype, const uint8_t* element) {
  if (dtype == DType::kF32) {
    float f;
    std::memcpy(&f, element, sizeof(f));
    return f;
  }
  uint16_t bits;
  std::memcpy(&bits, element, sizeof(bits));
  if (dtype == DType::kF16) return static_cast<float>(std::bit_cast<F16>(bits));
  return static_cast<float>(std::bit_cast<BF16>(bits));
}

void FromFloat(DType dtype, float f, uint8_t* element) {
  if (dtype == DType::kF32) {
    std::memcpy(element, &f, sizeof(f));
    return;
  }
  const uint16_t bits = dtype == DType::kF16 ? F16(f).bits : BF16(f).bits;
  std::memcpy(element, &bits, sizeof(bits));
}

std::vector<BackendUnderTest>& MutableBackends() {
  static std::vector<BackendUnderTest> backends = [] {
    std::vector<BackendUnderTest> list;
    for (CpuIsa isa : SupportedIsas()) {
      const std::string one = "cpu_" + std::string(ToString(isa)) + "_1thread";
      for (int threads : {1, 2}) {
        list.push_back({threads == 1 ? one : "cpu_" + std::string(ToString(isa)) + "_2threads",
                        threads == 1 ? "" : one, [isa, threads] {
                          auto backend = CreateCpuBackend({.num_threads = threads, .isa = isa});
                          QUANTD_CHECK(backend.ok());
                          return *std::move(backend);
                        }});
      }
    }
#ifdef QUANTD_HAS_CUDA_EMULATION
    for (const bool invariant : {false, true}) {
      list.push_back(
          {invariant ? "cuda_emulated_invariant" : "cuda_emulated", "",
           [invariant] {
             auto backend = cuda_emulated::CreateBackend(
                 {.determinism = invariant ? Determinism::kBatchInvariant : Determinism::kDefault});
             QUANTD_CHECK(backend.ok(), "{}", std::string(backend.status().message()));
             return *std::move(backend);
           },
           /*batch_invariant=*/invariant, /*rounds_to_16_bit=*/true,
           /*tile_columns=*/64});
    }
#endif
    return list;
  }();
  return backends;
}

}  // namespace

const std::vector<BackendUnderTest>& BackendsUnderTest() { return MutableBackends(); }

void SetBackendsUnderTest(std::vector<BackendUnderTest> backends) {
  MutableBackends() = std::move(backends);
}

std::vector<size_t> BackendIndices() {
  std::vector<size_t> indices;
  for (size_t i = 0; i < BackendsUnderTest().size(); ++i) indices.push_back(i);
  return indices;
}

Backend& BackendAt(size_t index) {
  static std::vector<std::unique_ptr<Backend>> made(BackendsUnderTest().size());
  if (made[index] == nullptr) made[index] = BackendsUnderTest()[index].create();
  return *made[index];
}

Backend* BaselineOf(size_t index) {
  for (size_t i : BackendIndices()) {
    if (BackendsUnderTest()[i].name == BackendsUnderTest()[index].baseline) return &BackendAt(i);
  }
  return nullptr;
}

Backend& Ref() {
  static const std::unique_ptr<Backend> ref = CreateRefBackend();
  return *ref;
}

DeviceMatrix::DeviceMatrix(Backend& backend, DType dtype, int64_t rows, int64_t cols, int64_t gap)
    : DeviceMatrix(backend, dtype, rows, cols, {}, gap) {}

DeviceMatrix::DeviceMatrix(Backend& backend, DType dtype, int64_t rows, int64_t cols,
                           std::span<const float> values, int64_t gap)
    : backend_(backend) {
  const int64_t stride = cols + gap;
  std::vector<uint8_t> bytes(static_cast<size_t>((rows + kRowsBehind) * stride) * SizeOf(dtype),
                             kCanary);
  for (size_t i = 0; i < values.size(); ++i) {
    const int64_t at = static_cast<int64_t>(i) / cols * stride + static_cast<int64_t>(i) % cols;
    FromFloat(dtype, values[i], bytes.data() + static_cast<size_t>(at) * SizeOf(dtype));
  }
  auto buffer = backend.Allocate(bytes.size(), MemoryComponent::kActivations);
  QUANTD_CHECK(buffer.ok());
  buffer_ = *std::move(buffer);
  backend.Upload(bytes.data(), bytes.size(), buffer_.data());
  view_ = TensorView(dtype, buffer_.data(), rows, cols);
  view_.stride = stride;
}

std::vector<float> DeviceMatrix::Read() const {
  std::vector<uint8_t> bytes(buffer_.bytes());
  backend_.Download(buffer_.data(), bytes.size(), bytes.data());
  std::vector<float> values;
  int64_t spoiled = 0;
  const size_t size = SizeOf(view_.dtype);
  for (int64_t r = 0; r < view_.rows + kRowsBehind; ++r) {
    for (int64_t c = 0; c < view_.stride; ++c) {
      const uint8_t* element = bytes.data() + static_cast<size_t>(r * view_.stride + c) * size;
      if (r < view_.rows && c < view_.cols) {
        values.push_back(ToFloat(view_.dtype, element));
      } else {
        for (size_t b = 0; b < size; ++b) spoiled += element[b] != kCanary;
      }
    }
  }
  EXPECT_EQ(spoiled, 0) << "bytes written outside a [" << view_.rows << ", " << view_.cols
                        << "] matrix";
  return values;
}

std::vector<float> RandomFloats(size_t count, uint32_t seed, float scale) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0.0f, scale);
  std::vector<float> values(count);
  for (float& v : values) v = normal(random);
  return values;
}

std::vector<float> RoundedTo(DType dtype, std::vector<float> values) {
  for (float& v : values) {
    uint8_t element[4];
    FromFloat(dtype, v, element);
    v = ToFloat(dtype, element);
  }
  return values;
}

double HalfUlp(DType dtype, double magnitude) {
  const int fraction = dtype == DType::kF32 ? 23 : dtype == DType::kF16 ? 10 : 7;
  const int lowest = dtype == DType::kF16 ? -14 : -126;
  const int exponent = magnitude > 0.0 ? std::max(std::ilogb(magnitude), lowest) : lowest;
  return std::ldexp(0.5, exponent - fraction);
}

void ExpectClose(std::span<const float> actual, std::span<const float> expected,
                 std::span<const double> tolerance, DType dtype, const std::string& what) {
  ASSERT_EQ(actual.size(), expected.size()) << what;
  ASSERT_EQ(tolerance.size(), expected.size()) << what;
  int failures = 0;
  for (size_t i = 0; i < actual.size(); ++i) {
    const double allowed =
        tolerance[i] + HalfUlp(dtype, std::fabs(double{expected[i]}) + tolerance[i]) * (1 + 1e-6);
    const double difference = std::fabs(double{actual[i]} - double{expected[i]});
    if (difference <= allowed) continue;  // false for NaN
    if (++failures <= 5) {
      ADD_FAILURE() << what << ": element " << i << " is " << actual[i] << ", expected "
                    << expected[i] << " +- " << allowed;
    }
  }
  EXPECT_EQ(failures, 0) << what << ": of " << actual.size() << " elements";
}

void ExpectSameBits(std::span<const float> actual, std::span<const float> expected,
                    const std::string& what) {
  ASSERT_EQ(actual.size(), expected.size()) << what;
  int failures = 0;
  for (size_t i = 0; i < actual.size(); ++i) {
    if (std::bit_cast<uint32_t>(actual[i]) == std::bit_cast<uint32_t>(expected[i])) continue;
    if (++failures <= 5) {
      ADD_FAILURE() << what << ": element " << i << " is " << actual[i] << ", expected "
                    << expected[i] << " to the bit";
    }
  }
  EXPECT_EQ(failures, 0) << what << ": of " << actual.size() << " elements";
}

std::unique_ptr<PackedWeight> Pack(Backend& backend, std::span<const QuantizedMatrix> segments) {
  std::vector<RowSegment> rows;
  int64_t first = 0;
  for (const QuantizedMatrix& s : segments) {
    rows.push_back({"segment" + std::to_string(rows.size()), first, s.n});
    first += s.n;
  }
  auto weight =
      backend.CreatePacked(segments[0].format, segments[0].k, rows, MemoryComponent::kWeights);
  QUANTD_CHECK(weight.ok(), "{}", std::string(weight.status().message()));
  for (size_t i = 0; i < segments.size(); ++i) {
    const absl::Status status = backend.PackRows(**weight, i, segments[i]);
    QUANTD_CHECK(status.ok(), "{}", std::string(status.message()));
  }
  return *std::move(weight);
}

}  // namespace quantd::testing
