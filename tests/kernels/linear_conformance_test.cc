// Linear of every backend under test against ref: formats x odd shapes x dtypes, within derived
// tolerances, and the promises that hold to the bit: a row of a batch equals the row alone, and the
// number of threads does not matter.
//
// Tolerance. A sum of k products in f32 errs by about 2^-24 sqrt(k) of the sum of magnitudes if the
// roundings are independent; four times that is allowed. A kernel that multiplies in bf16 rounds
// the weight's table value once: at most 2^-8 of each product (of the other 4-bit codecs every
// value is a bf16). ref sums in double and is asked for f32, so its own rounding is negligible
// beside these; the rounding to y's dtype is half an ulp.
//
// Zero points. A kernel may sum scale * code * x and zero * scale * x apart, which cancel, and may
// take half the codes' range off both code and zero point: roundings are then shares of
// scale * (|code| + |zero| + that range) * |x|, and this is the magnitude of a product.
//
// Quantized activations. Magnitudes are of x', what replaces x. Every backend makes the same x', so
// nothing is added, unless it multiplies the codes of x by int8 weights: then its x' is not rounded
// to x's dtype, half an ulp of each. Tensor cores that multiply e4m3 codes add them with fewer bits
// than f32 has: on Hopper differences of 2^-16.8 of the sum of magnitudes were seen; 2^-15 is
// allowed.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <map>

#include "kernels/quant/quantize.h"
#include "tests/kernels/conformance.h"

namespace quantd::testing {
namespace {

constexpr int64_t kMaxRows = 65;
constexpr int64_t kRowCounts[] = {1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65};
// Formats of checkpoints share their kernels' loops with the formats before them: they are run on
// shapes of at most so many weights and on fewer numbers of rows, so that the whole takes minutes
// under a sanitizer too.
constexpr int64_t kMaxCheckpointWeights = 60000;
constexpr int64_t kCheckpointRowCounts[] = {1, 8, 17, 64};

struct LinearCase {
  std::string name;
  QuantFormat format;
  ActivationQuant activation = {};
  bool outliers = false;  // some activations of 6 and above
  bool of_checkpoints = false;

