// hqq's solver, sixteen lanes at a time, in plain loops that compilers vectorize.
//
// A step maps a group's zero point to the next one and depends on nothing else (hqq 0.2.8 keeps
// beta constant), so a group whose zero point stays is done for good: later passes skip it. Most
// groups are done after a few of the twenty passes.
#include "kernels/quant/quantize_hqq.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <span>

#include "kernels/status.h"

namespace quantd {
namespace {

constexpr int kSteps = 20;
constexpr int64_t kLanes = 16;
using Lanes = std::array<float, kLanes>;

// The shrinking operator of the l0.7 norm, beta 10: max(|e| - |e|^-0.3 / 10, 0) with the sign of e.
// Below 10^(-1/1.3) = 0.1701 it is zero, which is where nearly all errors are.
constexpr float kShrinkFrom = 0.17f;
float Shrunk(float e) {
  const float magnitude = std::fabs(e);
  return std::copysign(std::max(magnitude - 0.1f * std::pow(magnitude, -0.3f), 0.0f), e);
}

/// clamp(x, 0, top) to the nearest integer, ties to even: adding 1.5 * 2^23 leaves no fraction.
inline float RoundClamped(float x, float top) {
  constexpr float kNoFraction = 12582912.0f;
  x = x < 0.0f ? 0.0f : x;
  x = x > top ? top : x;
  return (x + kNoFraction) - kNoFraction;
}

/// What a step sums over the elements of groups, a lane each.
struct StepSums {
  Lanes error{};    // |w - dequantized w|
  Lanes largest{};  // the largest of them
};

/// One step of sixteen elements: adds what their zero points average to `zeros`.
template <bool kShrink>
inline void Step(const float* w, const Lanes& scale, const Lanes& zero, float top, Lanes& zeros,
                 StepSums& sums) {
  for (size_t i = 0; i < kLanes; ++i) {
    const float code = RoundClamped(w[i] * scale[i] + zero[i], top);
    const float e = w[i] - (code - zero[i]) / scale[i];
    const float magnitude = std::fabs(e);
    sums.error[i] += magnitude;
    sums.largest[i] = magnitude > sums.largest[i] ? magnitude : sums.largest[i];
    float target = w[i];
    if constexpr (kShrink) {
      if (magnitude >= kShrinkFrom) target -= Shrunk(e);
    }
    zeros[i] += code - target * scale[i];
  }
}

/// The groups of a matrix: `count` of `size` elements, `element_stride` apart: 1 (axis 1) or
/// `count` (axis 0).
struct Grouping {
  const float* values = nullptr;
  int64_t count = 0, size = 0;
  int64_t element_stride = 1;
  bool along() const { return element_stride == 1; }  // axis 1
};

/// The new zero points of the groups of a tile, and the sum of their errors. A tile is one group
/// whose elements are the lanes (axis 1) or up to sixteen neighbours, a lane each (axis 0).
class Solver {
 public:
  Solver(const Grouping& groups, float top, std::vector<float>& scales, std::vector<float>& zeros)
      : groups_(groups), top_(top), scales_(scales), zeros_(zeros) {}

  void Run() {
    std::vector<int64_t> active;  // tiles of which a zero point may still move
    const int64_t width = groups_.along() ? 1 : kLanes;
    for (int64_t g = 0; g < groups_.count; g += width) active.push_back(g);
    double done_error = 0.0;
    float best = std::numeric_limits<float>::infinity();
    for (int step = 0; step < kSteps; ++step) {
      double error = 0.0;
      size_t kept = 0;
      for (const int64_t first : active) {
        bool moved = false;
        const float own = Tile(first, moved);
        if (moved) {
          error += own;
          active[kept++] = first;
        } else {
          done_error += own;
        }
      }
      active.resize(kept);
      const float mean = static_cast<float>((error + done_error) /
                                            static_cast<double>(groups_.count * groups_.size));
      if (!(mean < best)) break;
      best = mean;
    }
  }

 private:
  float Tile(int64_t first, bool& moved) {
    StepSums sums;
    Lanes next = groups_.along() ? Along<false>(first, sums) : Across<false>(first, sums);
    if (*std::max_element(sums.largest.begin(), sums.largest.end()) >= kShrinkFrom) {
      sums = {};
      next = groups_.along() ? Along<true>(first, sums) : Across<true>(first, sums);
    }
    const int64_t width = groups_.along() ? 1 : std::min(kLanes, groups_.count - first);
    float* zeros = zeros_.data() + first;
    for (int64_t i = 0; i < width; ++i) {
      const float zero = next[static_cast<size_t>(i)] / static_cast<float>(groups_.size);
      moved = moved || zero != zeros[i];
      zeros[i] = zero;
    }
    float error = 0.0f;
    for (const float e : sums.error) error += e;
    return error;
  }

