// Attention of every backend under test against ref: head sizes, grouped heads, cache types and
// contexts that cross blocks; and the promises that hold to the bit: chunked equals whole, and
// neither the other rows of a step, nor which blocks a sequence owns, nor what lies in unused slots
// matters.
//
// Tolerance. A score errs by 4 * 2^-24 sqrt(d) of its sum of magnitudes and enters an exponential,
// so every weight errs by that share, twice with the normalization; the exponential by 2^-20; the
// weighted sum by 4 * 2^-24 sqrt(context). Tensor cores take the weights in the cache's 16-bit
// type: half an ulp of each, and of their sum. All are shares of the weighted sum of |v|. A soft
// cap moves a score by no more than it moved before, and by 2^-21 of the cap.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>
#include <random>

#include "kernels/quant/kv_codec.h"
#include "tests/kernels/conformance.h"

namespace quantd::testing {
namespace {

struct AttentionCase {
  AttentionSpec spec;
  DType dtype, cache_dtype;
  int32_t block_size;

  std::string Name() const {
    return fmt::format(
        "{} heads, {} kv, head_dim {}, {}, cache {}, blocks of {}, window {}, cap {}",
        spec.num_heads, spec.num_kv_heads, spec.head_dim, ToString(dtype), ToString(cache_dtype),
        block_size, spec.window, spec.softcap);
  }
};

/// K and V of every sequence by position, and one q for every row, all exact in their dtypes;
/// before quantization when the cache is int8.
struct AttentionProblem {
  std::vector<int32_t> contexts;         // tokens of each sequence
  std::vector<std::vector<float>> k, v;  // [context, kv_heads * d] of each sequence
  std::vector<int32_t> seq_of_row, positions;
  std::vector<float> q;  // [rows, heads * d]
};

/// Rows: the first, some middle and the last positions of every sequence.
AttentionProblem MakeProblem(const AttentionCase& c, const std::vector<int32_t>& contexts) {
  AttentionProblem p;
  p.contexts = contexts;
  for (size_t s = 0; s < contexts.size(); ++s) {
    const size_t size = static_cast<size_t>(contexts[s] * c.spec.num_kv_heads * c.spec.head_dim);
    const DType plain = c.cache_dtype == DType::kI8 ? DType::kF32 : c.cache_dtype;
    p.k.push_back(RoundedTo(plain, RandomFloats(size, 10 + static_cast<uint32_t>(s))));
    p.v.push_back(RoundedTo(plain, RandomFloats(size, 20 + static_cast<uint32_t>(s))));
    for (int32_t position = 0; position < contexts[s]; ++position) {
      if (position > 2 && position % 37 != 0 && position < contexts[s] - 3) continue;
      p.seq_of_row.push_back(static_cast<int32_t>(s));
      p.positions.push_back(position);
    }
  }
  p.q = RoundedTo(c.dtype, RandomFloats(p.positions.size() *
                                            static_cast<size_t>(c.spec.num_heads * c.spec.head_dim),
                                        3));
  return p;
}

/// Where a run keeps things, none of which may matter.
struct Placement {
  uint32_t seed = 0;          // of the order in which blocks are owned
  int32_t spare_blocks = 0;   // nobody's
  int32_t spare_entries = 0;  // behind every block table
};

/// The codes of `d` values; returns their scale.
float CodesOf(const float* values, int64_t d, int8_t* codes) {
  uint32_t largest = 0;
  for (int64_t i = 0; i < d; ++i) largest = std::max(largest, KvMagnitude(values[i]));
  const KvScale scale = KvScaleOf(largest);
  for (int64_t i = 0; i < d; ++i) codes[i] = KvCode(values[i], scale);
  return scale.scale;
}

/// `codes`, a multiple of four, as words.
std::vector<int32_t> WordsOf(const std::vector<int8_t>& codes) {
  std::vector<int32_t> words(codes.size() / 4);
  std::memcpy(words.data(), codes.data(), codes.size());
  return words;
}

/// Attention of rows [first, first + count) on `backend`, over a cache that holds the positions up
/// to the last one those rows see, and NaN everywhere else.
std::vector<float> RunAttention(Backend& backend, const AttentionCase& c, const AttentionProblem& p,
                                size_t first, size_t count, const Placement& place, DType dtype) {
  const int64_t d = c.spec.head_dim, kv = c.spec.num_kv_heads;
  const int64_t q_cols = c.spec.num_heads * d;
  int32_t blocks = 1 + place.spare_blocks, longest = 0;
  for (int32_t context : p.contexts) {
    const int32_t needed = (context + c.block_size - 1) / c.block_size;
    blocks += needed;
    longest = std::max(longest, needed);
  }
  const int32_t max_blocks = longest + place.spare_entries;
  std::vector<int32_t> ids(static_cast<size_t>(blocks - 1));
  std::iota(ids.begin(), ids.end(), 1);  // block 0 is reserved
  std::shuffle(ids.begin(), ids.end(), std::mt19937(place.seed));

  const bool int8 = c.cache_dtype == DType::kI8;
  const size_t cache_size = static_cast<size_t>(blocks * kv * c.block_size * d);
  const size_t cache_rows = static_cast<size_t>(blocks * kv * c.block_size);
  std::vector<int8_t> codes[2];
  std::vector<float> scales[2];
  for (int half = 0; half < 2; ++half) {
    codes[half].assign(int8 ? (cache_size + 3) / 4 * 4 : 4, -128);  // no code
    scales[half].assign(int8 ? cache_rows : 1, NAN);
  }
  std::vector<float> k(cache_size, NAN), v(cache_size, NAN);
  std::vector<int32_t> tables(p.contexts.size() * static_cast<size_t>(max_blocks), 0);
  KvLayer cache{c.cache_dtype,       nullptr,        nullptr, blocks, c.block_size,
                c.spec.num_kv_heads, c.spec.head_dim};
  size_t next = 0;
  for (size_t s = 0; s < p.contexts.size(); ++s) {
    int32_t* table = tables.data() + s * static_cast<size_t>(max_blocks);
    for (int32_t b = 0; b * c.block_size < p.contexts[s]; ++b) table[b] = ids[next++];
    int32_t visible = 0;
    for (size_t r = first; r < first + count; ++r) {
      if (p.seq_of_row[r] == static_cast<int32_t>(s))
        visible = std::max(visible, p.positions[r] + 1);
    }
    for (int32_t t = 0; t < visible; ++t) {
      for (int64_t h = 0; h < kv; ++h) {
        const int64_t to = cache.Offset(table[t / c.block_size], h, t % c.block_size);
        const auto from = static_cast<std::ptrdiff_t>((t * kv + h) * d);
        if (int8) {
          const size_t row = static_cast<size_t>(to / d);
          scales[0][row] = CodesOf(&p.k[s][static_cast<size_t>(from)], d, codes[0].data() + to);
          scales[1][row] = CodesOf(&p.v[s][static_cast<size_t>(from)], d, codes[1].data() + to);
          continue;
        }
        std::copy_n(p.k[s].begin() + from, d, k.begin() + to);
        std::copy_n(p.v[s].begin() + from, d, v.begin() + to);
      }
    }
  }
  const DType plain = int8 ? DType::kF32 : c.cache_dtype;
  const DeviceMatrix cache_k(backend, plain, blocks * kv * c.block_size, d, k),
      cache_v(backend, plain, blocks * kv * c.block_size, d, v);
  cache.k = cache_k.view().data;
  cache.v = cache_v.view().data;
  const DeviceArray<int32_t> k_codes(backend, WordsOf(codes[0])),
      v_codes(backend, WordsOf(codes[1]));
  const DeviceArray<float> k_scales(backend, scales[0]), v_scales(backend, scales[1]);
  if (int8) {
    cache.k = k_codes.data();
    cache.v = v_codes.data();
    cache.k_scales = k_scales.data();
    cache.v_scales = v_scales.data();
  }

  const auto part = [&](const std::vector<int32_t>& all) {
    return std::vector<int32_t>(all.begin() + static_cast<std::ptrdiff_t>(first),
                                all.begin() + static_cast<std::ptrdiff_t>(first + count));
  };
  const DeviceArray<int32_t> positions(backend, part(p.positions)),
      seq_of_row(backend, part(p.seq_of_row)), block_tables(backend, tables);
  const DeviceMatrix q(backend, dtype, static_cast<int64_t>(count), q_cols,
                       std::span(p.q).subspan(first * static_cast<size_t>(q_cols),
                                              count * static_cast<size_t>(q_cols)),
                       8);
  const DeviceMatrix out(backend, dtype, static_cast<int64_t>(count), q_cols, 3);
  backend.Attention(q, c.spec,
                    {.positions = positions.span(),
                     .slots = {},
                     .seq_of_row = seq_of_row.span(),
                     .block_tables = block_tables.span(),
                     .num_seqs = static_cast<int32_t>(p.contexts.size()),
                     .max_blocks = max_blocks},
                    cache, out);
  EXPECT_TRUE(backend.Synchronize().ok());
  return out.Read();
}

/// The share of sum p |v| that a correct kernel may err by, times that sum bounded by the largest
/// |v|.
std::vector<double> Tolerance(const AttentionCase& c, const AttentionProblem& p,
                              bool rounds_to_16_bit) {
  const bool same = c.dtype == c.cache_dtype || c.cache_dtype == DType::kI8;
  const DType weights = same && rounds_to_16_bit ? c.dtype : DType::kF32;
  const double rounding = weights == DType::kBF16 ? 0x1p-8 : weights == DType::kF16 ? 0x1p-11 : 0.0;
  const int64_t d = c.spec.head_dim, kv = c.spec.num_kv_heads, group = c.spec.num_heads / kv;
  std::vector<double> tolerance;
  for (size_t r = 0; r < p.positions.size(); ++r) {
    const size_t s = static_cast<size_t>(p.seq_of_row[r]);
    for (int64_t h = 0; h < c.spec.num_heads; ++h) {
      const float* q = p.q.data() + (static_cast<int64_t>(r) * c.spec.num_heads + h) * d;
      double largest_score = 0.0, largest_v = 0.0;
      for (int64_t t = 0; t <= p.positions[r]; ++t) {
        const int64_t from = (t * kv + h / group) * d;
        double magnitude = 0.0;
        for (int64_t i = 0; i < d; ++i) {
          magnitude += std::fabs(double{q[i]} * p.k[s][static_cast<size_t>(from + i)]);
          largest_v = std::max(largest_v, std::fabs(double{p.v[s][static_cast<size_t>(from + i)]}));
        }
        largest_score = std::max(largest_score, magnitude * c.spec.scale);
      }
      const double score = 4 * 0x1p-24 * std::sqrt(static_cast<double>(d)) * largest_score +
                           0x1p-21 * c.spec.softcap;
      const double share =
          2 * score + 0x1p-20 + 4 * 0x1p-24 * std::sqrt(p.positions[r] + 1.0) + rounding;
      tolerance.insert(tolerance.end(), static_cast<size_t>(d), share * largest_v);
    }
  }
  return tolerance;
}

std::vector<AttentionCase> Cases() {
  constexpr DType kF32 = DType::kF32, kF16 = DType::kF16, kBF16 = DType::kBF16, kI8 = DType::kI8;
  const auto spec = [](int32_t heads, int32_t kv, int32_t d) {
    return AttentionSpec{heads, kv, d, 1.0f / std::sqrt(static_cast<float>(d))};
  };
  std::vector<AttentionCase> cases = {
      {spec(4, 4, 32), kF32, kF32, 16},  {spec(4, 2, 64), kBF16, kBF16, 16},
      {spec(8, 2, 64), kF16, kF16, 32},  {spec(8, 1, 80), kBF16, kBF16, 16},
      {spec(4, 1, 128), kF32, kBF16, 8}, {spec(2, 2, 80), kF16, kF32, 16},
      {spec(3, 3, 64), kBF16, kF32, 64}, {spec(4, 2, 128), kBF16, kBF16, 16},
      {spec(4, 2, 64), kBF16, kI8, 16},  {spec(8, 1, 80), kBF16, kI8, 16},
      {spec(4, 1, 128), kF16, kI8, 16},
  };
  for (DType dtype : {kF32, kF16, kBF16}) {
    for (DType cache : {kF32, kF16, kBF16, kI8}) cases.push_back({spec(2, 1, 32), dtype, cache, 4});
  }
  const auto add = [&](AttentionCase c, int32_t window, float softcap) {
    c.spec.window = window;
    c.spec.softcap = softcap;
    cases.push_back(c);
  };
  add({spec(4, 2, 64), kBF16, kBF16, 16}, 33, 0.0f);
  add({spec(8, 1, 80), kBF16, kBF16, 16}, 7, 0.0f);
  add({spec(4, 1, 128), kF32, kBF16, 8}, 100, 0.0f);
  add({spec(2, 1, 32), kF16, kF16, 4}, 1, 0.0f);
  add({spec(2, 2, 32), kF32, kF32, 16}, 32, 0.0f);
  add({spec(4, 2, 64), kBF16, kI8, 16}, 64, 0.7f);
  add({spec(4, 2, 128), kBF16, kBF16, 16}, 40, 1.5f);
  add({spec(2, 2, 32), kF32, kF32, 16}, 0, 0.5f);
  add({spec(3, 1, 96), kF16, kF16, 16}, 0, 2.0f);
  add({spec(2, 1, 80), kF16, kI8, 16}, 1000, 30.0f);
  return cases;
}

class AttentionConformance : public ::testing::TestWithParam<size_t> {
 protected:
  Backend& backend() const { return BackendAt(GetParam()); }
  std::vector<double> ToleranceOf(const AttentionCase& c, const AttentionProblem& p) const {
    return Tolerance(c, p, BackendsUnderTest()[GetParam()].rounds_to_16_bit);
  }
};

TEST_P(AttentionConformance, IsCloseToRefAtEveryHeadShapeAndCacheType) {
  for (const AttentionCase& c : Cases()) {
    const AttentionProblem p = MakeProblem(c, {1, 5, 16, 17, 130, 300});
    const size_t rows = p.positions.size();
    const std::vector<float> actual = RunAttention(backend(), c, p, 0, rows, {}, c.dtype);
    if (Backend* baseline = BaselineOf(GetParam())) {
      ExpectSameBits(actual, RunAttention(*baseline, c, p, 0, rows, {}, c.dtype), c.Name());
    } else {
      ExpectClose(actual, RunAttention(Ref(), c, p, 0, rows, {}, DType::kF32), ToleranceOf(c, p),
                  c.dtype, c.Name());
    }
  }
}

TEST_P(AttentionConformance, DependsOnNothingButTheRowsOwnSequenceUpToItself) {
  for (const AttentionCase& c : Cases()) {
    const AttentionProblem p = MakeProblem(c, {3, 70, 129});
    const size_t rows = p.positions.size();
    const size_t cols = static_cast<size_t>(c.spec.num_heads * c.spec.head_dim);
    const std::vector<float> whole = RunAttention(backend(), c, p, 0, rows, {}, c.dtype);
    const auto expect_part = [&](size_t first, size_t count, const Placement& place,
                                 const char* what) {
      ExpectSameBits(RunAttention(backend(), c, p, first, count, place, c.dtype),
                     std::span(whole).subspan(first * cols, count * cols), c.Name() + ": " + what);
    };
    expect_part(0, rows, {.seed = 5, .spare_blocks = 3, .spare_entries = 7}, "other blocks");
    for (size_t r = 0; r < rows; ++r)
      expect_part(r, 1, {.seed = static_cast<uint32_t>(r)}, "row alone");
    for (size_t chunk : {size_t{2}, size_t{5}}) {
      for (size_t first = 0; first + chunk <= rows; first += chunk)
        expect_part(first, chunk, {}, "chunked");
    }
  }
}

TEST_P(AttentionConformance, EveryContextUpToSeveralBlocks) {
  const AttentionCase c{{2, 1, 32, 0.2f}, DType::kF32, DType::kBF16, 16};
  std::vector<int32_t> contexts;
  for (int32_t context = 1; context <= 100; context += 3) contexts.push_back(context);
  const AttentionProblem p = MakeProblem(c, contexts);
  ExpectClose(RunAttention(backend(), c, p, 0, p.positions.size(), {}, c.dtype),
              RunAttention(Ref(), c, p, 0, p.positions.size(), {}, c.dtype), ToleranceOf(c, p),
              c.dtype, c.Name());
}

// A window as long as the context is none, and keys before a window do not matter: here, infinity.
TEST_P(AttentionConformance, SeesItsWindowAndNothingBefore) {
  AttentionCase c{{4, 2, 64, 0.125f}, DType::kBF16, DType::kBF16, 16};
  AttentionProblem p = MakeProblem(c, {200});
  const size_t rows = p.positions.size();
  const std::vector<float> all = RunAttention(backend(), c, p, 0, rows, {}, c.dtype);
  c.spec.window = 200;
  ExpectSameBits(RunAttention(backend(), c, p, 0, rows, {}, c.dtype), all, "a window of all");
  c.spec.window = 6;
  const std::vector<float> few = RunAttention(backend(), c, p, rows - 1, 1, {}, c.dtype);
  std::fill_n(p.k[0].begin(), 190 * 128, 3e38f);
  ExpectSameBits(RunAttention(backend(), c, p, rows - 1, 1, {}, c.dtype), few, "others before it");
}

TEST_P(AttentionConformance, SurvivesScoresThatDominate) {
  // One key matches its query by far: its weight is 1, all others vanish, nothing overflows.
  const AttentionCase c{{2, 2, 32, 1.0f}, DType::kF32, DType::kF32, 16};
  AttentionProblem p = MakeProblem(c, {40});
  for (size_t i = 0; i < 32; ++i) {
    for (size_t r = 0; r < p.positions.size(); ++r) p.q[r * 64 + i] = 30.0f;
    p.k[0][i] = 30.0f;  // position 0, head 0: a score of 28800
  }
  const std::vector<float> out = RunAttention(backend(), c, p, 0, p.positions.size(), {}, c.dtype);
  for (size_t r = 0; r < p.positions.size(); ++r) {
    for (size_t i = 0; i < 32; ++i) EXPECT_EQ(out[r * 64 + i], p.v[0][i]) << "row " << r;
  }
}

INSTANTIATE_TEST_SUITE_P(Backends, AttentionConformance, ::testing::ValuesIn(BackendIndices()),
                         [](const auto& test) { return BackendsUnderTest()[test.param].name; });

}  // namespace
}  // namespace quantd::testing
