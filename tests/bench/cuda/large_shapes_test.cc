// Ops at the sizes of a 7B model, which the emulated device is too slow for: many blocks in every
// direction, k split over blocks, cuBLASLt's own kernels, contexts of thousands of tokens. Compared
// with ref on a sample of outputs.
//
// Tolerance. Errors of independent roundings are random: of y they are at most 2^-8 (two roundings
// of each product to bf16), whatever k. What a kernel leaves out or adds twice, one tile of 64
// columns of 14336, is 7% of y. So the rms of differences may be 1% of y's rms, and no single one
// more than eight times that. LLM.int8's sums are exact, but ref's outliers are in f32.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "kernels/quant/quantize.h"
#include "tests/kernels/conformance.h"
#include "tests/kernels/quant/matrix_of.h"

namespace quantd::testing {
namespace {

constexpr double kRmsShare = 0.01;
constexpr int64_t kSampledRows = 48;  // of a weight: 16 at either end, 16 in the middle
constexpr int64_t kRowCounts[] = {1, 3, 8, 15, 16, 17, 33, 64, 65, 130, 515};
constexpr int64_t kMaxRows = 515;

struct LinearCase {
  const char* name;
  const char* format;
  int64_t n, k;
  ActivationQuant activation = {};
};

const std::vector<LinearCase>& LinearCases() {
  using Kind = ActivationQuant::Kind;
  static const std::vector<LinearCase> cases = {
      {"nf4_nested", "nf4.flat64.nested", 6144, 4096},
      {"nf4_nested_long", "nf4.flat64.nested", 4096, 14336},
      {"nf4_wide", "nf4.flat64.f32", 28672, 4096},
      {"fp4_ragged", "fp4.flat64.f32", 1000, 2240},
      {"bf16", "bf16", 6144, 4096},
      {"bf16_long", "bf16", 4096, 14336},
      {"llm_int8", "int8.row.absmax", 6144, 4096, {.kind = Kind::kInt8Outlier, .threshold = 6.0f}},
      {"llm_int8_long",
       "int8.row.absmax",
       4096,
       14336,
       {.kind = Kind::kInt8Outlier, .threshold = 6.0f}},
      {"llm_int8_ragged",
       "int8.row.absmax",
       1003,
       2244,
       {.kind = Kind::kInt8Outlier, .threshold = 6.0f}},
      {"int8_token", "int8.row.f32", 6144, 4096, {.kind = Kind::kInt8Token}},
      {"gptq4", "int4.group128.f16", 6144, 4096},
      {"gptq4_desc_act", "uint4.group128.f16.zero_u8.reordered", 4096, 4096},
      {"awq4", "uint4.group128.f16.zero_u8", 4096, 14336},
      {"hqq4", "uint4.flat64.bf16.zero_bf16", 6144, 4096},
      {"torchao_int4", "int4.group64.bf16.offset_bf16", 6144, 4096},
      {"gptq8", "int8.group128.bf16", 4096, 4096},
      {"gptq8_asym_long", "uint8.group128.f16.zero_u8", 4096, 14336},
      {"torchao_uint8", "uint8.group64.bf16.offset_bf16", 6144, 4096},
      {"fp8_token", "e4m3.row.f32", 6144, 4096, {.kind = Kind::kFp8Token}},
      {"fp8_token_long", "e4m3.row.f32", 4096, 14336, {.kind = Kind::kFp8Token}},
      {"fp8_block", "e4m3.tile128x128.f32", 4096, 4096, {.kind = Kind::kFp8Group, .group = 128}},
      {"nvfp4", "e2m1.group16.e4m3", 4096, 4096},
  };
  return cases;
}

std::vector<int64_t> SampledRows(int64_t n) {
  std::vector<int64_t> rows;
  for (const int64_t first : {int64_t{0}, n / 2 - 5, n - kSampledRows / 3}) {
    for (int64_t i = 0; i < kSampledRows / 3; ++i) rows.push_back(first + i);
  }
  return rows;
}

/// Those rows of `q` as a matrix of their own: codes where each row has its scale, else values.
QuantizedMatrix RowsOf(const QuantizedMatrix& q, const std::vector<int64_t>& rows) {
  const auto n = static_cast<int64_t>(rows.size());
  if (q.format.block.kind == BlockShape::Kind::kRow && !IsPlain(q.format.codec)) {
    QuantizedMatrix out;
    out.format = q.format;
    out.n = n;
    out.k = q.k;
    for (const int64_t row : rows) {
      const auto first = q.codes.begin() + row * q.k;
      out.codes.insert(out.codes.end(), first, first + q.k);
      out.scales.push_back(q.scales[static_cast<size_t>(row)]);
    }
    return out;
  }
  std::vector<float> values(static_cast<size_t>(n * q.k));
  for (int64_t r = 0; r < n; ++r) {
    for (int64_t c = 0; c < q.k; ++c) {
      const int64_t input = q.format.reordered ? q.columns[static_cast<size_t>(c)] : c;
      values[static_cast<size_t>(r * q.k + input)] = q.Dequantize(rows[static_cast<size_t>(r)], c);
    }
  }
  return PlainMatrix(TensorView(DType::kF32, values.data(), n, q.k), DType::kF32);
}

/// `actual` against `expected`, both [rows, cols].
void ExpectSameButForRounding(std::span<const float> actual, std::span<const float> expected,
                              int64_t cols, const std::string& what) {
  double square = 0.0, difference = 0.0, worst = 0.0;
  size_t worst_at = 0;
  for (size_t i = 0; i < actual.size(); ++i) {
    ASSERT_TRUE(std::isfinite(actual[i])) << what << ": " << actual[i] << " at " << i;
    const double d = double{actual[i]} - double{expected[i]};
    square += double{expected[i]} * double{expected[i]};
    difference += d * d;
    if (std::fabs(d) > worst) worst = std::fabs(d), worst_at = i;
  }
  const double count = static_cast<double>(actual.size());
  const double rms = std::sqrt(square / count);
  EXPECT_LE(std::sqrt(difference / count), kRmsShare * rms) << what;
  EXPECT_LE(worst, 8 * kRmsShare * rms)
      << what << ": row " << static_cast<int64_t>(worst_at) / cols << ", sampled column "
      << static_cast<int64_t>(worst_at) % cols << ": " << actual[worst_at] << ", ref "
      << expected[worst_at];
}

class LargeLinear : public ::testing::TestWithParam<std::tuple<size_t, size_t>> {};

TEST_P(LargeLinear, IsCloseToRef) {
  Backend& backend = BackendAt(std::get<0>(GetParam()));
  const LinearCase& c = LinearCases()[std::get<1>(GetParam())];
  const QuantFormat format = QuantFormat::Parse(c.format).value();
  const bool outliers = c.activation.kind == ActivationQuant::Kind::kInt8Outlier;
  std::vector<float> values = RandomFloats(static_cast<size_t>(c.n * c.k), 1, 0.02f);
  const std::vector<QuantizedMatrix> matrix = {MatrixOf(format, values, c.n)};
  std::vector<float> x = RandomFloats(static_cast<size_t>(kMaxRows * c.k), 2);
  for (size_t i = 0; outliers && i < x.size(); ++i) {  // two columns of all rows, and strays
    const int64_t col = static_cast<int64_t>(i) % c.k;
    if (col == 77 || col == c.k - 1 || i % 5003 == 0) x[i] *= 20.0f;
  }
  x = RoundedTo(DType::kBF16, std::move(x));
  const std::vector<float> bias = RandomFloats(static_cast<size_t>(c.n), 3);
  const std::vector<int64_t> rows = SampledRows(c.n);
  std::vector<float> sampled_bias;
  for (const int64_t row : rows) sampled_bias.push_back(bias[static_cast<size_t>(row)]);

  const std::vector<QuantizedMatrix> sample = {RowsOf(matrix[0], rows)};
  const auto expected = [&] {
    const DeviceMatrix input(Ref(), DType::kBF16, kMaxRows, c.k, x);
    const DeviceMatrix output(Ref(), DType::kF32, kMaxRows, kSampledRows);
    Ref().Linear(*Pack(Ref(), sample), c.activation, input, sampled_bias.data(), output);
    return output.Read();
  }();
  const auto weight = Pack(backend, matrix);
  const DeviceMatrix input(backend, DType::kBF16, kMaxRows, c.k, x);
  const DeviceArray<float> device_bias(backend, bias);
  for (const int64_t m : kRowCounts) {
    const DeviceMatrix output(backend, DType::kBF16, m, c.n);
    backend.Linear(*weight, c.activation, input.view().Rows(0, m), device_bias.data(), output);
    ASSERT_TRUE(backend.Synchronize().ok());
    const std::vector<float> y = output.Read();
    std::vector<float> actual;
    for (int64_t r = 0; r < m; ++r) {
      for (const int64_t row : rows) actual.push_back(y[static_cast<size_t>(r * c.n + row)]);
    }
    ExpectSameButForRounding(actual,
                             std::span(expected).first(static_cast<size_t>(m * kSampledRows)),
                             kSampledRows, fmt::format("{} rows", m));
  }
}

INSTANTIATE_TEST_SUITE_P(Backends, LargeLinear,
                         ::testing::Combine(::testing::ValuesIn(BackendIndices()),
                                            ::testing::Range(size_t{0}, LinearCases().size())),
                         [](const auto& test) {
                           return BackendsUnderTest()[std::get<0>(test.param)].name + "_" +
                                  LinearCases()[std::get<1>(test.param)].name;
                         });

class LargeAttention : public ::testing::TestWithParam<size_t> {};

struct Sequences {
  std::vector<int32_t> contexts;  // tokens in the cache, the new ones among them
  int32_t rows = 0;               // new tokens of each
};

/// Attention over sequences whose blocks interleave; the rows `sampled` of the result alone when
/// it is not empty.
std::vector<float> RunAttention(Backend& backend, const AttentionSpec& spec, const Sequences& s,
                                const std::vector<size_t>& sampled) {
  constexpr int32_t kBlock = 16;
  const auto num_seqs = static_cast<int32_t>(s.contexts.size());
  const int32_t longest = *std::max_element(s.contexts.begin(), s.contexts.end());
  const int32_t max_blocks = (longest + kBlock - 1) / kBlock;
  std::vector<int32_t> tables(static_cast<size_t>(num_seqs * max_blocks)), positions, seq_of_row;
  for (int32_t i = 0; i < num_seqs * max_blocks; ++i) {
    tables[static_cast<size_t>(i)] = 1 + i % max_blocks * num_seqs + i / max_blocks;
  }
  for (int32_t i = 0; i < num_seqs; ++i) {
    const int32_t context = s.contexts[static_cast<size_t>(i)];
    for (int32_t p = context - s.rows; p < context; ++p) {
      positions.push_back(p);
      seq_of_row.push_back(i);
    }
  }
  const int64_t cols = spec.num_heads * spec.head_dim;
  std::vector<float> q =
      RoundedTo(DType::kBF16, RandomFloats(positions.size() * static_cast<size_t>(cols), 5, 2.0f));
  if (!sampled.empty()) {
    std::vector<float> some;
    std::vector<int32_t> p, r;
    for (const size_t i : sampled) {
      const auto first = q.begin() + static_cast<int64_t>(i) * cols;
      some.insert(some.end(), first, first + cols);
      p.push_back(positions[i]);
      r.push_back(seq_of_row[i]);
    }
    q = std::move(some), positions = std::move(p), seq_of_row = std::move(r);
  }
  const int32_t num_blocks = num_seqs * max_blocks + 1;
  const int64_t cache_rows = int64_t{num_blocks} * spec.num_kv_heads * kBlock;
  const auto cache_values = [&](uint32_t seed) {
    return RandomFloats(static_cast<size_t>(cache_rows * spec.head_dim), seed);
  };
  const DeviceMatrix k(backend, DType::kBF16, cache_rows, spec.head_dim, cache_values(6));
  const DeviceMatrix v(backend, DType::kBF16, cache_rows, spec.head_dim, cache_values(7));
  const DeviceArray<int32_t> device_positions(backend, positions), rows(backend, seq_of_row),
      device_tables(backend, tables);
  const auto m = static_cast<int64_t>(positions.size());
  const DeviceMatrix input(backend, DType::kBF16, m, cols, q), out(backend, DType::kBF16, m, cols);
  const KvLayer cache = {DType::kBF16, k.view().data,     v.view().data, num_blocks,
                         kBlock,       spec.num_kv_heads, spec.head_dim};
  backend.Attention(input, spec,
                    {.positions = device_positions.span(),
                     .slots = {},
                     .seq_of_row = rows.span(),
                     .block_tables = device_tables.span(),
                     .num_seqs = num_seqs,
                     .max_blocks = max_blocks},
                    cache, out);
  EXPECT_TRUE(backend.Synchronize().ok());
  return out.Read();
}

TEST_P(LargeAttention, IsCloseToRef) {
  Backend& backend = BackendAt(GetParam());
  const AttentionSpec spec = {32, 8, 128, 1.0f / std::sqrt(128.0f)};
  const int64_t cols = 32 * 128;
  const Sequences cases[] = {
      {{7000}, 1},                    // few rows: the context is split over blocks
      {{1, 33, 513, 4097, 2048}, 1},  // ragged contexts
      {std::vector<int32_t>(64, 700), 1},
      {{300}, 300},        // a prompt
      {{1900, 700}, 600},  // chunks of prompts
  };
  for (const Sequences& s : cases) {
    const std::vector<float> all = RunAttention(backend, spec, s, {});
    const size_t m = s.contexts.size() * static_cast<size_t>(s.rows);
    std::vector<size_t> sampled;
    for (size_t i = 0; i < m; i += std::max<size_t>(1, m / 6)) sampled.push_back(i);
    sampled.push_back(m - 1);
    std::vector<float> actual;
    for (const size_t i : sampled) {
      const auto first = all.begin() + static_cast<int64_t>(i) * cols;
      actual.insert(actual.end(), first, first + cols);
    }
    ExpectSameButForRounding(
        actual, RunAttention(Ref(), spec, s, sampled), cols,
        fmt::format("{} sequences of {}, {} rows each", s.contexts.size(), s.contexts[0], s.rows));
  }
}

INSTANTIATE_TEST_SUITE_P(Backends, LargeAttention, ::testing::ValuesIn(BackendIndices()),
                         [](const auto& test) { return BackendsUnderTest()[test.param].name; });

}  // namespace
}  // namespace quantd::testing