  /// Sums eight lanes in four chains, then over chains, then over lanes, as torch does with AVX2.
  template <bool kShrink>
  Lanes Along(int64_t group, StepSums& sums) const {
    constexpr size_t kHalf = kLanes / 2;  // a chain is one half of the sums of every second step
    const float* w = groups_.values + group * groups_.size;
    Lanes scale, zero;
    scale.fill(scales_[static_cast<size_t>(group)]);
    zero.fill(zeros_[static_cast<size_t>(group)]);
    std::array<Lanes, 2> chains{};
    int64_t i = 0;
    for (; i + kLanes <= groups_.size; i += kLanes) {
      Step<kShrink>(w + i, scale, zero, top_, chains[static_cast<size_t>(i / kLanes % 2)], sums);
    }
    Lanes result{};
    if (i < groups_.size) {  // lanes of 0 with scale 1 and zero point 0 add nothing
      Lanes rest{}, own_scale, own_zero{}, own_sums{};
      own_scale.fill(1.0f);
      for (size_t l = 0; i < groups_.size; ++i, ++l) {
        rest[l] = w[i];
        own_scale[l] = scale[l];
        own_zero[l] = zero[l];
      }
      Step<kShrink>(rest.data(), own_scale, own_zero, top_, own_sums, sums);
      for (const float s : own_sums) result[0] += s;
    }
    for (size_t l = 0; l < kHalf; ++l) {
      result[0] += ((chains[0][l] + chains[0][l + kHalf]) + chains[1][l]) + chains[1][l + kHalf];
    }
    return result;
  }

  /// Sums each lane over its elements, in runs of sixteen, as torch does.
  template <bool kShrink>
  Lanes Across(int64_t first, StepSums& sums) const {
    constexpr int64_t kRun = 16;
    const size_t width = static_cast<size_t>(std::min(kLanes, groups_.count - first));
    Lanes scale, zero{}, total{};
    scale.fill(1.0f);
    std::copy_n(scales_.begin() + first, width, scale.begin());
    std::copy_n(zeros_.begin() + first, width, zero.begin());
    const float* w = groups_.values + first;
    Lanes edge{};
    for (int64_t begin = 0; begin < groups_.size; begin += kRun) {
      Lanes run{};
      const int64_t end = std::min(groups_.size, begin + kRun);
      for (int64_t i = begin; i < end; ++i) {
        const float* row = w + i * groups_.element_stride;
        if (width < kLanes) {
          std::copy_n(row, width, edge.begin());
          row = edge.data();
        }
        Step<kShrink>(row, scale, zero, top_, run, sums);
      }
      for (size_t l = 0; l < kLanes; ++l) total[l] += run[l];
    }
    return total;
  }

