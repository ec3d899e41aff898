// ref's ops that move or combine rows: embedding, gather, gated activation, soft cap, token
// feedback.
#include <cmath>
#include <numbers>

#include "kernels/ref/elements.h"
#include "kernels/ref/ops.h"

namespace quantd::ref {

void Embed(const RefPackedWeight& table, std::span<const int32_t> ids, float scale,
           const TensorView& out) {
  std::vector<float> row(static_cast<size_t>(table.k()));
  for (int64_t r = 0; r < out.rows; ++r) {
    table.DequantizeRow(ids[static_cast<size_t>(r)], row);
    for (int64_t c = 0; c < out.cols; ++c) Store(out, r, c, scale * row[static_cast<size_t>(c)]);
  }
}

void GatedActivation(const TensorView& gate_up, Activation activation, const TensorView& out) {
  for (int64_t r = 0; r < out.rows; ++r) {
    for (int64_t c = 0; c < out.cols; ++c) {
      const double gate = Load(gate_up, r, c);
      double exponent = gate;
      if (activation == Activation::kGeluTanh) {
        exponent = std::sqrt(8.0 / std::numbers::pi) * (gate + 0.044715 * gate * gate * gate);
      }
      const double activated = gate / (1.0 + std::exp(-exponent));
      Store(out, r, c, static_cast<float>(activated * Load(gate_up, r, out.cols + c)));
    }
  }
}

void SoftCap(const TensorView& x, float cap) {
  for (int64_t r = 0; r < x.rows; ++r) {
    for (int64_t c = 0; c < x.cols; ++c) {
      const double value = Load(x, r, c);
      Store(x, r, c, static_cast<float>(cap * std::tanh(value / cap)));
    }
  }
}

void GatherRows(const TensorView& x, std::span<const int32_t> rows, const TensorView& out) {
  for (int64_t r = 0; r < out.rows; ++r) {
    for (int64_t c = 0; c < out.cols; ++c)
      Store(out, r, c, Load(x, rows[static_cast<size_t>(r)], c));
  }
}

void FeedBackTokens(std::span<int32_t> ids, std::span<const int32_t> source,
                    std::span<const int32_t> sampled) {
  for (size_t i = 0; i < ids.size(); ++i) {
    if (source[i] >= 0) ids[i] = sampled[static_cast<size_t>(source[i])];
  }
}

}  // namespace quantd::ref
