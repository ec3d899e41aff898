// Every op but Linear and Attention, of every backend under test, against ref: norms, rope and KV
// store, gated activation, embedding, gather, feedback, sampling; memory and packed bytes.
//
// Tolerance. ref computes in double and is asked for f32; a kernel's f32 arithmetic may differ by a
// few roundings (stated at each op), plus half an ulp of the dtype it stores. Moves are exact.
#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>

#include "tests/kernels/conformance.h"

namespace quantd::testing {
namespace {

constexpr DType kDTypes[] = {DType::kF32, DType::kF16, DType::kBF16};

class OpConformance : public ::testing::TestWithParam<size_t> {
 protected:
  Backend& backend() const { return BackendAt(GetParam()); }
  /// Calls `run` on the backend, and on its baseline if it has one, and expects the same bits.
  template <typename Run>
  std::vector<float> SameAsBaseline(const Run& run, const std::string& what) const {
    std::vector<float> result = run(backend());
    if (Backend* baseline = BaselineOf(GetParam())) ExpectSameBits(result, run(*baseline), what);
    return result;
  }
};

std::vector<double> Scaled(const std::vector<float>& values, double factor) {
  std::vector<double> scaled;
  for (float v : values) scaled.push_back(std::fabs(v) * factor);
  return scaled;
}

TEST_P(OpConformance, RmsNorm) {
  for (DType dtype : kDTypes) {
    for (int64_t cols : {1, 8, 30, 64, 72, 200, 1024, 4100}) {
      const int64_t rows = 7;
      std::vector<float> values = RandomFloats(static_cast<size_t>(rows * cols), 1, 3.0f);
      std::fill_n(values.begin() + cols, cols, 0.0f);  // only eps
      for (int64_t c = 0; c < cols; ++c) values[static_cast<size_t>(2 * cols + c)] *= 1e-3f;
      values = RoundedTo(dtype, values);
      const std::vector<float> weights = RandomFloats(static_cast<size_t>(cols), 2);
      const auto norm = [&](Backend& b, DType t, int64_t first, int64_t count) {
        const DeviceMatrix x(b, t, count, cols,
                             std::span(values).subspan(static_cast<size_t>(first * cols),
                                                       static_cast<size_t>(count * cols)),
                             3);
        const DeviceMatrix out(b, t, count, cols, 3);
        const DeviceArray<float> w(b, weights);
        b.RmsNorm(x, w.data(), 1e-5f, out);
        return out.Read();
      };
      const std::string what = fmt::format("{} {} columns", ToString(dtype), cols);
      const std::vector<float> expected = norm(Ref(), DType::kF32, 0, rows);
      const std::vector<float> actual =
          SameAsBaseline([&](Backend& b) { return norm(b, dtype, 0, rows); }, what);
      // The mean square errs by at most log2(cols) roundings of a tree, or sqrt(cols) of a chain;
      // half of that after the root; then root, division and two products.
      const double relative = (4 + 0.5 * std::sqrt(static_cast<double>(cols))) * 0x1p-24;
      ExpectClose(actual, expected, Scaled(expected, relative), dtype, what);
      for (int64_t r : {0, 1, 5}) {
        ExpectSameBits(
            norm(backend(), dtype, r, 1),
            std::span(actual).subspan(static_cast<size_t>(r * cols), static_cast<size_t>(cols)),
            what + " alone");
      }
    }
  }
}

TEST_P(OpConformance, AddRmsNormRoundsTheResidualAndNormsWhatItStored) {
  for (DType dtype : kDTypes) {
    for (int64_t cols : {8, 72, 1030}) {
      const int64_t rows = 5;
      const size_t size = static_cast<size_t>(rows * cols);
      const std::vector<float> r0 = RandomFloats(size, 1, 2.0f), x0 = RandomFloats(size, 2);
      const DeviceArray<float> weight(backend(), RandomFloats(static_cast<size_t>(cols), 3));
      const DeviceMatrix residual(backend(), dtype, rows, cols, r0, 5),
          x(backend(), dtype, rows, cols, x0);
      const DeviceMatrix out(backend(), dtype, rows, cols, 1), again(backend(), dtype, rows, cols);
      backend().AddRmsNorm(residual, x, weight.data(), 1e-6f, out);
      std::vector<float> sum = RoundedTo(dtype, r0);
      const std::vector<float> added = RoundedTo(dtype, x0);
      for (size_t i = 0; i < size; ++i) sum[i] += added[i];
      ExpectSameBits(residual.Read(), RoundedTo(dtype, sum), "residual");
      backend().RmsNorm(residual, weight.data(), 1e-6f, again);
      ExpectSameBits(out.Read(), again.Read(), "norm of the stored residual");
    }
  }
}

TEST_P(OpConformance, RmsNormMayWriteInPlace) {
  const std::vector<float> values = RandomFloats(3 * 72, 1);
  const DeviceArray<float> weight(backend(), RandomFloats(72, 3));
  const DeviceMatrix x(backend(), DType::kBF16, 3, 72, values), out(backend(), DType::kBF16, 3, 72);
  backend().RmsNorm(x, weight.data(), 1e-6f, out);
  backend().RmsNorm(x, weight.data(), 1e-6f, x);
  ExpectSameBits(x.Read(), out.Read(), "in place");
}

TEST_P(OpConformance, GatedActivation) {
  for (const Activation activation : {Activation::kSilu, Activation::kGeluTanh}) {
    for (DType dtype : kDTypes) {
      for (int64_t n : {1, 8, 33, 200, 512}) {
        std::vector<float> values = RandomFloats(static_cast<size_t>(4 * 2 * n), 8, 4.0f);
        // Where exp overflows or vanishes.
        const float extremes[] = {0.0f, -0.0f, 88.0f, -88.0f, 104.0f, -104.0f, 1000.0f, -1000.0f};
        for (size_t i = 0; i < 8 && i < static_cast<size_t>(n); ++i) values[i] = extremes[i];
        values = RoundedTo(dtype, values);
        const auto gated = [&](Backend& b, DType t) {
          const DeviceMatrix x(b, t, 4, 2 * n, values, 3), out(b, t, 4, n, 5);
          b.GatedActivation(x, activation, out);
          return out.Read();
        };
        const std::string what = fmt::format("activation {}, {} {} columns",
                                             static_cast<int>(activation), ToString(dtype), n);
        const std::vector<float> expected = gated(Ref(), DType::kF32);
        const std::vector<float> actual =
            SameAsBaseline([&](Backend& b) { return gated(b, dtype); }, what);
        // exp by a polynomial to 2^-22; a sum, a division, a product; GELU's exponent errs by four
        // roundings of itself, and matters up to 90. Below -87 the f32 exponential is subnormal or
        // gone: 1000 * e^-87 is what may be lost.
        const bool gelu = activation == Activation::kGeluTanh;
        std::vector<double> tolerance = Scaled(expected, 0x1p-21 + (gelu ? 90 * 4 * 0x1p-24 : 0.0));
        for (double& t : tolerance) t += 1e3 * 0x1p-125;
        ExpectClose(actual, expected, tolerance, dtype, what);
      }
    }
  }
}

TEST_P(OpConformance, SoftCap) {
  for (const float cap : {0.5f, 30.0f}) {
    for (int64_t cols : {1, 8, 33, 1003}) {
      std::vector<float> values = RandomFloats(static_cast<size_t>(3 * cols), 4, 20.0f);
      const float extremes[] = {0.0f, 1e-3f, 1e6f, -1e6f, 3e38f, -3e38f};
      for (size_t i = 0; i < 6 && i < static_cast<size_t>(cols); ++i) values[i] = extremes[i];
      const auto capped = [&](Backend& b) {
        const DeviceMatrix x(b, DType::kF32, 3, cols, values, 3);
        b.SoftCap(x, cap);
        return x.Read();
      };
      const std::string what = fmt::format("cap {}, {} columns", cap, cols);
      const std::vector<float> expected = capped(Ref());
      // tanh to 2^-21, a division and a product.
      ExpectClose(SameAsBaseline(capped, what), expected, Scaled(expected, 0x1p-20), DType::kF32,
                  what);
    }
  }
}

TEST_P(OpConformance, NormHeadsNormsEveryHeadByItself) {
  const AttentionSpec specs[] = {
      {4, 4, 32, 1.0f}, {8, 2, 64, 1.0f}, {6, 3, 80, 1.0f}, {9, 1, 128, 1.0f}, {2, 2, 6, 1.0f}};
  for (const AttentionSpec& spec : specs) {
    const size_t d = static_cast<size_t>(spec.head_dim);
    const std::vector<float> q_weight = RandomFloats(d, 3), k_weight = RandomFloats(d, 4);
    for (DType dtype : kDTypes) {
      std::vector<float> q = RandomFloats(5 * static_cast<size_t>(spec.num_heads) * d, 1, 3.0f),
                         k = RandomFloats(5 * static_cast<size_t>(spec.num_kv_heads) * d, 2);
      std::fill_n(k.begin(), d, 0.0f);  // only eps
      q = RoundedTo(dtype, q);
      k = RoundedTo(dtype, k);
      const auto norm = [&](Backend& b, DType t) {
        const DeviceMatrix qs(b, t, 5, spec.num_heads * spec.head_dim, q, 8),
            ks(b, t, 5, spec.num_kv_heads * spec.head_dim, k, 3);
        const DeviceArray<float> qw(b, q_weight), kw(b, k_weight);
        b.NormHeads(qs, ks, qw.data(), kw.data(), 1e-5f, spec);
        std::vector<float> all = qs.Read();
        const std::vector<float> rest = ks.Read();
        all.insert(all.end(), rest.begin(), rest.end());
        return all;
      };
      const std::string what = fmt::format("head_dim {} {}", d, ToString(dtype));
      const std::vector<float> expected = norm(Ref(), DType::kF32);
      const double relative = (4 + 0.5 * std::sqrt(static_cast<double>(d))) * 0x1p-24;
      ExpectClose(SameAsBaseline([&](Backend& b) { return norm(b, dtype); }, what), expected,
                  Scaled(expected, relative), dtype, what);
    }
  }
}

TEST_P(OpConformance, EmbedReadsRowsOfEverySegmentRoundedOnce) {
  for (DType table_type : kDTypes) {
    for (DType dtype : kDTypes) {
      for (int64_t k : {8, 33, 200}) {
        const float scale = k == 33 ? 8.5f : k == 200 ? 1.1f : 1.0f;
        std::vector<float> a = RandomFloats(static_cast<size_t>(17 * k), 1),
                           b = RandomFloats(static_cast<size_t>(5 * k), 2);
        const std::vector<QuantizedMatrix> segments = {
            MatrixOf(QuantFormat::Plain(table_type), a, 17),
            MatrixOf(QuantFormat::Plain(table_type), b, 5)};
        const auto embed = [&](Backend& on) {
          const auto table = Pack(on, segments);
          const DeviceArray<int32_t> ids(on, {0, 16, 17, 21, 3, 3});
          const DeviceMatrix out(on, dtype, 6, k, 7);
          on.Embed(*table, ids.span(), scale, out);
          return out.Read();
        };
        ExpectSameBits(embed(backend()), embed(Ref()),
                       fmt::format("{} -> {}, k {}", ToString(table_type), ToString(dtype), k));
      }
    }
  }
}

TEST_P(OpConformance, GatherCopiesRows) {
  for (DType dtype : kDTypes) {
    const std::vector<float> values = RandomFloats(9 * 33, 1);
    const auto gather = [&](Backend& b) {
      const DeviceMatrix x(b, dtype, 9, 33, values, 2), out(b, dtype, 5, 33, 1);
      const DeviceArray<int32_t> rows(b, {8, 0, 0, 5, 7});
      b.GatherRows(x, rows.span(), out);
      return out.Read();
    };
    ExpectSameBits(gather(backend()), gather(Ref()), std::string(ToString(dtype)));
  }
}

TEST_P(OpConformance, FeedBackReplacesOnlyRowsWithASource) {
  const DeviceArray<int32_t> ids(backend(), {10, 11, 12, 13}), source(backend(), {-1, 2, -1, 0}),
      sampled(backend(), {100, 101, 102});
  backend().FeedBackTokens(ids.span(), source.span(), sampled.span());
  EXPECT_EQ(ids.Read(), (std::vector<int32_t>{10, 102, 12, 100}));
}

TEST_P(OpConformance, SampleDrawsWhatTheDefinitionDraws) {
  constexpr int64_t kRows = 9, kVocab = 1003;
  const std::vector<float> values = RandomFloats(kRows * kVocab, 5, 3.0f);
  std::vector<SampleParams> params(kRows);
  const std::vector<int32_t> banned = {3, 77};
  const std::vector<uint32_t> mask((kVocab + 31) / 32, 0xa5a5a5a5u);
  std::vector<LogitEdit> edits;
  for (int32_t id = 1; id < kVocab; id += 3) {
    edits.push_back({.token_id = id,
                     .bias = id % 5 == 0 ? 2.0f : 0.0f,
                     .penalty = id % 2 == 0 ? 1.5f : 0.0f,
                     .repeated = id % 4 == 0});
  }
  for (uint32_t r = 0; r < kRows; ++r) {
    params[r] = {
        .temperature = r == 0 ? 0.0f : 0.3f * static_cast<float>(r), .seed = r, .position = 10 * r};
    params[r].top_k = r % 3 == 1 ? 40 : 0;
    params[r].top_p = r % 2 == 1 ? 0.9f : 1.0f;
    params[r].num_logprobs = static_cast<int32_t>(r % 4);
    params[r].banned_ids = banned;
    if (r % 3 == 2) params[r].allowed_mask = mask;
    if (r % 4 >= 2) params[r].edits = edits;
    params[r].repetition_penalty = 1.3f;
    if (r == 7) params[r].forced_id = 500;
  }
  const DeviceMatrix logits(backend(), DType::kF32, kRows, kVocab, values, 5);
  const DeviceArray<int32_t> sampled(backend(), std::vector<int32_t>(kRows, -1));
  std::vector<SampleResult> results(kRows);
  std::vector<TokenLogprob> top(kRows * 3), expected_top(3), scratch(2 * kVocab);
  for (size_t r = 0; r < kRows; ++r) results[r].top = std::span(top).subspan(3 * r, 3);
  backend().Sample(logits, params, sampled.span(), results);
  ASSERT_TRUE(backend().Synchronize().ok());
  EXPECT_EQ(logits.Read(), values) << "edits are undone";
  const std::vector<int32_t> ids = sampled.Read();
  std::vector<float> rows = values;
  for (size_t r = 0; r < kRows; ++r) {
    SampleResult expected;
    expected.top = expected_top;
    SampleRow(std::span(rows).subspan(r * kVocab, kVocab), params[r], scratch, expected);
    EXPECT_EQ(results[r].token_id, expected.token_id) << "row " << r;
    EXPECT_EQ(ids[r], expected.token_id) << "row " << r;
    if (params[r].num_logprobs == 0) continue;
    EXPECT_NEAR(results[r].logprob, expected.logprob, 1e-5f) << "row " << r;
    ASSERT_EQ(results[r].top.size(), expected.top.size());
    for (size_t i = 0; i < expected.top.size(); ++i) {
      EXPECT_EQ(results[r].top[i].token_id, expected.top[i].token_id) << "row " << r;
      EXPECT_NEAR(results[r].top[i].logprob, expected.top[i].logprob, 1e-5f) << "row " << r;
    }
  }
}

// ---- rope
// ------------------------------------------------------------------------------------------

struct RopeResult {
  std::vector<float> q, k, v;  // k, v: the whole cache
};

RopeResult RunRope(Backend& b, DType dtype, DType cache_dtype, const AttentionSpec& spec,
                   const std::vector<float>& q0, const std::vector<float>& k0,
                   const std::vector<float>& v0, const std::vector<float>& table) {
  constexpr int32_t kBlocks = 4, kBlockSize = 8;
  const int64_t d = spec.head_dim, rows = 5;
  const DeviceMatrix q(b, dtype, rows, spec.num_heads * d, q0, 8),
      k(b, dtype, rows, spec.num_kv_heads * d, k0, 2), v(b, dtype, rows, spec.num_kv_heads * d, v0);
  const DeviceMatrix cache_k(b, cache_dtype, kBlocks * spec.num_kv_heads * kBlockSize, d),
      cache_v(b, cache_dtype, kBlocks * spec.num_kv_heads * kBlockSize, d);
  const KvLayer cache{cache_dtype, cache_k.view().data, cache_v.view().data, kBlocks,
                      kBlockSize,  spec.num_kv_heads,   spec.head_dim};
  const DeviceArray<float> cos_sin(b, table);
  const DeviceArray<int32_t> positions(b, {0, 1, 9, 30, 2}), slots(b, {8, 9, 31, 16, 23});
  b.RopeAndStoreKv(
      q, k, v, cos_sin.data(), spec,
      {.positions = positions.span(), .slots = slots.span(), .seq_of_row = {}, .block_tables = {}},
      cache);
  return {q.Read(), cache_k.Read(), cache_v.Read()};
}

// Heads rotated as a whole and in part.
constexpr AttentionSpec kRopeSpecs[] = {
    {4, 4, 32, 1.0f},
    {8, 2, 64, 1.0f},
    {6, 3, 80, 1.0f},
    {2, 1, 128, 1.0f},
    {2, 2, 6, 1.0f},
    {.num_heads = 4, .num_kv_heads = 2, .head_dim = 64, .rotary_dim = 48},
    {.num_heads = 3, .num_kv_heads = 1, .head_dim = 96, .rotary_dim = 10},
    {.num_heads = 2, .num_kv_heads = 2, .head_dim = 6, .rotary_dim = 2}};

TEST_P(OpConformance, RopeRotatesAndStoresInEveryCacheType) {
  for (const AttentionSpec& spec : kRopeSpecs) {
    const int64_t d = spec.head_dim, rotated = spec.rotated(), half = rotated / 2;
    std::vector<float> table(static_cast<size_t>(32 * rotated));
    for (int64_t p = 0; p < 32; ++p) {
      for (int64_t i = 0; i < half; ++i) {
        const double angle = static_cast<double>(p) *
                             std::pow(1e4, -2.0 * static_cast<double>(i) / static_cast<double>(d));
        table[static_cast<size_t>(p * rotated + i)] = static_cast<float>(std::cos(angle));
        table[static_cast<size_t>(p * rotated + half + i)] = static_cast<float>(std::sin(angle));
      }
    }
    for (DType dtype : kDTypes) {
      const std::vector<float>
          q = RoundedTo(dtype, RandomFloats(static_cast<size_t>(5 * spec.num_heads * d), 1)),
          k = RoundedTo(dtype, RandomFloats(static_cast<size_t>(5 * spec.num_kv_heads * d), 2)),
          v = RoundedTo(dtype, RandomFloats(static_cast<size_t>(5 * spec.num_kv_heads * d), 3));
      for (DType cache_dtype : kDTypes) {
        const std::string what = fmt::format("head_dim {}, {} rotated, {} cache {}", d, rotated,
                                             ToString(dtype), ToString(cache_dtype));
        const RopeResult expected = RunRope(Ref(), DType::kF32, DType::kF32, spec, q, k, v, table);
        const RopeResult actual = RunRope(backend(), dtype, cache_dtype, spec, q, k, v, table);
        // Two products and a sum of numbers below 5: three roundings.
        const auto close = [&](std::vector<float> a, std::vector<float> e, DType t,
                               const std::string& part) {
          for (size_t i = 0; i < e.size(); ++i) {  // untouched slots keep their canary NaNs
            ASSERT_EQ(std::isnan(a[i]), std::isnan(e[i])) << what << part << " element " << i;
            if (std::isnan(e[i])) a[i] = e[i] = 0.0f;
          }
          ExpectClose(a, e, std::vector<double>(e.size(), 3 * 5 * 0x1p-24), t, what + part);
        };
        close(actual.q, expected.q, dtype, " q");
        close(actual.k, expected.k, cache_dtype, " k");
        std::vector<float> stored = RoundedTo(cache_dtype, expected.v);
        for (size_t i = 0; i < stored.size(); ++i) {
          if (std::isnan(stored[i])) stored[i] = actual.v[i];
        }
        ExpectSameBits(actual.v, stored, what + " v");
        if (Backend* baseline = BaselineOf(GetParam())) {
          const RopeResult same = RunRope(*baseline, dtype, cache_dtype, spec, q, k, v, table);
          ExpectSameBits(actual.q, same.q, what);
          ExpectSameBits(actual.k, same.k, what);
        }
      }
    }
  }
}

struct Int8Rope {
  std::vector<int32_t> k_codes, v_codes;
  std::vector<uint32_t> k_scales, v_scales;  // bits

