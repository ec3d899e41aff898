// RefPackedWeight: a weight as `ref` keeps it: the parts of a QuantizedMatrix in the types their
// format says, segment after segment.
//
// Codes: plain floats and 8-bit codes row-major; smaller codes in flat order, the first in the
// highest bits of a byte. Scales and zero points: in BlockShape's order, or nested (u8 codes, one
// f32 per 256, a 256-entry map and an offset per segment).
//
// Threads: Fill from one loader thread; read-only afterwards.
#pragma once

#include <span>
#include <vector>

#include "kernels/backend.h"

namespace quantd::ref {

class RefPackedWeight : public PackedWeight {
 public:
  /// Where a segment's parts start: bytes into the codes buffer, bytes into the scales buffer.
  struct Layout {
    size_t codes = 0;
    size_t scales = 0;         // [blocks] of the scale's type; u8 when nested
    size_t zeros = 0;          // [blocks] of the zero point's type
    size_t nested_absmax = 0;  // f32 [ceil(blocks / 256)]
    size_t nested_map = 0;     // f32 [256], then the f32 offset
    size_t global_scale = 0;   // f32, of ScaleType::kE4M3
  };
  /// Bytes both buffers need, and the layout of every segment in them.
  struct Plan {
    std::vector<Layout> segments;
    size_t columns = 0;  // i32 [k], in the scales buffer, when reordered
    size_t codes_bytes = 0;
    size_t scales_bytes = 0;
  };
  static Plan PlanFor(const QuantFormat& format, int64_t k,
                      const std::vector<RowSegment>& segments);

  RefPackedWeight(const QuantFormat& format, int64_t k, std::vector<RowSegment> segments, Plan plan,
                  Buffer codes, Buffer scales)
      : PackedWeight(format, k, std::move(segments)),
        plan_(std::move(plan)),
        codes_(std::move(codes)),
        scales_(std::move(scales)) {}

  int64_t bytes() const override { return static_cast<int64_t>(codes_.bytes() + scales_.bytes()); }

  /// Copies `matrix` into `segment`. The caller has checked it (CheckPackRows).
  void Fill(size_t segment, const QuantizedMatrix& matrix);

  /// Writes row `row` (of all segments) dequantized by its format's formula, each operation rounded
  /// to f32, columns in the input's order. [k]
  void DequantizeRow(int64_t row, std::span<float> out) const;
  /// The codes of a row and its scale as stored (LLM.int8: SCB): rows of int8 with f32 scales only.
  std::span<const int8_t> Int8Row(int64_t row) const;
  float Int8Scale(int64_t row) const;

 private:
  /// The segment that holds `row`; `row` becomes relative to it.
  size_t SegmentOf(int64_t& row) const;
  uint8_t CodeAt(const Layout& layout, int64_t flat) const;
  float ScaleAt(const Layout& layout, int64_t block) const;
  float ZeroAt(const Layout& layout, int64_t block) const;
  const uint8_t* Codes(const Layout& layout) const { return codes_.as<uint8_t>() + layout.codes; }
  const std::byte* Scales(size_t offset) const { return scales_.as<std::byte>() + offset; }

  Plan plan_;
  Buffer codes_;
  Buffer scales_;
};

}  // namespace quantd::ref
