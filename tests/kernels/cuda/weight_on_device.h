// Packed weights in the emulated device's memory, and a Linear in double to measure launchers
// against.
#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/packed_weight.h"
#include "kernels/quant/quantize.h"
#include "tests/kernels/cuda/rows_on_device.h"
#include "tests/kernels/quant/matrix_of.h"

namespace quantd::cuda_emulated::on_device {

inline std::unique_ptr<Backend> MakeBackend(const CudaBackendOptions& options = {}) {
  auto backend = CreateBackend(options);
  EXPECT_TRUE(backend.ok()) << backend.status();
  return std::move(*backend);
}

inline Buffer DeviceBuffer(size_t bytes) {
  return Buffer(
      DeviceAllocate(bytes + 1), bytes, [](void* data, size_t) { DeviceFree(data); }, nullptr,
      MemoryComponent::kWeights);
}

/// Random weights [n, k] in `format`.
inline QuantizedMatrix RandomWeight(const QuantFormat& format, int64_t n, int64_t k,
                                    uint32_t seed) {
  std::vector<float> values = Normal(static_cast<size_t>(n * k), seed, 0.05f);
  return testing::MatrixOf(format, values, n);
}

inline std::vector<RowSegment> SegmentsOf(const std::vector<QuantizedMatrix>& matrices) {
  std::vector<RowSegment> segments;
  int64_t row = 0;
  for (const QuantizedMatrix& m : matrices) {
    segments.push_back({"segment" + std::to_string(segments.size()), row, m.n});
    row += m.n;
  }
  return segments;
}

/// The segments packed into one weight; the pieces handed to the uploader must be small.
inline std::unique_ptr<CudaPackedWeight> PackOnDevice(
    const std::vector<QuantizedMatrix>& matrices) {
  const std::vector<RowSegment> segments = SegmentsOf(matrices);
  const QuantFormat format = matrices[0].format;
  const int64_t k = matrices[0].k;
  CudaPackedWeight::Plan plan = CudaPackedWeight::PlanFor(format, k, segments);
  auto weight = std::make_unique<CudaPackedWeight>(
      format, k, segments, plan, DeviceBuffer(plan.code_bytes), DeviceBuffer(plan.scale_bytes));
  for (size_t i = 0; i < matrices.size(); ++i) {
    weight->Pack(i, matrices[i], [](const void* host, size_t bytes, void* device) {
      EXPECT_LE(bytes, CudaPackedWeight::kPieceBytes);
      std::memcpy(device, host, bytes);
    });
  }
  return weight;
}

/// One Linear: segments, activations of a type, and the sums in double.
struct LinearProblem {
  std::vector<QuantizedMatrix> matrices;
  int64_t n = 0, k = 0, m = 0;
  FloatType x_type;
  std::vector<float> x;            // [m, k], exact in x_type
  std::vector<float> bias;         // [n]
  std::vector<double> sums;        // [m, n]
  std::vector<double> magnitudes;  // [m, n] |bias| + sum of |w x|

  LinearProblem(const QuantFormat& format, const std::vector<int64_t>& rows, int64_t columns,
                FloatType type, int64_t tokens)
      : k(columns), m(tokens), x_type(type) {
    for (int64_t r : rows) {
      matrices.push_back(RandomWeight(format, r, k, static_cast<uint32_t>(101 * r + k + n)));
      n += r;
    }
    x = Normal(static_cast<size_t>(m * k), static_cast<uint32_t>(k), 1.0f);
    for (float& v : x) v = Rounded(type, v);
    bias = Normal(static_cast<size_t>(n), 99, 1.0f);
    sums.assign(static_cast<size_t>(m * n), 0.0);
    magnitudes = sums;
    int64_t first = 0;
    for (const QuantizedMatrix& w : matrices) {
      for (int64_t r = 0; r < w.n; ++r) AddRow(w, r, first + r);
      first += w.n;
    }
  }

  /// How far a correct kernel may be from the sums, as a share of the magnitudes: f32 sums of k
  /// terms whose roundings are independent, four times over; where table values are rounded to x's
  /// type, half an ulp of each product.
  double RelativeTolerance(bool rounds_table) const {
    const double table = !rounds_table ? 0.0 : x_type == FloatType::kBF16 ? 0x1p-8 : 0x1p-11;
    return 4 * 0x1p-24 * std::sqrt(static_cast<double>(k)) + table;
  }

  /// y [rows, n] of tokens [first, first + rows) against the sums.
  void ExpectClose(const std::vector<float>& y, FloatType y_type, int64_t first,
                   bool rounds_table) const {
    int failures = 0;
    for (size_t i = 0; i < y.size(); ++i) {
      const size_t at = static_cast<size_t>(first * n) + i;
      const double tolerance = RelativeTolerance(rounds_table) * magnitudes[at];
      const double half_ulp = HalfUlp(y_type, std::fabs(sums[at]) + tolerance);
      if (std::fabs(y[i] - sums[at]) <= tolerance + half_ulp * (1 + 1e-6)) continue;
      if (++failures <= 5) {
        ADD_FAILURE() << "token " << i / static_cast<size_t>(n) << " output "
                      << i % static_cast<size_t>(n) << " is " << y[i] << ", expected " << sums[at]
                      << " +- " << tolerance + half_ulp;
      }
    }
    EXPECT_EQ(failures, 0) << "of " << y.size();
  }

  std::vector<float> XRows(int64_t first, int64_t rows) const {
    return {x.begin() + first * k, x.begin() + (first + rows) * k};
  }

 private:
  void AddRow(const QuantizedMatrix& w, int64_t row, int64_t output) {
    std::vector<double> values(static_cast<size_t>(k));
    for (int64_t c = 0; c < k; ++c) values[static_cast<size_t>(c)] = double{w.Dequantize(row, c)};
    for (int64_t t = 0; t < m; ++t) {
      const double b = double{bias[static_cast<size_t>(output)]};
      double sum = b, magnitude = std::fabs(b);
      for (int64_t c = 0; c < k; ++c) {
        const double product =
            values[static_cast<size_t>(c)] * double{x[static_cast<size_t>(t * k + c)]};
        sum += product;
        magnitude += std::fabs(product);
      }
      sums[static_cast<size_t>(t * n + output)] = sum;
      magnitudes[static_cast<size_t>(t * n + output)] = magnitude;
    }
  }
};

}  // namespace quantd::cuda_emulated::on_device