  const Grouping groups_;
  const float top_;
  const std::vector<float>& scales_;
  std::vector<float>& zeros_;
};

/// The least and the largest element of every group.
void GroupExtremes(const Grouping& groups, std::vector<float>& low, std::vector<float>& high) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  low.assign(static_cast<size_t>(groups.count), kInfinity);
  high.assign(low.size(), -kInfinity);
  const auto widen = [](float v, float& least, float& most) {
    least = v < least ? v : least;
    most = v > most ? v : most;
  };
  const float* row = groups.values;
  if (!groups.along()) {
    for (int64_t e = 0; e < groups.size; ++e, row += groups.count) {
      for (size_t g = 0; g < low.size(); ++g) widen(row[g], low[g], high[g]);
    }
    return;
  }
  for (size_t g = 0; g < low.size(); ++g, row += groups.size) {
    Lanes least, most;  // chains of their own, since each comparison waits for the one before
    least.fill(kInfinity);
    most.fill(-kInfinity);
    int64_t i = 0;
    for (; i + kLanes <= groups.size; i += kLanes) {
      for (size_t l = 0; l < kLanes; ++l) {
        widen(row[static_cast<size_t>(i) + l], least[l], most[l]);
      }
    }
    for (; i < groups.size; ++i) widen(row[i], least[0], most[0]);
    low[g] = *std::min_element(least.begin(), least.end());
    high[g] = *std::max_element(most.begin(), most.end());
  }
}

/// The scale and zero point that map a group's extremes to the ends of the codes.
void FirstGuess(const Grouping& groups, float top, bool round_zero, std::vector<float>& scales,
                std::vector<float>& zeros) {
  std::vector<float> low, high;
  GroupExtremes(groups, low, high);
  scales.resize(low.size());
  zeros.resize(low.size());
  for (size_t g = 0; g < low.size(); ++g) {
    const float span = high[g] - low[g];
    // torch divides a number by a tensor as reciprocal times number.
    const float scale = span <= 1e-4f ? 1.0f : std::min((1.0f / span) * top, 2e4f);
    scales[g] = scale;
    zeros[g] = round_zero ? std::nearbyint(-low[g] * scale) : -low[g] * scale;
  }
}

std::vector<uint8_t> Encode(const Grouping& groups, float top, const std::vector<float>& scales,
                            const std::vector<float>& zeros) {
  const int64_t outer = groups.along() ? groups.count : groups.size;
  const int64_t inner = groups.along() ? groups.size : groups.count;
  const auto code = [top](float w, float scale, float zero) {
    return static_cast<uint8_t>(static_cast<int32_t>(RoundClamped(w * scale + zero, top)));
  };
  std::vector<uint8_t> codes(static_cast<size_t>(outer * inner));
  for (int64_t o = 0; o < outer; ++o) {
    const float* from = groups.values + o * inner;
    uint8_t* to = codes.data() + o * inner;
    if (groups.along()) {
      const float scale = scales[static_cast<size_t>(o)], zero = zeros[static_cast<size_t>(o)];
      for (int64_t i = 0; i < inner; ++i) to[i] = code(from[i], scale, zero);
    } else {
      const float *scale = scales.data(), *zero = zeros.data();
      for (int64_t i = 0; i < inner; ++i) to[i] = code(from[i], scale[i], zero[i]);
    }
  }
  return codes;
}

template <typename T>
void CopyFloats(const TensorView& w, std::vector<float>& values) {
  for (int64_t row = 0; row < w.rows; ++row) {
    const T* from = w.Row<const T>(row);
    float* to = values.data() + row * w.cols;
    for (int64_t col = 0; col < w.cols; ++col) to[col] = static_cast<float>(from[col]);
  }
}

std::vector<float> ToFloats(const TensorView& w) {
  std::vector<float> values(static_cast<size_t>(w.rows * w.cols));
  switch (w.dtype) {
    case DType::kF32: CopyFloats<float>(w, values); break;
    case DType::kF16: CopyFloats<F16>(w, values); break;
    case DType::kBF16: CopyFloats<BF16>(w, values); break;
    default: QUANTD_CHECK(false, "cannot quantize {}", ToString(w.dtype));
  }
  return values;
}

float RoundTo(DType dtype, float v) {
  return dtype == DType::kF16    ? static_cast<float>(F16(v))
         : dtype == DType::kBF16 ? static_cast<float>(BF16(v))
                                 : v;
}

}  // namespace

QuantFormat HqqFormat(const HqqParams& params, DType dtype) {
  QuantFormat f;
  f.codec = params.bits <= 2 ? Codec::kUInt2 : params.bits <= 4 ? Codec::kUInt4 : Codec::kUInt8;
  f.block.kind = params.axis == 1 ? BlockShape::Kind::kFlat : BlockShape::Kind::kStrided;
  f.block.size = params.group_size;
  f.scale = dtype == DType::kF16    ? ScaleType::kF16
            : dtype == DType::kBF16 ? ScaleType::kBF16
                                    : ScaleType::kF32;
  f.zero = dtype == DType::kF16    ? ZeroType::kF16
           : dtype == DType::kBF16 ? ZeroType::kBF16
                                   : ZeroType::kF32;
  return f;
}

absl::StatusOr<QuantizedMatrix> QuantizeHqq(const TensorView& w, const HqqParams& params,
                                            DType dtype) {
  const std::vector<float> values = ToFloats(w);
  const float top = static_cast<float>((1 << params.bits) - 1);
  Grouping groups{values.data(), w.rows * w.cols / params.group_size, params.group_size, 1};
  if (params.axis == 0) groups.element_stride = groups.count;
  QuantizedMatrix m;
  m.format = HqqFormat(params, dtype);
  m.n = w.rows;
  m.k = w.cols;
  FirstGuess(groups, top, params.round_zero, m.scales, m.zeros);
  if (params.optimize) Solver(groups, top, m.scales, m.zeros).Run();

  m.codes = Encode(groups, top, m.scales, m.zeros);
  for (size_t g = 0; g < m.scales.size(); ++g) {  // codes are of the scales before these round
    m.scales[g] = RoundTo(dtype, 1.0f / m.scales[g]);
    m.zeros[g] = RoundTo(dtype, m.zeros[g]);
    if (std::isfinite(m.scales[g]) && std::isfinite(m.zeros[g])) continue;
    return InvalidArgument("a scale or zero point of hqq does not fit {}", ToString(dtype));
  }
  return m;
}

}  // namespace quantd
