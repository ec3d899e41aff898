// ActivationQuant: how the input of a Linear is quantized, and the arithmetic of it, once for host
// and device: every backend makes the same codes.
//
// All kinds but LLM.int8 are defined as a replacement of x: each element becomes the value its code
// stands for (QuantizeDequantize), and the Linear goes on with that. A backend may keep codes and
// scale apart and sum integers instead, unless `reference` asks for the libraries' own arithmetic.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>

#include "kernels/quant/codecs.h"
#include "kernels/quant/float_types.h"

namespace quantd {

/// Its own value, passed to Backend::Linear.
struct ActivationQuant {
  enum class Kind : uint8_t {
    kNone,
    kInt8Outlier,    // LLM.int8: int8 per row, elements of magnitude >= threshold kept in floating
                     // point
    kInt8Token,      // int8, one scale a row
    kInt8TokenAsym,  // int8, one scale and one zero point a row
    kInt8Tensor,     // int8, `scale` and `zero_point` from the checkpoint
    kFp8Token,       // e4m3, one scale a row
    kFp8Group,       // e4m3, one scale per `group` columns of a row
    kFp8Tensor,      // e4m3, `scale` from the checkpoint
  };
  enum class OutlierScope : uint8_t {
    kRow,   // outlier columns are found per token row: a result does not depend on its neighbours
    kCall,  // over all rows of the call, as bitsandbytes does
  };
  /// Where the libraries round to the activations' dtype. x' is the value that replaces x.
  enum class Rounding : uint8_t {
    kF32,        // nowhere: scale and quotient in f32; x' is rounded once
    kScale,      // the scale, and what it is computed from (torchao's Int8Tensor, Float8Tensor)
    kEveryStep,  // absmax, scale, quotient, sum with the zero point and product
                 // (compressed-tensors; torchao's IntxUnpackedToInt8Tensor)
  };
  Kind kind = Kind::kNone;
  float threshold = 0.0f;  // kInt8Outlier; 0: no outliers
  OutlierScope scope = OutlierScope::kRow;
  Rounding rounding = Rounding::kF32;
  int32_t group = 0;       // kFp8Group: columns
  float scale = 0.0f;      // kInt8Tensor, kFp8Tensor
  int32_t zero_point = 0;  // kInt8Tensor
  bool reference = false;  // the libraries' arithmetic: x' and W rounded to the activations' dtype

  bool operator==(const ActivationQuant&) const = default;
};

/// True for the kinds that replace x by QuantizeDequantize.
constexpr bool ReplacesInput(ActivationQuant::Kind kind) {
  return kind != ActivationQuant::Kind::kNone && kind != ActivationQuant::Kind::kInt8Outlier;
}

/// True when the codes are e4m3, else int8.
constexpr bool IsFp8(ActivationQuant::Kind kind) {
  return kind == ActivationQuant::Kind::kFp8Token || kind == ActivationQuant::Kind::kFp8Group ||
         kind == ActivationQuant::Kind::kFp8Tensor;
}

/// What the elements that share a scale are quantized with.
struct ActivationScale {
  float scale = 0.0f;
  float zero_point = 0.0f;
};

/// Rounds to the activations' dtype: a functor float -> float, identity for f32.
struct RoundToF32 {
  QUANTD_HOST_DEVICE float operator()(float v) const { return v; }
};
struct RoundToF16 {
  QUANTD_HOST_DEVICE float operator()(float v) const { return static_cast<float>(F16(v)); }
};
struct RoundToBF16 {
  QUANTD_HOST_DEVICE float operator()(float v) const { return static_cast<float>(BF16(v)); }
};

/// Of the elements of a row (or group) whose least and largest values are `low` and `high`, both
/// with 0 included for kInt8TokenAsym; symmetric kinds need only the largest magnitude, in `high`.
template <typename Round>
QUANTD_HOST_DEVICE inline ActivationScale ActivationScaleOf(const ActivationQuant& q, float low,
                                                            float high, const Round& round) {
  using Kind = ActivationQuant::Kind;
  using Rounding = ActivationQuant::Rounding;
  constexpr float kTiny = 0x1p-23f;  // f32's epsilon, the least int8 scale of torchao
  if (q.kind == Kind::kInt8Tensor || q.kind == Kind::kFp8Tensor) {
    return {q.scale, static_cast<float>(q.zero_point)};
  }
  const bool exact = q.rounding == Rounding::kF32;
  if (q.kind == Kind::kInt8TokenAsym) {
    const float span = high - low;
    const float scale = exact ? span / 255.0f : round(round(span) / 255.0f);
    // torchao's least scale under kEveryStep is the dtype's smallest normal number: 2^-126, but
    // 2^-14 in f16, where 2^-126 rounds to zero.
    const float least = q.rounding != Rounding::kEveryStep ? kTiny
                        : round(0x1p-126f) > 0.0f          ? 0x1p-126f
                                                           : 0x1p-14f;
    const float used = scale > least ? scale : least;
    float zero = -128.0f - rintf(exact ? low / used : round(low / used));
    zero = zero < -128.0f ? -128.0f : zero > 127.0f ? 127.0f : zero;
    return {used, zero};
  }
  const float scale = high / (IsFp8(q.kind) ? 448.0f : 127.5f);
  if (exact) return {scale, 0.0f};
  const float rounded = round(scale);
  const bool has_least = q.rounding == Rounding::kScale && !IsFp8(q.kind);
  return {has_least && rounded < kTiny ? kTiny : rounded, 0.0f};
}

/// The code of x, as a float: an integer -128..127, or an e4m3 value.
template <typename Round>
QUANTD_HOST_DEVICE inline float ActivationCode(const ActivationQuant& q, const ActivationScale& s,
                                               float x, const Round& round) {
  if (s.scale == 0.0f) return s.zero_point;
  const bool every_step = q.rounding == ActivationQuant::Rounding::kEveryStep;
  if (IsFp8(q.kind)) {
    const float value = x / s.scale;
    return E4M3Codec::Decode(E4M3Codec::Encode(every_step ? round(value) : value));
  }
  const bool asymmetric = q.kind == ActivationQuant::Kind::kInt8TokenAsym;
  float code;
  if (every_step && !asymmetric) {
    code = rintf(round(round(x / s.scale) + s.zero_point));  // the sum is rounded twice
  } else {
    code =
        rintf(every_step ? round(x * round(1.0f / s.scale)) : x * (1.0f / s.scale)) + s.zero_point;
  }
  // Written so that a NaN stays one.
  return code < -128.0f ? -128.0f : code > 127.0f ? 127.0f : code;
}

/// The value that `code` stands for, before it is rounded to the activations' dtype.
QUANTD_HOST_DEVICE inline float ActivationValue(const ActivationScale& s, float code) {
  return (code - s.zero_point) * s.scale;
}

}  // namespace quantd
