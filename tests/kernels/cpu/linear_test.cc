// Linear of the cpu backend against `ref`, on every instruction set this machine has, and what the
// conformance test does not ask: that a row's result is the same bits alone, in any batch, with any
// number of threads.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "kernels/cpu/cpu_backend.h"
#include "kernels/cpu/packed_weight.h"
#include "kernels/quant/quantize.h"
#include "kernels/ref/ref_backend.h"
#include "kernels/status.h"

namespace quantd {
namespace {

/// Memory for a matrix of any float type.
struct Matrix {
  std::vector<uint8_t> bytes;
  TensorView view;
  Matrix(DType dtype, int64_t rows, int64_t cols)
      : bytes(static_cast<size_t>(rows * cols) * SizeOf(dtype)) {
    view = TensorView(dtype, bytes.data(), rows, cols);
  }
  void Set(int64_t r, int64_t c, float v) {
    if (view.dtype == DType::kF32) view.Row<float>(r)[c] = v;
    if (view.dtype == DType::kF16) view.Row<F16>(r)[c] = F16(v);
    if (view.dtype == DType::kBF16) view.Row<BF16>(r)[c] = BF16(v);
  }
  float Get(int64_t r, int64_t c) const {
    if (view.dtype == DType::kF32) return view.Row<float>(r)[c];
    if (view.dtype == DType::kF16) return static_cast<float>(view.Row<F16>(r)[c]);
    return static_cast<float>(view.Row<BF16>(r)[c]);
  }
};

Matrix Random(DType dtype, int64_t rows, int64_t cols, uint32_t seed, float outliers = 0.0f) {
  std::mt19937 rng(seed);
  std::normal_distribution<float> normal;
  Matrix m(dtype, rows, cols);
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t c = 0; c < cols; ++c) {
      const bool outlier = outliers > 0.0f && rng() % 29 == 0;
      m.Set(r, c, normal(rng) * (outlier ? outliers : 1.0f));
    }
  }
  return m;
}

QuantizedMatrix Quantize(const std::string& format, const Matrix& w) {
  const QuantFormat f = QuantFormat::Parse(format).value();
  if (f.codec == Codec::kInt8) return QuantizeInt8Rows(w.view);
  if (f.codec == Codec::kF32) return PlainMatrix(w.view, DType::kF32);
  if (f.codec == Codec::kF16) return PlainMatrix(w.view, DType::kF16);
  if (f.codec == Codec::kBF16) return PlainMatrix(w.view, DType::kBF16);
  QuantizedMatrix q = QuantizeBlock4(w.view, f.codec, f.block.size);
  if (f.scale == ScaleType::kNested) NestScales(q);
  return q;
}

std::unique_ptr<PackedWeight> Pack(Backend& backend, const std::vector<QuantizedMatrix>& parts) {
  std::vector<RowSegment> segments;
  int64_t row = 0;
  for (const QuantizedMatrix& q : parts) {
    segments.push_back({"part", row, q.n});
    row += q.n;
  }
  auto w = backend.CreatePacked(parts[0].format, parts[0].k, segments, MemoryComponent::kWeights);
  EXPECT_TRUE(w.ok()) << Message(w.status());
  for (size_t i = 0; i < parts.size(); ++i) EXPECT_TRUE(backend.PackRows(**w, i, parts[i]).ok());
  return std::move(w).value();
}

std::unique_ptr<Backend> Cpu(CpuIsa isa, int threads) {
  return CreateCpuBackend({threads, isa}).value();
}

constexpr const char* kFormats[] = {"f32",
                                    "f16",
                                    "bf16",
                                    "nf4.flat64.f32",
                                    "nf4.flat64.nested",
                                    "nf4.flat32.f32",
                                    "fp4.flat64.f32",
                                    "fp4.flat128.nested",
                                    "int8.row.absmax"};

struct Shape {
  std::vector<int64_t> rows;  // of the segments
  int64_t k;
};
const Shape kShapes[] = {
    {{16}, 64}, {{48, 16, 16}, 256}, {{33, 5, 70}, 320}, {{17}, 65}, {{40}, 100}};

