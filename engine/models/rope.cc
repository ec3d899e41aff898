#include "engine/models/rope.h"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace quantd {
namespace {

// Llama 3.1: long wavelengths are stretched by `factor`, short ones kept, those between
// interpolated. Tensors are f32 in transformers, its scalars are Python floats, which join them as
// f32.
float ScaleLlama3(float frequency, const RopeSpec& rope) {
  const float factor = static_cast<float>(rope.factor);
  const float low = static_cast<float>(rope.low_freq_factor);
  const float original = static_cast<float>(rope.original_max_position_embeddings);
  const float low_wavelength =
      static_cast<float>(rope.original_max_position_embeddings / rope.low_freq_factor);
  const float high_wavelength =
      static_cast<float>(rope.original_max_position_embeddings / rope.high_freq_factor);
  const float wavelength = static_cast<float>(2 * std::numbers::pi) / frequency;
  if (wavelength > low_wavelength) return frequency / factor;
  if (wavelength < high_wavelength) return frequency;
  const float smooth = (original / wavelength - low) /
                       static_cast<float>(rope.high_freq_factor - rope.low_freq_factor);
  return (1.0f - smooth) * frequency / factor + smooth * frequency;
}

/// YaRN (Peng et al., 2023): pairs that turn often within the original context keep their
/// frequency, those that turn less than once are stretched, those between ramp from one to the
/// other. Bounds of the ramp are Python floats, tensors f32.
class YarnRamp {
 public:
  YarnRamp(const RopeSpec& rope, int64_t rotary_dim) {
    const double dim = static_cast<double>(rotary_dim);
    const auto pair_that_turns = [&](double rotations) {
      return dim *
             std::log(rope.original_max_position_embeddings / (rotations * 2 * std::numbers::pi)) /
             (2 * std::log(rope.theta));
    };
    double low = pair_that_turns(rope.beta_fast), high = pair_that_turns(rope.beta_slow);
    if (rope.truncate) {
      low = std::floor(low);
      high = std::ceil(high);
    }
    low = std::max(low, 0.0);
    high = std::min(high, dim - 1);
    if (low == high) high += 0.001;
    low_ = static_cast<float>(low);
    range_ = static_cast<float>(high - low);
    factor_ = static_cast<float>(rope.factor);
  }

  /// Of pair i, with 1 / frequency.
  float operator()(size_t i, float period) const {
    const float ramp = std::clamp((static_cast<float>(i) - low_) / range_, 0.0f, 1.0f);
    const float keep = 1.0f - ramp;
    return 1.0f / (factor_ * period) * (1.0f - keep) + 1.0f / period * keep;
  }

 private:
  float low_, range_, factor_;
};

}  // namespace

std::vector<float> RopeFrequencies(const RopeSpec& rope, int64_t rotary_dim,
                                   int64_t max_positions) {
  const bool is_long = static_cast<double>(max_positions) > rope.original_max_position_embeddings;
  const std::vector<double>& stretch = is_long ? rope.long_factor : rope.short_factor;
  const YarnRamp yarn(rope, rotary_dim);
  std::vector<float> frequencies(static_cast<size_t>(rotary_dim / 2));
  for (size_t i = 0; i < frequencies.size(); ++i) {
    const float exponent = static_cast<float>(2 * i) / static_cast<float>(rotary_dim);
    const float period = std::pow(static_cast<float>(rope.theta), exponent);
    switch (rope.type) {
      case RopeSpec::Type::kDefault:
      case RopeSpec::Type::kDynamic: frequencies[i] = 1.0f / period; break;
      case RopeSpec::Type::kLinear:
        frequencies[i] = 1.0f / period / static_cast<float>(rope.factor);
        break;
      case RopeSpec::Type::kLlama3: frequencies[i] = ScaleLlama3(1.0f / period, rope); break;
      case RopeSpec::Type::kYarn: frequencies[i] = yarn(i, period); break;
      case RopeSpec::Type::kLongRope:
        frequencies[i] = 1.0f / (static_cast<float>(stretch[i]) * period);
        break;
    }
  }
  return frequencies;
}

std::vector<float> RopeTable(const RopeSpec& rope, int64_t rotary_dim, int64_t max_positions) {
  const std::vector<float> frequencies = RopeFrequencies(rope, rotary_dim, max_positions);
  const float factor = static_cast<float>(rope.attention_factor);
  const size_t half = frequencies.size();
  std::vector<float> table(static_cast<size_t>(max_positions) * 2 * half);
  for (size_t p = 0; p < static_cast<size_t>(max_positions); ++p) {
    float* row = table.data() + p * 2 * half;
    for (size_t i = 0; i < half; ++i) {
      const double angle = static_cast<float>(p) * frequencies[i];
      row[i] = static_cast<float>(std::cos(angle)) * factor;
      row[half + i] = static_cast<float>(std::sin(angle)) * factor;
    }
  }
  return table;
}

}  // namespace quantd
