// Linear of every backend under test against ref: formats x odd shapes x dtypes, within derived
// tolerances, and the promises that hold to the bit: a row of a batch equals the row alone, and the
// number of threads does not matter.
//
// Tolerance. A sum of k products in f32 errs by about 2^-24 sqrt(k) of the sum of magnitudes if the
// roundings are independent; four times that is allowed. A kernel that multiplies in bf16 rounds
// the weight's table value once: at most 2^-8 of each product. ref sums in double and is asked for
// f32, so its own rounding is negligible beside these; the rounding to y's dtype is half an ulp.
#include <gtest/gtest.h>

#include <cmath>
#include <map>

#include "kernels/quant/quantize.h"
#include "tests/kernels/conformance.h"

namespace quantd::testing {
namespace {

constexpr int64_t kMaxRows = 65;
constexpr int64_t kRowCounts[] = {1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65};

struct LinearCase {
  std::string name;
  QuantFormat format;
  ActivationQuant activation = {};
  bool outliers = false;  // some activations of 6 and above

  bool is_int8() const { return activation.kind == ActivationQuant::Kind::kInt8Outlier; }
  bool depends_on_batch() const {
    return is_int8() && activation.scope == ActivationQuant::OutlierScope::kCall;
  }
};

std::vector<LinearCase> LinearCases() {
  using Scope = ActivationQuant::OutlierScope;
  const auto block4 = QuantFormat::Block4;
  const auto int8 = [](float threshold, Scope scope) {
    return ActivationQuant{ActivationQuant::Kind::kInt8Outlier, threshold, scope};
  };
  return {
      {"f32", QuantFormat::Plain(DType::kF32)},
      {"f16", QuantFormat::Plain(DType::kF16)},
      {"bf16", QuantFormat::Plain(DType::kBF16)},
      {"nf4", block4(Codec::kNf4, 64, false)},
      {"nf4_nested", block4(Codec::kNf4, 64, true)},
      {"fp4", block4(Codec::kFp4, 64, false)},
      {"fp4_nested", block4(Codec::kFp4, 64, true)},
      {"nf4_block32_nested", block4(Codec::kNf4, 32, true)},
      {"fp4_block128", block4(Codec::kFp4, 128, false)},
      {"nf4_block4096", block4(Codec::kNf4, 4096, false)},
      {"int8_weight_only", QuantFormat::Int8Row()},
      {"int8_row", QuantFormat::Int8Row(), int8(6.0f, Scope::kRow), false},
      {"int8_row_outliers", QuantFormat::Int8Row(), int8(6.0f, Scope::kRow), true},
      {"int8_call", QuantFormat::Int8Row(), int8(6.0f, Scope::kCall), false},
      {"int8_call_outliers", QuantFormat::Int8Row(), int8(6.0f, Scope::kCall), true},
      {"int8_no_threshold", QuantFormat::Int8Row(), int8(0.0f, Scope::kRow), true},
  };
}

struct Shape {
  std::vector<int64_t> segments;  // rows of each; none a multiple of 16 where there are several
  int64_t k;
  DType x, y;
  int64_t gap;  // between rows of x and of y

