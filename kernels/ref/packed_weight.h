// RefPackedWeight: a weight as `ref` keeps it: bytes as a checkpoint stores them, segment after
// segment.
//
// Codes: plain floats and int8 row-major; 4-bit codes two a byte in flat order, the even element in
// the high nibble (bitsandbytes' order). Scales stay as they are: f32, or nested (u8 codes, one f32
// per 256, a 256-entry map and an offset per segment).
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
    size_t scales = 0;         // f32 [blocks], or u8 [blocks] when nested
    size_t nested_absmax = 0;  // f32 [ceil(blocks / 256)]
    size_t nested_map = 0;     // f32 [256], then the f32 offset
  };
  /// Bytes both buffers need, and the layout of every segment in them.
  struct Plan {
    std::vector<Layout> segments;
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

  /// Writes row `row` (of all segments) dequantized: value times scale, rounded once to f32. [k]
  void DequantizeRow(int64_t row, std::span<float> out) const;
  /// The int8 codes of a row and its SCB (int8 rows only).
  std::span<const int8_t> Int8Row(int64_t row) const;
  float Int8Scale(int64_t row) const;

 private:
  /// The segment that holds `row`; `row` becomes relative to it.
  size_t SegmentOf(int64_t& row) const;
  float ScaleOf(const Layout& layout, int64_t block) const;
  const uint8_t* Codes(const Layout& layout) const { return codes_.as<uint8_t>() + layout.codes; }
  const std::byte* Scales(size_t offset) const { return scales_.as<std::byte>() + offset; }

  Plan plan_;
  Buffer codes_;
  Buffer scales_;
};

}  // namespace quantd::ref
