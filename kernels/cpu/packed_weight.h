// CpuPackedWeight: a weight as the cpu kernels read it, the same for every instruction set.
//
// Rows are grouped in panels of 16, one 32-bit lane a row, each segment padded to whole panels of
// its own; inside a panel the k axis is outermost, so that a kernel streams through memory, keeps
// 16 outputs in one vector and never adds across lanes. k is padded with zero codes to a multiple
// of 8. One panel:
//
//   nf4, fp4  [k/8][16] dwords; the code of column 8c + 2j + p is bits 16p + 4j .. +3 of dword c
//   bf16      [k/2][16][2]    f16, f32  [k][16]    int8  [k/4][16][4]
//
// Scales: int8 [panels][16] SCB f32 and [panels][16] int32 row sums; 4-bit formats whose blocks do
// not cross rows [panels][k/block][16] (f32, or u8 codes when nested); other 4-bit formats in flat
// order.
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
inline constexpr int64_t kPadK = 8;

/// One segment's panels and scales, as kernels see them. Pointers are into the weight's buffers.
struct PackedSegment {
  int64_t first_row = 0;  // first output column of y
  int64_t rows = 0;
  int64_t first_panel = 0;  // in the whole weight
  int64_t panels = 0;
  uint8_t* codes = nullptr;         // [panels][panel_bytes]
  float* scales = nullptr;          // see above; null for plain and nested formats
  uint8_t* nested_codes = nullptr;  // [panels][k/block][16], or flat
  float* nested_map = nullptr;      // [256]
  float* nested_absmax = nullptr;   // one per 256 flat blocks of the segment
  float nested_offset = 0.0f;
  int32_t* row_sums = nullptr;  // int8: [panels][16]
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
  int64_t padded_k() const { return (k() + kPadK - 1) / kPadK * kPadK; }
  int64_t panel_bytes() const { return panel_bytes_; }
  int64_t num_panels() const { return num_panels_; }
  /// 4-bit: every scale block lies within one row and is whole 8-column groups.
  bool blocks_within_rows() const { return blocks_within_rows_; }
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
  bool blocks_within_rows_ = false;
  std::vector<PackedSegment> packed_;
  Buffer codes_;
  Buffer scales_;
};

}  // namespace quantd