  int64_t n() const {
    int64_t n = 0;
    for (int64_t s : segments) n += s;
    return n;
  }
  std::string Name() const {
    return fmt::format("n {} ({} segments) k {} {} -> {}", n(), segments.size(), k, ToString(x),
                       ToString(y));
  }
};

const std::vector<Shape>& Shapes() {
  constexpr DType kF32 = DType::kF32, kF16 = DType::kF16, kBF16 = DType::kBF16;
  static const std::vector<Shape> shapes = {
      {{1}, 64, kF32, kF32, 0},         {{15}, 72, kBF16, kBF16, 5},
      {{16}, 128, kBF16, kF32, 0},      {{17}, 200, kF16, kF16, 0},
      {{17, 31}, 384, kBF16, kBF16, 0}, {{33, 1, 96}, 72, kF32, kF32, 3},
      {{130}, 1024, kBF16, kBF16, 0},   {{7, 5, 5}, 200, kBF16, kF32, 0},
      {{130, 382}, 384, kF16, kF32, 0}, {{48}, 1024, kF32, kF32, 0},
      {{17}, 8, kBF16, kBF16, 0},       {{3}, 33, kF32, kF32, 0},
  };
  return shapes;
}

/// Everything about one case and shape that does not depend on the backend: made once.
struct Problem {
  std::vector<QuantizedMatrix> matrices;
  std::vector<float> x;           // [kMaxRows, k], exact in the shape's dtype
  std::vector<float> bias;        // [n]
  std::vector<double> magnitude;  // [kMaxRows, n] |bias| + sum of |w x|
};

Problem MakeProblem(const LinearCase& c, const Shape& shape) {
  Problem p;
  const int64_t k = shape.k, n = shape.n();
  std::vector<double> weights;  // |W| [n, k]
  for (size_t s = 0; s < shape.segments.size(); ++s) {
    const int64_t rows = shape.segments[s];
    std::vector<float> w =
        RandomFloats(static_cast<size_t>(rows * k),
                     static_cast<uint32_t>(n + k) + 7 * static_cast<uint32_t>(s), 0.05f);
    if (rows > 2) std::fill_n(w.begin() + k, k, 0.0f);  // an output whose scale is zero
    w[0] *= 8.0f;
    p.matrices.push_back(MatrixOf(c.format, w, rows));
    for (int64_t i = 0; i < rows * k; ++i) {
      weights.push_back(std::fabs(double{p.matrices.back().Dequantize(i / k, i % k)}));
    }
  }
  p.x = RandomFloats(static_cast<size_t>(kMaxRows * k), static_cast<uint32_t>(k));
  for (size_t i = 0; i < p.x.size(); ++i) {
    const int64_t row = static_cast<int64_t>(i) / k, col = static_cast<int64_t>(i) % k;
    float& v = p.x[i];
    v = std::min(std::max(v, -5.9f), 5.9f);
    if (row == 4) v = 0.0f;
    if (!c.outliers) continue;
    if (row % 3 == 0 && (col + row / 3) % 37 == 5) v *= 40.0f;
    if (row == 7) v = col % 2 == 0 ? 6.0f : -65.0f;  // nothing but outliers, some at the threshold
  }
  p.x = RoundedTo(shape.x, std::move(p.x));
  p.bias = RandomFloats(static_cast<size_t>(n), 99);
  p.magnitude.resize(static_cast<size_t>(kMaxRows * n));
  for (int64_t r = 0; r < kMaxRows; ++r) {
    for (int64_t o = 0; o < n; ++o) {
      double sum = std::fabs(double{p.bias[static_cast<size_t>(o)]});
      for (int64_t i = 0; i < k; ++i) {
        sum += weights[static_cast<size_t>(o * k + i)] *
               std::fabs(p.x[static_cast<size_t>(r * k + i)]);
      }
      p.magnitude[static_cast<size_t>(r * n + o)] = sum;
    }
  }
  return p;
}

/// Rows [first, first + m) of the problem on `backend`: y [m, n] as f32.
std::vector<float> RunLinear(Backend& backend, const PackedWeight& w, const LinearCase& c,
                             const Shape& shape, const Problem& p, int64_t first, int64_t m,
                             DType y_type) {
  const DeviceMatrix x(backend, shape.x, m, shape.k,
                       std::span(p.x).subspan(static_cast<size_t>(first * shape.k),
                                              static_cast<size_t>(m * shape.k)),
                       shape.gap);
  const DeviceMatrix y(backend, y_type, m, shape.n(), shape.gap);
  const DeviceArray<float> bias(backend, p.bias);
  backend.Linear(w, c.activation, x, bias.data(), y);
  EXPECT_TRUE(backend.Synchronize().ok());
  return y.Read();
}

const Problem& ProblemOf(size_t case_index, size_t shape_index) {
  static std::map<std::pair<size_t, size_t>, Problem> made;
  const auto key = std::pair(case_index, shape_index);
  if (!made.contains(key))
    made[key] = MakeProblem(LinearCases()[case_index], Shapes()[shape_index]);
  return made[key];
}

/// ref's y, not rounded to the shape's dtype, of the first m rows.
const std::vector<float>& Expected(size_t case_index, size_t shape_index, int64_t m) {
  static std::map<std::tuple<size_t, size_t, int64_t>, std::vector<float>> made;
  const auto key = std::tuple(case_index, shape_index, m);
  if (!made.contains(key)) {
    const Problem& p = ProblemOf(case_index, shape_index);
    made[key] = RunLinear(Ref(), *Pack(Ref(), p.matrices), LinearCases()[case_index],
                          Shapes()[shape_index], p, 0, m, DType::kF32);
  }
  return made[key];
}

/// How far apart a correct kernel and ref may be, as a share of the sum of magnitudes.
double RelativeTolerance(const LinearCase& c, const Shape& shape, const BackendUnderTest& b) {
  // Integer sums are exact; what remains is a handful of f32 operations.
  if (c.is_int8()) return 16 * 0x1p-24;
  const bool table = c.format.codec == Codec::kNf4 || c.format.codec == Codec::kFp4;
  double relative = 4 * 0x1p-24 * std::sqrt(static_cast<double>(shape.k));
  if (table && shape.x == DType::kBF16) relative += 0x1p-8;
  if (!b.rounds_to_16_bit || shape.x == DType::kF32) return relative;
  // A weight in x's type, and y before its bias is added.
  const double half_ulp = shape.x == DType::kBF16 ? 0x1p-9 : 0x1p-12;
  if (!IsPlain(c.format.codec)) relative += half_ulp * (table && shape.x == DType::kBF16 ? 0 : 2);
  if (shape.y != DType::kF32) relative += half_ulp;
  return relative;
}

class LinearConformance : public ::testing::TestWithParam<std::tuple<size_t, size_t>> {
 protected:
  void SetUp() override {
    backend_ = &BackendAt(std::get<0>(GetParam()));
    baseline_ = BaselineOf(std::get<0>(GetParam()));
    case_index_ = std::get<1>(GetParam());
    case_ = LinearCases()[case_index_];
  }