  bool is_int8() const { return activation.kind == ActivationQuant::Kind::kInt8Outlier; }
  bool may_multiply_codes() const {
    return ReplacesInput(activation.kind) && !IsFp8(activation.kind) && !activation.reference &&
           format.codec == Codec::kInt8;
  }
  bool depends_on_batch() const {
    return is_int8() && activation.scope == ActivationQuant::OutlierScope::kCall;
  }
};

/// Formats of checkpoints, with the activations they prescribe.
std::vector<LinearCase> CheckpointCases() {
  using Kind = ActivationQuant::Kind;
  using Rounding = ActivationQuant::Rounding;
  const ActivationQuant int8_token{.kind = Kind::kInt8Token, .rounding = Rounding::kScale};
  const ActivationQuant int8_tensor{.kind = Kind::kInt8Tensor,
                                    .rounding = Rounding::kEveryStep,
                                    .scale = 0.046875f,
                                    .zero_point = 3};
  const ActivationQuant int8_every_step{.kind = Kind::kInt8Token, .rounding = Rounding::kEveryStep};
  const ActivationQuant int8_asym{.kind = Kind::kInt8TokenAsym, .rounding = Rounding::kEveryStep};
  const ActivationQuant fp8_tensor{
      .kind = Kind::kFp8Tensor, .rounding = Rounding::kEveryStep, .scale = 0.013671875f};
  const ActivationQuant fp8_token{.kind = Kind::kFp8Token, .rounding = Rounding::kEveryStep};
  const ActivationQuant fp8_group{.kind = Kind::kFp8Group, .group = 128};
  const auto reference = [](ActivationQuant q) {
    q.reference = true;
    return q;
  };
  const struct {
    std::string name;
    std::string format;
    ActivationQuant activation = {};
  } cases[] = {
      {"gptq4", "int4.group128.f16"},
      {"gptq4_groups_of_32", "int4.group32.f16"},
      {"gptq4_one_group", "int4.row.f16"},
      {"gptq4_asym", "uint4.group64.f16.zero_u8"},
      {"gptq4_desc_act", "uint4.group128.f16.zero_u8.reordered"},
      {"gptq4_sym_desc_act", "int4.group32.bf16.reordered"},
      {"gptq8", "int8.group128.f16"},
      {"gptq8_asym", "uint8.group32.bf16.zero_u8"},
      {"gptq2_asym", "uint2.group64.f16.zero_u8"},
      {"hqq4", "uint4.flat64.bf16.zero_bf16"},
      {"hqq4_f32", "uint4.flat24.f32.zero_f32"},
      {"hqq2", "uint2.flat16.f16.zero_f16"},
      {"hqq8", "uint8.flat128.f16.zero_f16"},
      {"hqq4_axis0", "uint4.strided64.f16.zero_f16"},
      {"hqq2_axis0", "uint2.strided32.bf16.zero_bf16"},
      {"hqq8_axis0", "uint8.strided64.f32.zero_f32"},
      {"torchao_int4", "int4.group128.bf16.offset_bf16"},
      {"torchao_int4_groups_of_32", "int4.group32.bf16.offset_bf16"},
      {"torchao_8da4w", "int4.group32.f32", {.kind = Kind::kInt8TokenAsym}},
      {"torchao_8da4w_every_step", "int4.group32.bf16", int8_asym},
      {"torchao_8da4w_reference", "int4.group32.bf16", reference(int8_asym)},
      {"torchao_8da4w_zeros_reference", "uint4.group32.bf16.zero_u8", reference(int8_asym)},
      {"torchao_uint8_added", "uint8.group64.f32.offset_f32"},
      {"metal4", "uint4.group64.bf16.offset_bf16"},
      {"metal2_f16", "uint2.group32.f16.offset_f32"},
      {"torchao_float8wo", "e4m3.row.f32"},
      {"torchao_int8da", "int8.row.f32", int8_token},
      {"torchao_int8da_reference", "int8.row.f32", reference(int8_token)},
      {"int8_token_asym", "int8.row.f32", {.kind = Kind::kInt8TokenAsym}},
      {"ct_w8a8", "int8.row.bf16", int8_every_step},
      {"ct_w8a8_reference", "int8.row.bf16", reference(int8_every_step)},
      {"ct_w8a8_static", "int8.row.bf16", int8_tensor},
      {"ct_w8a8_static_reference", "int8.row.bf16", reference(int8_tensor)},
      {"ct_w8a8_groups", "int8.group128.bf16", int8_token},
      {"ct_fp8_dynamic", "e4m3.row.bf16", fp8_token},
      {"ct_fp8_static", "e4m3.row.f32", {.kind = Kind::kFp8Tensor, .scale = 0.013671875f}},
      {"ct_fp8_static_reference", "e4m3.row.bf16", reference(fp8_tensor)},
      {"ct_fp8_reference", "e4m3.row.f32", reference(fp8_token)},
      {"ct_fp8_block", "e4m3.tile128x128.bf16", fp8_group},
      {"fp8_block", "e4m3.tile128x128.f32", fp8_group},
      {"fp8_small_tiles", "e4m3.tile24x40.bf16"},
      {"fp8_block_reference", "e4m3.tile128x128.f32", reference(fp8_group)},
      {"nvfp4", "e2m1.group16.e4m3"},
      {"nf4_int8_token", "nf4.flat64.f32", {.kind = Kind::kInt8Token}},
  };
  std::vector<LinearCase> list;
  for (const auto& c : cases) {
    list.push_back({c.name, QuantFormat::Parse(c.format).value(), c.activation, false, true});
  }
  return list;
}

std::vector<LinearCase> LinearCases() {
  using Scope = ActivationQuant::OutlierScope;
  const auto block4 = QuantFormat::Block4;
  const auto int8 = [](float threshold, Scope scope) {
    return ActivationQuant{ActivationQuant::Kind::kInt8Outlier, threshold, scope};
  };
  std::vector<LinearCase> cases = {
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
  for (LinearCase& c : CheckpointCases()) cases.push_back(std::move(c));
  return cases;
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

/// False where the blocks of a strided format do not divide a segment.
bool Fits(const LinearCase& c, const Shape& shape) {
  if (c.format.block.kind != BlockShape::Kind::kStrided) return true;
  return std::all_of(shape.segments.begin(), shape.segments.end(),
                     [&](int64_t rows) { return rows * shape.k % c.format.block.size == 0; });
}

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
struct LinearProblem {
  std::vector<QuantizedMatrix> matrices;
  std::vector<float> x;           // [kMaxRows, k], exact in the shape's dtype
  std::vector<float> bias;        // [n]
  std::vector<double> magnitude;  // [kMaxRows, n] |bias| + sum of magnitudes of products
};

/// What bounds a weight's part in roundings: see above.
double WeightMagnitude(const QuantizedMatrix& q, int64_t row, int64_t col) {
  if (q.format.zero == ZeroType::kNone) return std::fabs(double{q.Dequantize(row, col)});
  const uint8_t index = q.codes[static_cast<size_t>(row * q.k + col)];
  const bool is_signed = q.format.codec == Codec::kInt8 || q.format.codec == Codec::kInt4;
  const double code = std::fabs(double{internal::ValuesOf(q.format.codec)[index]});
  const double range = is_signed ? 0.0 : std::ldexp(1.0, BitsOf(q.format.codec));
  const double scale = std::fabs(double{q.Scale(row, col)});
  const double zero =
      std::fabs(double{q.zeros[static_cast<size_t>(q.format.block.IndexOf(q.n, q.k, row, col))]});
  return (code + range) * scale + zero * (IsAdded(q.format.zero) ? 1.0 : scale);
}

/// x' [kMaxRows, k]: ref's Linear by the identity.
std::vector<float> Replaced(const ActivationQuant& activation, DType dtype,
                            const std::vector<float>& x, int64_t k) {
  std::vector<float> identity(static_cast<size_t>(k * k));
  for (int64_t i = 0; i < k; ++i) identity[static_cast<size_t>(i * k + i)] = 1.0f;
  const std::vector<QuantizedMatrix> matrix = {
      PlainMatrix(TensorView(DType::kF32, identity.data(), k, k), DType::kF32)};
  const DeviceMatrix input(Ref(), dtype, kMaxRows, k, x);
  const DeviceMatrix output(Ref(), DType::kF32, kMaxRows, k);
  Ref().Linear(*Pack(Ref(), matrix), activation, input, nullptr, output);
  return output.Read();
}

LinearProblem MakeProblem(const LinearCase& c, const Shape& shape) {
  LinearProblem p;
  const int64_t k = shape.k, n = shape.n();
  std::vector<double> weights;  // magnitudes [n, k], columns in the input's order
  for (size_t s = 0; s < shape.segments.size(); ++s) {
    const int64_t rows = shape.segments[s];
    std::vector<float> w =
        RandomFloats(static_cast<size_t>(rows * k),
                     static_cast<uint32_t>(n + k) + 7 * static_cast<uint32_t>(s), 0.05f);
    if (rows > 2) std::fill_n(w.begin() + k, k, 0.0f);  // an output whose scale is zero
    w[0] *= 8.0f;
    p.matrices.push_back(MatrixOf(c.format, w, rows));
    const QuantizedMatrix& q = p.matrices.back();
    const size_t first = weights.size();
    weights.resize(first + static_cast<size_t>(rows * k));
    for (int64_t i = 0; i < rows * k; ++i) {
      const int64_t col = c.format.reordered ? q.columns[static_cast<size_t>(i % k)] : i % k;
      weights[first + static_cast<size_t>(i / k * k + col)] = WeightMagnitude(q, i / k, i % k);
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
  const std::vector<float> used =
      ReplacesInput(c.activation.kind) ? Replaced(c.activation, shape.x, p.x, k) : p.x;
  p.magnitude.resize(static_cast<size_t>(kMaxRows * n));
  for (int64_t r = 0; r < kMaxRows; ++r) {
    for (int64_t o = 0; o < n; ++o) {
      double sum = std::fabs(double{p.bias[static_cast<size_t>(o)]});
      for (int64_t i = 0; i < k; ++i) {
        sum += weights[static_cast<size_t>(o * k + i)] *
               std::fabs(used[static_cast<size_t>(r * k + i)]);
      }
      p.magnitude[static_cast<size_t>(r * n + o)] = sum;
    }
  }
  return p;
}

/// Rows [first, first + m) of the problem on `backend`: y [m, n] as f32.
std::vector<float> RunLinear(Backend& backend, const PackedWeight& w, const LinearCase& c,
                             const Shape& shape, const LinearProblem& p, int64_t first, int64_t m,
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

const LinearProblem& ProblemOf(size_t case_index, size_t shape_index) {
  static std::map<std::pair<size_t, size_t>, LinearProblem> made;
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
    const LinearProblem& p = ProblemOf(case_index, shape_index);
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
  if (c.may_multiply_codes()) relative += HalfUlp(shape.x, 1.0);
  if (IsFp8(c.activation.kind) && b.rounds_to_16_bit) relative += 0x1p-15;
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
    const LinearProblem& p = ProblemOf(case_index_, shape_index);
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
    const std::span<const int64_t> row_counts = case_.of_checkpoints
                                                    ? std::span<const int64_t>(kCheckpointRowCounts)
                                                    : std::span<const int64_t>(kRowCounts);
    if (case_.depends_on_batch() || !under_test().batch_invariant) {
      for (int64_t m : {1, 2, 8, 9, 16, 17, 33, 64}) {
        if (!case_.of_checkpoints || std::ranges::count(row_counts, m) > 0) {
          expect_close(run(0, m), m);
        }
      }
      return;
    }
    // Other numbers of rows, from other first rows: the same bits, so the same distance from ref.
    for (int64_t m : row_counts) {
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
    if (!Fits(case_, Shapes()[s])) continue;
    if (case_.of_checkpoints && Shapes()[s].n() * Shapes()[s].k > kMaxCheckpointWeights) continue;
    ExpectConforms(s);
  }
}

TEST_P(LinearConformance, WorksWithoutBiasAndWithoutRows) {
  constexpr size_t kShape = 4;
  const Shape& shape = Shapes()[kShape];
  const LinearProblem& p = ProblemOf(case_index_, kShape);
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

class ByteCodes : public ::testing::TestWithParam<size_t> {};

TEST_P(ByteCodes, AreMultipliedAsTheyAre) {
  // The identity is x, so that y are the values of all codes, transposed: exact in 16 bits. On the
  // device no tolerance would show a subnormal of e4m3 that is flushed.
  constexpr int64_t kSize = 16;
  Backend& backend = BackendAt(GetParam());
  std::vector<float> identity(kSize * kSize, 0.0f);
  for (size_t i = 0; i < kSize; ++i) identity[i * kSize + i] = 1.0f;
  for (const char* format : {"int8.row.f32", "uint8.row.f32.zero_u8", "e4m3.row.f32"}) {
    QuantizedMatrix m = MatrixOf(*QuantFormat::Parse(format), identity, kSize);
    for (size_t i = 0; i < m.codes.size(); ++i) m.codes[i] = static_cast<uint8_t>(i);
    if (m.format.codec == Codec::kE4M3) m.codes[0x7f] = m.codes[0xff] = 0;  // NaN
    m.scales.assign(m.scales.size(), 1.0f);
    m.zeros.assign(m.zeros.size(), 3.0f);
    const auto weight = Pack(backend, std::span(&m, 1));
    for (const DType dtype : {DType::kBF16, DType::kF16}) {
      const DeviceMatrix x(backend, dtype, kSize, kSize, identity), y(backend, dtype, kSize, kSize);
      backend.Linear(*weight, {}, x, nullptr, y);
      const std::vector<float> values = y.Read();
      for (int64_t i = 0; i < kSize * kSize; ++i) {
        EXPECT_EQ(values[static_cast<size_t>(i % kSize * kSize + i / kSize)],
                  m.Dequantize(i / kSize, i % kSize))
            << format << " code " << i << " " << ToString(dtype);
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Backends, ByteCodes, ::testing::ValuesIn(BackendIndices()),
                         [](const auto& test) { return BackendsUnderTest()[test.param].name; });

INSTANTIATE_TEST_SUITE_P(Backends, LinearConformance,
                         ::testing::Combine(::testing::ValuesIn(BackendIndices()),
                                            ::testing::Range(size_t{0}, LinearCases().size())),
                         [](const auto& test) {
                           return BackendsUnderTest()[std::get<0>(test.param)].name + "_" +
                                  LinearCases()[std::get<1>(test.param)].name;
                         });

}  // namespace
}  // namespace quantd::testing
