#include "engine/models/rope.h"

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

}  // namespace

std::vector<float> RopeFrequencies(const RopeSpec& rope, int64_t head_dim) {
  std::vector<float> frequencies(static_cast<size_t>(head_dim / 2));
  for (size_t i = 0; i < frequencies.size(); ++i) {
    const float exponent = static_cast<float>(2 * i) / static_cast<float>(head_dim);
    const float frequency = 1.0f / std::pow(static_cast<float>(rope.theta), exponent);
    frequencies[i] =
        rope.type == RopeSpec::Type::kLlama3 ? ScaleLlama3(frequency, rope) : frequency;
  }
  return frequencies;
}

std::vector<float> RopeTable(const RopeSpec& rope, int64_t head_dim, int64_t max_positions) {
  const std::vector<float> frequencies = RopeFrequencies(rope, head_dim);
  const size_t half = frequencies.size();
  std::vector<float> table(static_cast<size_t>(max_positions) * 2 * half);
  for (size_t p = 0; p < static_cast<size_t>(max_positions); ++p) {
    float* row = table.data() + p * 2 * half;
    for (size_t i = 0; i < half; ++i) {
      const double angle = static_cast<float>(p) * frequencies[i];
      row[i] = static_cast<float>(std::cos(angle));
      row[half + i] = static_cast<float>(std::sin(angle));
    }
  }
  return table;
}

}  // namespace quantd
