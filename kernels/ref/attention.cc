// ref's causal attention over the paged cache: all scores of a row, softmax, weighted sum of V.
// Sums in double, one rounding on store; K and V are read back through the cache's format.
#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/ref/elements.h"
#include "kernels/ref/ops.h"

namespace quantd::ref {

void Attention(const TensorView& q, const AttentionSpec& spec, const AttentionBatch& batch,
               const KvLayer& cache, const TensorView& out) {
  const int64_t d = spec.head_dim;
  const int64_t heads_per_kv = spec.num_heads / spec.num_kv_heads;
  std::vector<double> weights, sum(static_cast<size_t>(d));
  for (int64_t r = 0; r < q.rows; ++r) {
    const size_t row = static_cast<size_t>(r);
    const int64_t context = batch.positions[row] + 1;
    const int64_t first = spec.window > 0 ? std::max<int64_t>(0, context - spec.window) : 0;
    const std::span<const int32_t> table = batch.block_tables.subspan(
        static_cast<size_t>(batch.seq_of_row[row]) * static_cast<size_t>(batch.max_blocks),
        static_cast<size_t>(batch.max_blocks));
    for (int64_t h = 0; h < spec.num_heads; ++h) {
      const auto cache_row = [&](int64_t t) {
        const int32_t block = table[static_cast<size_t>(t / cache.block_size)];
        QUANTD_CHECK(block >= 0 && block < cache.num_blocks, "block {} of {} at position {}", block,
                     cache.num_blocks, t);
        return cache.Row(block, h / heads_per_kv, t % cache.block_size);
      };

      weights.assign(static_cast<size_t>(context), 0.0);
      double largest = -std::numeric_limits<double>::infinity();
      for (int64_t t = first; t < context; ++t) {
        const int64_t from = cache_row(t);
        double dot = 0.0;
        for (int64_t i = 0; i < d; ++i) {
          dot += static_cast<double>(Load(q, r, h * d + i)) *
                 LoadCached(cache.dtype, cache.k, cache.k_scales, from, d, i);
        }
        double score = dot * spec.scale;
        if (spec.softcap > 0.0f) score = spec.softcap * std::tanh(score / spec.softcap);
        weights[static_cast<size_t>(t)] = score;
        largest = std::max(largest, score);
      }

      double total = 0.0;
      std::fill(sum.begin(), sum.end(), 0.0);
      for (int64_t t = first; t < context; ++t) {
        const double weight = std::exp(weights[static_cast<size_t>(t)] - largest);
        const int64_t from = cache_row(t);
        total += weight;
        for (int64_t i = 0; i < d; ++i) {
          sum[static_cast<size_t>(i)] +=
              weight * LoadCached(cache.dtype, cache.v, cache.v_scales, from, d, i);
        }
      }
      for (int64_t i = 0; i < d; ++i) {
        Store(out, r, h * d + i, static_cast<float>(sum[static_cast<size_t>(i)] / total));
      }
    }
  }
}

}  // namespace quantd::ref