  bool operator==(const Int8Rope&) const = default;
};

Int8Rope RunInt8Rope(Backend& b, DType dtype, const AttentionSpec& spec,
                     const std::vector<float>& k0, const std::vector<float>& v0,
                     const std::vector<float>& table) {
  constexpr int32_t kBlocks = 3, kBlockSize = 4, kSlots = kBlocks * kBlockSize;
  const int64_t d = spec.head_dim, rows = 5;
  const size_t heads = static_cast<size_t>(kSlots * spec.num_kv_heads);
  const DeviceMatrix q(b, dtype, rows, spec.num_heads * d,
                       std::vector<float>(static_cast<size_t>(rows * spec.num_heads * d), 1.0f)),
      k(b, dtype, rows, spec.num_kv_heads * d, k0, 2),
      v(b, dtype, rows, spec.num_kv_heads * d, v0, 6);
  const std::vector<int32_t> words(heads * static_cast<size_t>(d) / 4 + 1, 0x7a7a7a7a);
  const DeviceArray<int32_t> k_codes(b, words), v_codes(b, words);
  const DeviceArray<float> k_scales(b, std::vector<float>(heads, -1.0f)),
      v_scales(b, std::vector<float>(heads, -1.0f)), cos_sin(b, table);
  const KvLayer cache{DType::kI8,    k_codes.data(),  v_codes.data(),
                      kBlocks,       kBlockSize,      spec.num_kv_heads,
                      spec.head_dim, k_scales.data(), v_scales.data()};
  const DeviceArray<int32_t> positions(b, {0, 1, 9, 30, 2}), slots(b, {4, 5, 11, 7, 9});
  b.RopeAndStoreKv(
      q, k, v, cos_sin.data(), spec,
      {.positions = positions.span(), .slots = slots.span(), .seq_of_row = {}, .block_tables = {}},
      cache);
  EXPECT_TRUE(b.Synchronize().ok());
  const auto bits = [](const std::vector<float>& values) {
    std::vector<uint32_t> result;
    for (const float x : values) result.push_back(std::bit_cast<uint32_t>(x));
    return result;
  };
  return {k_codes.Read(), v_codes.Read(), bits(k_scales.Read()), bits(v_scales.Read())};
}

TEST_P(OpConformance, RopeStoresTheSameBytesAsRefInAnInt8Cache) {
  for (const AttentionSpec& spec : kRopeSpecs) {
    const size_t d = static_cast<size_t>(spec.head_dim),
                 kv = static_cast<size_t>(spec.num_kv_heads);
    std::vector<float> table = RandomFloats(32 * d, 9);  // as much as any rotated size takes
    for (float& x : table) x = std::sin(x);
    for (DType dtype : kDTypes) {
      std::vector<float> k = RoundedTo(dtype, RandomFloats(5 * kv * d, 2, 3.0f)),
                         v = RoundedTo(dtype, RandomFloats(5 * kv * d, 3, 0.1f));
      // Rows of slots 5, 11, 7, 9: zeros, NaN at the end, infinity, and numbers without reciprocal.
      std::fill_n(v.begin() + static_cast<std::ptrdiff_t>(kv * d), d, 0.0f);
      v[3 * kv * d - 1] = NAN;
      v[3 * kv * d] = -INFINITY;
      k[3 * kv * d] = NAN;
      for (size_t i = 4 * kv * d; i < v.size(); ++i) v[i] *= 0x1p-126f;
      v = RoundedTo(dtype, v);
      const Int8Rope expected = RunInt8Rope(Ref(), dtype, spec, k, v, table);
      const Int8Rope actual = RunInt8Rope(backend(), dtype, spec, k, v, table);
      EXPECT_TRUE(actual == expected) << "head_dim " << d << " " << ToString(dtype);
      // Of one head, slot by slot in block 1 and 2: scales -1 where nothing was stored.
      const auto scale = [&](size_t slot) {
        return std::bit_cast<float>(expected.v_scales[slot / 4 * kv * 4 + slot % 4]);
      };
      EXPECT_EQ(scale(5), 0.0f);
      EXPECT_EQ(scale(6), -1.0f);
      EXPECT_TRUE(std::isnan(scale(7)));
      EXPECT_EQ(scale(9), 0.0f);
      float largest = 0.0f;
      for (size_t i = 0; i < d; ++i) largest = std::max(largest, std::fabs(v[i]));
      EXPECT_EQ(scale(4), largest / 127.0f);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Backends, OpConformance, ::testing::ValuesIn(BackendIndices()),
                         [](const auto& test) { return BackendsUnderTest()[test.param].name; });

}  // namespace
}  // namespace quantd::testing
