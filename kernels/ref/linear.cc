// ref's Linear: sums over k in double, rounded once to y's dtype. One path for all weight formats
// and activation quantizations (replace x, dequantize a row, dot it with every x), one for
// LLM.int8, one for the integer products that torchao rounds twice.
#include <algorithm>
#include <cmath>

#include "kernels/quant/rounding.h"
#include "kernels/ref/elements.h"
#include "kernels/ref/ops.h"

namespace quantd::ref {
namespace {

/// Of the elements that share a scale. std::max and min drop a NaN; it then shows as a NaN code.
template <typename Round>
ActivationScale ScaleOf(const ActivationQuant& q, std::span<const float> group,
                        const Round& round) {
  float low = 0.0f, high = 0.0f;
  const bool symmetric = q.kind != ActivationQuant::Kind::kInt8TokenAsym;
  for (const float v : group) {
    high = std::max(high, symmetric ? std::fabs(v) : v);
    low = std::min(low, v);
  }
  return ActivationScaleOf(q, low, high, round);
}

/// x [m, k] becomes what its codes stand for.
void ReplaceInput(const ActivationQuant& q, DType dtype, int64_t k, std::vector<float>& xs) {
  const size_t columns = static_cast<size_t>(k);
  const size_t size =
      q.kind == ActivationQuant::Kind::kFp8Group ? static_cast<size_t>(q.group) : columns;
  WithRounding(dtype, [&](const auto& round) {
    for (size_t row = 0; row < xs.size(); row += columns) {
      for (size_t first = 0; first < columns; first += size) {
        const std::span<float> group(xs.data() + row + first, std::min(size, columns - first));
        const ActivationScale scale = ScaleOf(q, group, round);
        for (float& v : group) {
          v = round(ActivationValue(scale, ActivationCode(q, scale, v, round)));
        }
      }
    }
  });
}

/// True for what torchao computes as a product of integers, whose scales it applies one by one.
bool IsIntegerProduct(const QuantFormat& w, const ActivationQuant& q) {
  return q.reference && q.kind == ActivationQuant::Kind::kInt8Token &&
         q.rounding == ActivationQuant::Rounding::kScale && w.codec == Codec::kInt8 &&
         w.block.kind == BlockShape::Kind::kRow && w.scale == ScaleType::kF32 &&
         w.zero == ZeroType::kNone;
}

/// y = round(sum of codes * s_x) * s_w + bias, rounded again: torchao's Int8Tensor with
/// act_quant_kwargs. The sums of codes are exact.
void IntegerProduct(const RefPackedWeight& w, const ActivationQuant& activation,
                    const TensorView& x, const float* bias, const TensorView& y) {
  const size_t k = static_cast<size_t>(w.k());
  std::vector<float> codes = ToFloats(x);  // [m, k]
  std::vector<float> scales;               // [m]
  WithRounding(x.dtype, [&](const auto& round) {
    for (size_t row = 0; row < codes.size(); row += k) {
      const std::span<float> xr(codes.data() + row, k);
      const ActivationScale scale = ScaleOf(activation, xr, round);
      for (float& v : xr) v = ActivationCode(activation, scale, v, round);
      scales.push_back(scale.scale);
    }
  });
  for (int64_t n = 0; n < w.n(); ++n) {
    const std::span<const int8_t> row = w.Int8Row(n);
    for (int64_t m = 0; m < x.rows; ++m) {
      const float* xr = codes.data() + static_cast<size_t>(m) * k;
      double sum = 0.0;
      for (size_t c = 0; c < k; ++c) sum += double{xr[c]} * row[c];
      const float scaled =
          Rounded(x.dtype, static_cast<float>(sum) * scales[static_cast<size_t>(m)]);
      Store(y, m, n, scaled * w.Int8Scale(n) + (bias == nullptr ? 0.0f : bias[n]));
    }
  }
}

void DequantizedLinear(const RefPackedWeight& w, const ActivationQuant& activation,
                       const TensorView& x, const float* bias, const TensorView& y) {
  const int64_t k = w.k();
  std::vector<float> xs = ToFloats(x);  // [m, k]
  if (ReplacesInput(activation.kind)) ReplaceInput(activation, x.dtype, k, xs);
  std::vector<float> row(static_cast<size_t>(k));
  for (int64_t n = 0; n < w.n(); ++n) {
    w.DequantizeRow(n, row);
    if (activation.reference) {  // the libraries multiply weights in the activations' dtype
      for (float& v : row) v = Rounded(x.dtype, v);
    }
    for (int64_t m = 0; m < x.rows; ++m) {
      const float* xr = xs.data() + m * k;
      double sum = bias == nullptr ? 0.0 : bias[n];
      for (int64_t c = 0; c < k; ++c) {
        sum += static_cast<double>(xr[c]) * static_cast<double>(row[static_cast<size_t>(c)]);
      }
      Store(y, m, n, static_cast<float>(sum));
    }
  }
}

/// The activations of LLM.int8 (Dettmers et al., 2022), with bitsandbytes' arithmetic.
struct Int8Activations {
  std::vector<int8_t> codes;     // [m, k], zero in outlier columns
  std::vector<float> scale;      // [m] largest magnitude of the row's elements below the threshold
  std::vector<uint8_t> outlier;  // [m, k] 1 where the element takes the floating-point path
};

Int8Activations QuantizeActivations(const TensorView& x, const std::vector<float>& xs,
                                    const ActivationQuant& activation) {
  const size_t m = static_cast<size_t>(x.rows), k = static_cast<size_t>(x.cols);
  Int8Activations a{std::vector<int8_t>(m * k), std::vector<float>(m), std::vector<uint8_t>(m * k)};
  std::vector<float> x16(m * k);
  std::vector<uint8_t> outlier_column(k);
  for (size_t i = 0; i < m * k; ++i) {
    x16[i] = static_cast<float>(F16(xs[i]));
    // Written so that a NaN is an outlier: the floating-point path then shows it in the result.
    if (activation.threshold > 0.0f && !(std::fabs(x16[i]) < activation.threshold)) {
      a.outlier[i] = 1;
      outlier_column[i % k] = 1;
    }
  }
  for (size_t r = 0; r < m; ++r) {
    // Elements below the threshold count for the scale even where another row makes their column an
    // outlier column.
    float absmax = 0.0f;
    for (size_t c = 0; c < k; ++c) {
      const float magnitude = std::fabs(x16[r * k + c]);
      if (a.outlier[r * k + c] != 0 || std::isnan(absmax)) continue;  // a NaN stays: it must show
      if (!(magnitude <= absmax)) absmax = magnitude;
    }
    a.scale[r] = absmax;
    const float inverse = absmax > 0.0f ? 127.0f / absmax : 0.0f;
    for (size_t c = 0; c < k; ++c) {
      uint8_t& outlier = a.outlier[r * k + c];
      if (activation.scope == ActivationQuant::OutlierScope::kCall) outlier = outlier_column[c];
      const float q = std::nearbyint(x16[r * k + c] * inverse);
      if (outlier == 0 && std::fabs(q) <= 127.0f) a.codes[r * k + c] = static_cast<int8_t>(q);
    }
  }
  return a;
}

void Int8Linear(const RefPackedWeight& w, const ActivationQuant& activation, const TensorView& x,
                const float* bias, const TensorView& y) {
  const size_t k = static_cast<size_t>(w.k());
  const std::vector<float> xs = ToFloats(x);
  const Int8Activations a = QuantizeActivations(x, xs, activation);
  std::vector<std::vector<size_t>> outliers(static_cast<size_t>(x.rows));
  for (size_t i = 0; i < a.outlier.size(); ++i) {
    if (a.outlier[i] != 0) outliers[i / k].push_back(i % k);
  }

  for (int64_t n = 0; n < w.n(); ++n) {
    const std::span<const int8_t> row = w.Int8Row(n);
    const float scb = w.Int8Scale(n);
    const float step = scb * kInt8Step;
    for (int64_t m = 0; m < x.rows; ++m) {
      const size_t r = static_cast<size_t>(m);
      int64_t acc = 0;
      for (size_t c = 0; c < k; ++c) acc += a.codes[r * k + c] * row[c];
      const double scale =
          static_cast<double>(a.scale[r]) * static_cast<double>(scb) / (127.0 * 127.0);
      double sum = static_cast<double>(acc) * scale;
      for (size_t c : outliers[r]) {
        const float value = static_cast<float>(row[c]) * step;
        sum += static_cast<double>(xs[r * k + c]) * static_cast<double>(value);
      }
      if (bias != nullptr) sum += bias[n];
      Store(y, m, n, static_cast<float>(sum));
    }
  }
}

}  // namespace

void Linear(const RefPackedWeight& w, const ActivationQuant& activation, const TensorView& x,
            const float* bias, const TensorView& y) {
  if (activation.kind == ActivationQuant::Kind::kInt8Outlier) {
    Int8Linear(w, activation, x, bias, y);
  } else if (IsIntegerProduct(w.format(), activation)) {
    IntegerProduct(w, activation, x, bias, y);
  } else {
    DequantizedLinear(w, activation, x, bias, y);
  }
}

}  // namespace quantd::ref
