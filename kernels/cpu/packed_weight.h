// CpuPackedWeight: a weight as the cpu kernels read it, the same for every instruction set.
//
// Rows are grouped in panels of 16, one 32-bit lane a row, each segment padded to whole panels of
// its own; inside a panel the k axis is outermost, so that a kernel streams through memory, keeps
// 16 outputs in one vector and never adds across lanes. k is padded with zeros to whole chunks:
// 8 columns, of 2-bit codes 16. One panel:
//
//   4 bits       [k/8][16] dwords; the code of column 8c + 2j + p is bits 16p + 4j .. +3 of dword c
//   2 bits       [k/16][16] dwords; the code of column 16c + 2j + p is bits 16p + 2j .. +1
//   int8, uint8  [k/4][16][4] bytes; uint8 less 128
//   e4m3         [k/4][16][4] bytes, of four columns 0, 2, 1, 3
//   bf16         [k/2][16][2]    f16, f32  [k][16]
//
// Scales and zero points keep the format's types. Where every block is a run of whole chunks of one
// row, they are [panels][blocks of a row][16] ("panel order"); those of tiles and of blocks that
// cross rows are in the format's order. int8 rows have [panels][16] int32 row sums beside them.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/backend.h"
#include "kernels/cpu/thread_pool.h"

namespace quantd {

inline constexpr int64_t kPanelRows = 16;

/// Columns the codes of a weight come in, and k is padded to.
constexpr int64_t ChunkColumns(Codec codec) { return codec == Codec::kUInt2 ? 16 : 8; }

/// What kernels subtract from unsigned codes, and so from zero points, to keep sums small.
constexpr float CodeCentre(Codec codec) {
  switch (codec) {
    case Codec::kUInt8: return 128.0f;
    case Codec::kUInt4: return 8.0f;
    case Codec::kUInt2: return 2.0f;
    default: return 0.0f;
  }
}

/// One segment's panels and scales, as kernels see them. Pointers are into the weight's buffers.
struct PackedSegment {
  int64_t first_row = 0;  // first output column of y
  int64_t rows = 0;
  int64_t first_panel = 0;  // in the whole weight
  int64_t panels = 0;
  uint8_t* codes = nullptr;        // [panels][panel_bytes]
  uint8_t* scales = nullptr;       // see above; nested: u8 codes; null for plain formats
  uint8_t* zeros = nullptr;        // as scales; null without zero points
  float* nested_map = nullptr;     // [256]
  float* nested_absmax = nullptr;  // one per 256 blocks of the segment, in the format's order
  float nested_offset = 0.0f;
  float global_scale = 1.0f;    // e4m3 scales are divided by it
  int32_t* row_sums = nullptr;  // int8 rows: [panels][16]
  bool filled = false;
};

class CpuPackedWeight : public PackedWeight {
 public:
  /// For formats that CheckCreatePacked accepts. RESOURCE_EXHAUSTED when there is no room.
  static absl::StatusOr<std::unique_ptr<CpuPackedWeight>> Create(const QuantFormat& format,
                                                                 int64_t k,
                                                                 std::vector<RowSegment> segments,
                                                                 MemoryComponent component,
                                                                 MemoryAccount& account);

  int64_t bytes() const override { return static_cast<int64_t>(codes_.bytes() + scales_.bytes()); }
  int64_t chunk_columns() const { return ChunkColumns(format().codec); }
  int64_t padded_k() const {
    return (k() + chunk_columns() - 1) / chunk_columns() * chunk_columns();
  }
  int64_t panel_bytes() const { return panel_bytes_; }
  int64_t num_panels() const { return num_panels_; }
  /// Columns of a block when every block of a row is a run of whole chunks of that row (the last
  /// one may be short); 0 when not, and for plain formats.
  int64_t block_columns() const { return block_columns_; }
  int64_t blocks_per_row() const { return blocks_per_row_; }  // 0 where block_columns is 0
  bool panel_order() const {
    return block_columns_ > 0 && format().block.kind != BlockShape::Kind::kTile;
  }
  /// [k] the input column of each stored column; null unless the format is reordered.
  const int32_t* columns() const { return columns_; }
  const std::vector<PackedSegment>& packed_segments() const { return packed_; }

  /// Fills segment `segment` from `matrix` (checked by the caller), panels split over `pool`.
  void Pack(size_t segment, const QuantizedMatrix& matrix, ThreadPool& pool);

  /// Row `row` of a plain weight as f32 [k], for Embed.
  void ReadRow(int64_t row, float* out) const;

 private:
  CpuPackedWeight(const QuantFormat& format, int64_t k, std::vector<RowSegment> segments)
      : PackedWeight(format, k, std::move(segments)) {}

  int64_t panel_bytes_ = 0;
  int64_t num_panels_ = 0;
  int64_t block_columns_ = 0;
  int64_t blocks_per_row_ = 0;
  int32_t* columns_ = nullptr;
  std::vector<PackedSegment> packed_;
  Buffer codes_;
  Buffer scales_;
};

}  // namespace quantd
