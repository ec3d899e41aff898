// ref's RMS norms (Zhang and Sennrich, 2019): mean square in double, one rounding on store.
#include <cmath>

#include "kernels/ref/elements.h"
#include "kernels/ref/ops.h"

namespace quantd::ref {

void RmsNorm(const TensorView& x, const float* weight, float eps, const TensorView& out) {
  for (int64_t r = 0; r < x.rows; ++r) {
    double sum = 0.0;
    for (int64_t c = 0; c < x.cols; ++c) {
      const double v = Load(x, r, c);
      sum += v * v;
    }
    const double inverse = 1.0 / std::sqrt(sum / static_cast<double>(x.cols) + eps);
    for (int64_t c = 0; c < x.cols; ++c) {
      Store(out, r, c, static_cast<float>(Load(x, r, c) * inverse * weight[c]));
    }
  }
}

void AddRmsNorm(const TensorView& residual, const TensorView& x, const float* weight, float eps,
                const TensorView& out) {
  for (int64_t r = 0; r < x.rows; ++r) {
    for (int64_t c = 0; c < x.cols; ++c) {
      Store(residual, r, c, Load(residual, r, c) + Load(x, r, c));
    }
  }
  RmsNorm(residual, weight, eps, out);  // of the rounded sum: what later layers will see
}

void NormHeads(const TensorView& q, const TensorView& k, const float* q_weight,
               const float* k_weight, float eps, const AttentionSpec& spec) {
  for (int64_t h = 0; h < spec.num_heads; ++h) {
    const TensorView head = q.Cols(h * spec.head_dim, spec.head_dim);
    RmsNorm(head, q_weight, eps, head);
  }
  for (int64_t h = 0; h < spec.num_kv_heads; ++h) {
    const TensorView head = k.Cols(h * spec.head_dim, spec.head_dim);
    RmsNorm(head, k_weight, eps, head);
  }
}

}  // namespace quantd::ref
