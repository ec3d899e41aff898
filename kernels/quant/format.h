// QuantFormat, ActivationQuant, QuantizedMatrix: what the bytes of a weight mean.
//
// A format is a value and knows nothing of methods: bitsandbytes' NF4 and any other producer of
// "4-bit table codes with an f32 scale per 64 flat elements" are the same format. Models and
// kernels know formats; only engine/weights knows methods.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/quant/codecs.h"
#include "kernels/tensor.h"

namespace quantd {

/// Which elements share a scale.
struct BlockShape {
  enum class Kind : uint8_t {
    kNone,  // plain floats: no scale
    kRow,   // one scale per output row
    kFlat,  // runs of `size` elements of the flattened row-major matrix; may cross rows
  };
  Kind kind = Kind::kNone;
  int32_t size = 0;  // elements in a flat block, else 0

  bool operator==(const BlockShape&) const = default;
};

enum class ScaleType : uint8_t {
  kNone,
  kF32,
  kNested,  // u8 codes into a 256-entry map, times an f32 per 256 scales, plus an offset
};

struct QuantFormat {
  Codec codec = Codec::kBF16;
  BlockShape block;
  ScaleType scale = ScaleType::kNone;

  bool operator==(const QuantFormat&) const = default;

  static QuantFormat Plain(DType dtype);  // kF32, kF16 or kBF16
  static QuantFormat Block4(Codec codec, int32_t block, bool nested);
  static QuantFormat Int8Row();

  /// "bf16", "nf4.flat64.f32", "fp4.flat64.nested", "int8.row.f32".
  std::string ToString() const;
  /// The inverse of ToString; INVALID_ARGUMENT naming the text otherwise.
  static absl::StatusOr<QuantFormat> Parse(const std::string& text);
  /// Bytes an [n, k] matrix takes in this format as a checkpoint stores it (codes and scales).
  int64_t StoredBytes(int64_t n, int64_t k) const;
};

/// How activations are quantized when a Linear runs. Its own value, passed to Backend::Linear.
struct ActivationQuant {
  enum class Kind : uint8_t {
    kNone,
    kInt8Outlier,  // LLM.int8: int8 per row, elements of magnitude >= threshold kept in floating
                   // point
  };
  enum class OutlierScope : uint8_t {
    kRow,   // outlier columns are found per token row: a result does not depend on its neighbours
    kCall,  // over all rows of the call, as bitsandbytes does
  };
  Kind kind = Kind::kNone;
  float threshold = 0.0f;  // 0: no outliers
  OutlierScope scope = OutlierScope::kRow;

  bool operator==(const ActivationQuant&) const = default;
};

/// One matrix W [n, k] in canonical host form: the interchange between methods and backends.
///
/// Plain codecs: `codes` holds n * k floats of the codec's type, row-major. Quantized codecs: one
/// byte a code, row-major [n, k]. Scales: kRow has n, kFlat has ceil(n * k / size), in flat order.
struct QuantizedMatrix {
  QuantFormat format;
  int64_t n = 0;  // outputs
  int64_t k = 0;  // inputs
  std::vector<uint8_t> codes;

  std::vector<float> scales;  // ScaleType::kF32

  // ScaleType::kNested: scale[b] = nested_map[nested_codes[b]] * nested_absmax[b / 256] +
  // nested_offset, multiplied, then added, each rounded to f32.
  std::vector<uint8_t> nested_codes;
  std::vector<float> nested_map;  // [256]
  std::vector<float> nested_absmax;
  float nested_offset = 0.0f;
  static constexpr int kNestedBlock = 256;

  /// Scale of element (row, col); 1 for plain codecs. LLM.int8: SCB[row] * (1/127) in f32.
  float Scale(int64_t row, int64_t col) const;
  /// Value of element (row, col) in f32: table or integer value times its scale, rounded once.
  float Dequantize(int64_t row, int64_t col) const;
};

/// For int8 rows `scales` holds SCB (the row's largest magnitude); the step is SCB * kInt8Step.
inline constexpr float kInt8Step = 1.0f / 127.0f;

}  // namespace quantd
