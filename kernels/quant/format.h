// QuantFormat and QuantizedMatrix: what the bytes of a weight mean.
//
// A format is a value and knows nothing of methods: GPTQ, AWQ and HQQ are all "unsigned codes with
// a scale and a zero point per group". Models and kernels know formats; only engine/weights knows
// methods.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/quant/activation.h"
#include "kernels/quant/codecs.h"
#include "kernels/tensor.h"

namespace quantd {

/// Which elements of W [n, k] share a scale (and a zero point): a block.
struct BlockShape {
  enum class Kind : uint8_t {
    kNone,     // plain floats: no scale
    kRow,      // one output row
    kGroup,    // `size` neighbours of a row; the last group of a row may be short
    kFlat,     // runs of `size` elements of the flattened row-major matrix; may cross rows
    kTile,     // `rows` x `size` rectangles; those at the edges may be smaller
    kStrided,  // elements whose flat index has the same remainder by n * k / size (HQQ's axis 0)
  };
  Kind kind = Kind::kNone;
  int32_t size = 0;  // elements (kTile: columns) of a block; 0 for kNone and kRow
  int32_t rows = 0;  // of a tile, else 0

  bool operator==(const BlockShape&) const = default;

  /// Blocks of an [n, k] matrix, and the block of element (row, col). kRow: rows in order; kGroup
  /// and kTile: row-major grids of ceil(k / size) columns; kFlat and kStrided: in flat order.
  int64_t Count(int64_t n, int64_t k) const;
  int64_t IndexOf(int64_t n, int64_t k, int64_t row, int64_t col) const;
};

enum class ScaleType : uint8_t {
  kNone,
  kF32,
  kF16,
  kBF16,
  kNested,  // u8 codes into a 256-entry map, times an f32 per 256 scales, plus an offset
  kAbsmax,  // f32, LLM.int8's SCB: the largest magnitude of a row; the step is SCB * kInt8Step
  kE4M3,    // fp8 codes, divided by an f32 of the whole matrix (nvfp4)
};

/// What is done with a block's zero point, and what it takes to store it.
enum class ZeroType : uint8_t {
  kNone,       // w = code * scale
  kU8,         // w = (code - zero) * scale, zero an integer 0..255
  kF16,        // w = (code - zero) * scale, zero a float
  kBF16,       //
  kF32,        //
  kAddedBF16,  // w = code * scale + zero, the product rounded first (torchao's int4)
  kAddedF32,   //
};

/// True for zero points that are added to the product instead of subtracted from the code.
constexpr bool IsAdded(ZeroType z) { return z == ZeroType::kAddedBF16 || z == ZeroType::kAddedF32; }

struct QuantFormat {
  Codec codec = Codec::kBF16;
  BlockShape block;
  ScaleType scale = ScaleType::kNone;
  ZeroType zero = ZeroType::kNone;
  /// Columns are stored in another order than the input's (GPTQ's desc_act): groups are then
  /// neighbours in the stored order. See QuantizedMatrix::columns.
  bool reordered = false;

  bool operator==(const QuantFormat&) const = default;

  static QuantFormat Plain(DType dtype);  // kF32, kF16 or kBF16
  static QuantFormat Block4(Codec codec, int32_t block, bool nested);
  static QuantFormat Int8Row();  // LLM.int8

  /// "bf16", "nf4.flat64.f32", "uint4.group128.f16.zero_u8", "e4m3.tile128x128.f32": codec, block,
  /// scale, zero point ("zero_" subtracted, "offset_" added), "reordered".
  std::string ToString() const;
  /// The inverse of ToString; INVALID_ARGUMENT naming the text otherwise.
  static absl::StatusOr<QuantFormat> Parse(const std::string& text);
  /// OK when the parts belong together: plain codecs without, quantized ones with block and scale,
  /// and of those only what some method makes. INVALID_ARGUMENT says what is wrong.
  absl::Status Check() const;
  /// Bytes an [n, k] matrix takes in this format: codes, scales, zero points, column order.
  int64_t StoredBytes(int64_t n, int64_t k) const;
};

/// One matrix W [n, k] in canonical host form: the interchange between methods and backends.
///
/// Plain codecs: `codes` holds n * k floats of the codec's type, row-major. Quantized codecs: one
/// byte a code, row-major [n, k], columns in stored order. Scales and zero points: f32 whatever
/// their type in memory, which holds them exactly; one a block, in BlockShape's order.
struct QuantizedMatrix {
  QuantFormat format;
  int64_t n = 0;  // outputs
  int64_t k = 0;  // inputs
  std::vector<uint8_t> codes;

  std::vector<float> scales;     // all but ScaleType::kNone and kNested
  float global_scale = 1.0f;     // ScaleType::kE4M3: scale = scales[b] / global_scale
  std::vector<float> zeros;      // all but ZeroType::kNone
  std::vector<int32_t> columns;  // reordered: [k] the input column of each stored column

  // ScaleType::kNested: scale[b] = nested_map[nested_codes[b]] * nested_absmax[b / 256] +
  // nested_offset, multiplied, then added, each rounded to f32.
  std::vector<uint8_t> nested_codes;
  std::vector<float> nested_map;  // [256]
  std::vector<float> nested_absmax;
  float nested_offset = 0.0f;
  static constexpr int kNestedBlock = 256;

  /// Scale of stored element (row, col); 1 for plain codecs. LLM.int8: SCB[row] * (1/127) in f32.
  float Scale(int64_t row, int64_t col) const;
  /// Value of stored element (row, col) in f32, by its format's formula, each operation rounded.
  float Dequantize(int64_t row, int64_t col) const;
  /// The whole matrix [n, k], row-major, columns in the input's order.
  std::vector<float> DequantizeAll() const;
};

/// ScaleType::kAbsmax: the step of a row is its largest magnitude times this.
inline constexpr float kInt8Step = 1.0f / 127.0f;

}  // namespace quantd