TEST(CpuLinear, MatchesRefOnEveryIsaFormatShapeAndDType) {
  const auto ref = CreateRefBackend();
  for (CpuIsa isa : SupportedIsas()) {
    const auto cpu = Cpu(isa, 2);
    for (const char* format : kFormats) {
      for (const Shape& shape : kShapes) {
        std::vector<QuantizedMatrix> parts;
        uint32_t seed = 1;
        for (int64_t n : shape.rows)
          parts.push_back(Quantize(format, Random(DType::kF32, n, shape.k, seed++)));
        const auto w_cpu = Pack(*cpu, parts);
        const auto w_ref = Pack(*ref, parts);
        std::vector<float> bias(static_cast<size_t>(w_cpu->n()));
        for (size_t i = 0; i < bias.size(); ++i) bias[i] = static_cast<float>(i % 7) - 3.0f;
        for (DType dtype : {DType::kF32, DType::kF16, DType::kBF16}) {
          for (int64_t m : {1, 2, 3, 5, 8, 13}) {
            const Matrix x = Random(dtype, m, shape.k, 99);
            Matrix y_cpu(DType::kF32, m, w_cpu->n());
            Matrix y_ref(DType::kF32, m, w_cpu->n());
            cpu->Linear(*w_cpu, {}, x.view, bias.data(), y_cpu.view);
            ref->Linear(*w_ref, {}, x.view, bias.data(), y_ref.view);
            int64_t row0 = 0;
            for (const QuantizedMatrix& q : parts) {
              for (int64_t n = 0; n < q.n; ++n) {
                for (int64_t r = 0; r < m; ++r) {
                  double magnitude = 4.0;
                  for (int64_t c = 0; c < shape.k; ++c)
                    magnitude += std::fabs(x.Get(r, c) * q.Dequantize(n, c));
                  // A 4-bit table rounded to bf16 is off by 2^-9 of a value; f32 sums by some
                  // 2^-22.
                  const bool rounded = isa == CpuIsa::kAvx512Bf16 && BitsOf(q.format.codec) == 4;
                  const double allowed = magnitude * (rounded ? 0x1p-9 : 0x1p-20);
                  ASSERT_NEAR(y_cpu.Get(r, row0 + n), y_ref.Get(r, row0 + n), allowed)
                      << ToString(isa) << " " << format << " k " << shape.k << " x "
                      << ToString(dtype) << " m " << m << " row " << r << " output " << row0 + n;
                }
              }
              row0 += q.n;
            }
          }
        }
      }
    }
  }
}

TEST(CpuLinear, Int8ActivationsMatchRefWithAndWithoutOutliers) {
  const auto ref = CreateRefBackend();
  for (CpuIsa isa : SupportedIsas()) {
    const auto cpu = Cpu(isa, 2);
    for (const Shape& shape : kShapes) {
      std::vector<QuantizedMatrix> parts;
      uint32_t seed = 1;
      for (int64_t n : shape.rows) {
        parts.push_back(Quantize("int8.row.absmax", Random(DType::kF32, n, shape.k, seed++)));
      }
      const auto w_cpu = Pack(*cpu, parts);
      const auto w_ref = Pack(*ref, parts);
      for (DType dtype : {DType::kF32, DType::kF16, DType::kBF16}) {
        for (float threshold : {0.0f, 6.0f}) {
          for (auto scope :
               {ActivationQuant::OutlierScope::kRow, ActivationQuant::OutlierScope::kCall}) {
            for (int64_t m : {1, 3, 11}) {
              const ActivationQuant quant{ActivationQuant::Kind::kInt8Outlier, threshold, scope};
              const Matrix x = Random(dtype, m, shape.k, 7, 20.0f);
              Matrix y_cpu(DType::kF32, m, w_cpu->n());
              Matrix y_ref(DType::kF32, m, w_cpu->n());
              cpu->Linear(*w_cpu, quant, x.view, nullptr, y_cpu.view);
              ref->Linear(*w_ref, quant, x.view, nullptr, y_ref.view);
              for (int64_t r = 0; r < m; ++r) {
                for (int64_t n = 0; n < w_cpu->n(); ++n) {
                  // Sums of about sqrt(k) * 20 * 4, in f32.
                  ASSERT_NEAR(y_cpu.Get(r, n), y_ref.Get(r, n),
                              2e-3 + std::fabs(y_ref.Get(r, n)) * 1e-5)
                      << ToString(isa) << " k " << shape.k << " x " << ToString(dtype)
                      << " threshold " << threshold << " m " << m << " row " << r << " output "
                      << n;
                }
              }
            }
          }
        }
      }
    }
  }
}