  void ExpectConforms(size_t shape_index) {
    const Shape& shape = Shapes()[shape_index];
    const Problem& p = ProblemOf(case_index_, shape_index);
    const auto weight = Pack(*backend_, p.matrices);
    const auto run = [&](int64_t first, int64_t m) {
      return RunLinear(*backend_, *weight, case_, shape, p, first, m, shape.y);
    };
    const size_t n = static_cast<size_t>(shape.n());
    if (baseline_ != nullptr) {
      const auto same = Pack(*baseline_, p.matrices);
      for (int64_t m : {int64_t{1}, int64_t{9}, kMaxRows}) {
        ExpectSameBits(run(0, m), RunLinear(*baseline_, *same, case_, shape, p, 0, m, shape.y),
                       fmt::format("{} rows, as on one thread", m));
      }
      return;
    }
    const double relative = RelativeTolerance(case_, shape, under_test());
    std::vector<double> tolerance = p.magnitude;
    for (double& t : tolerance) t *= relative;
    const auto expect_close = [&](std::span<const float> y, int64_t m) {
      ExpectClose(y, Expected(case_index_, shape_index, m),
                  std::span(tolerance).first(static_cast<size_t>(m) * n), shape.y,
                  fmt::format("{} rows", m));
    };
    const std::vector<float> whole = run(0, kMaxRows);
    expect_close(whole, kMaxRows);
    if (case_.depends_on_batch() || !under_test().batch_invariant) {
      for (int64_t m : {1, 2, 8, 9, 16, 17, 33, 64}) expect_close(run(0, m), m);
      return;
    }
    // Other numbers of rows, from other first rows: the same bits, so the same distance from ref.
    for (int64_t m : kRowCounts) {
      if (n * static_cast<size_t>(shape.k) > 30000 && m > 9 && m % 16 != 1) continue;
      const int64_t first = (m * 5) % (kMaxRows - m + 1);
      ExpectSameBits(
          run(first, m),
          std::span(whole).subspan(static_cast<size_t>(first) * n, static_cast<size_t>(m) * n),
          fmt::format("rows {} + {} of {}", first, m, kMaxRows));
    }
  }

  const BackendUnderTest& under_test() const {
    return BackendsUnderTest()[std::get<0>(GetParam())];
  }

  Backend* backend_ = nullptr;
  Backend* baseline_ = nullptr;
  size_t case_index_ = 0;
  LinearCase case_;
};

TEST_P(LinearConformance, IsCloseToRefAndIndependentOfTheBatch) {
  for (size_t s = 0; s < Shapes().size(); ++s) {
    SCOPED_TRACE(Shapes()[s].Name());
    ExpectConforms(s);
  }
}

TEST_P(LinearConformance, WorksWithoutBiasAndWithoutRows) {
  const Shape& shape = Shapes()[3];
  const Problem& p = ProblemOf(case_index_, 3);
  const auto weight = Pack(*backend_, p.matrices);
  const DeviceMatrix x(*backend_, shape.x, 2, shape.k,
                       std::span(p.x).first(static_cast<size_t>(2 * shape.k)));
  const DeviceMatrix without(*backend_, shape.x, 2, shape.n()),
      zero(*backend_, shape.x, 2, shape.n());
  const DeviceArray<float> bias(*backend_,
                                std::vector<float>(static_cast<size_t>(shape.n()), 0.0f));
  backend_->Linear(*weight, case_.activation, x, nullptr, without);
  backend_->Linear(*weight, case_.activation, x, bias.data(), zero);
  ExpectSameBits(without.Read(), zero.Read(), "no bias");
  backend_->Linear(*weight, case_.activation, x.view().Rows(0, 0), bias.data(),
                   zero.view().Rows(0, 0));
  ExpectSameBits(zero.Read(), without.Read(), "no rows");
}

INSTANTIATE_TEST_SUITE_P(Backends, LinearConformance,
                         ::testing::Combine(::testing::ValuesIn(BackendIndices()),
                                            ::testing::Range(size_t{0}, LinearCases().size())),
                         [](const auto& test) {
                           return BackendsUnderTest()[std::get<0>(test.param)].name + "_" +
                                  LinearCases()[std::get<1>(test.param)].name;
                         });

}  // namespace
}  // namespace quantd::testing