TEST(CpuLinear, ARowIsTheSameBitsAloneInABatchAndOnAnyNumberOfThreads) {
  for (CpuIsa isa : SupportedIsas()) {
    const auto one = Cpu(isa, 1);
    const auto three = Cpu(isa, 3);
    for (const char* format : kFormats) {
      const QuantizedMatrix q = Quantize(format, Random(DType::kF32, 1100, 320, 3));
      const auto w_one = Pack(*one, {q});
      const auto w_three = Pack(*three, {q});
      for (DType dtype : {DType::kF32, DType::kBF16}) {
        for (bool int8 : {false, true}) {
          if (int8 && std::string(format) != "int8.row.absmax") continue;
          ActivationQuant quant;
          if (int8)
            quant = {ActivationQuant::Kind::kInt8Outlier, 6.0f,
                     ActivationQuant::OutlierScope::kRow};
          constexpr int64_t kRows = 21;
          const Matrix x = Random(dtype, kRows, 320, 4, 20.0f);
          Matrix alone(dtype, kRows, 1100);
          for (int64_t r = 0; r < kRows; ++r) {
            one->Linear(*w_one, quant, x.view.Rows(r, 1), nullptr, alone.view.Rows(r, 1));
          }
          for (int64_t m : {2, 3, 4, 5, 6, 7, 8, 9, 17, 21}) {
            Matrix batched(dtype, m, 1100);
            three->Linear(*w_three, quant, x.view.Rows(0, m), nullptr, batched.view);
            ASSERT_EQ(std::memcmp(alone.bytes.data(), batched.bytes.data(), batched.bytes.size()),
                      0)
                << ToString(isa) << " " << format << " x " << ToString(dtype) << " m " << m;
          }
        }
      }
    }
  }
}

TEST(CpuLinear, OutputsOutsideTheSegmentsAreNotTouched) {
  const auto cpu = Cpu(SupportedIsas().back(), 2);
  const auto w = Pack(*cpu, {Quantize("nf4.flat64.f32", Random(DType::kF32, 21, 64, 1))});
  const Matrix x = Random(DType::kBF16, 3, 64, 2);
  Matrix y(DType::kBF16, 3, 40);
  std::memset(y.bytes.data(), 0x55, y.bytes.size());
  cpu->Linear(*w, {}, x.view, nullptr, y.view.Cols(0, 21));
  for (int64_t r = 0; r < 3; ++r) {
    for (int64_t c = 21; c < 40; ++c)
      EXPECT_EQ(y.view.Row<uint16_t>(r)[c], 0x5555) << r << "," << c;
  }
}

TEST(CpuPackedWeight, TakesHardlyMoreThanTheCheckpointAndBooksWhatItTakes) {
  for (const char* format : kFormats) {
    const auto cpu = Cpu(SupportedIsas().back(), 2);
    const QuantFormat f = QuantFormat::Parse(format).value();
    constexpr int64_t kN = 2560, kK = 2048;
    const auto w = cpu->CreatePacked(f, kK, {{"q", 0, 2048}, {"k", 2048, 256}, {"v", 2304, 256}},
                                     MemoryComponent::kHead);
    ASSERT_TRUE(w.ok());
    EXPECT_LE(static_cast<double>((*w)->bytes()), 1.05 * static_cast<double>(f.StoredBytes(kN, kK)))
        << format;
    const MemoryAccount& account = cpu->memory();
    EXPECT_EQ(account.Bytes(MemoryComponent::kHead) + account.Bytes(MemoryComponent::kScales),
              (*w)->bytes());
    EXPECT_EQ(account.Total(), (*w)->bytes()) << format;
  }
}

TEST(CpuLinear, AllocatesNothingInTheSteadyState) {
  const auto cpu = Cpu(SupportedIsas().back(), 2);
  const auto w = Pack(*cpu, {Quantize("nf4.flat64.f32", Random(DType::kF32, 64, 256, 1))});
  const Matrix x = Random(DType::kBF16, 24, 256, 2);
  Matrix y(DType::kBF16, 24, 64);
  cpu->Linear(*w, {}, x.view, nullptr, y.view);
  const int64_t peak = cpu->memory().Peak();
  for (int64_t m : {1, 8, 24}) cpu->Linear(*w, {}, x.view.Rows(0, m), nullptr, y.view.Rows(0, m));
  EXPECT_EQ(cpu->memory().Peak(), peak);
}

}  // namespace
}  // namespace quantd
