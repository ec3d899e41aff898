// CudaPackedWeight: a weight in device memory, laid out as weight_view.h says, and its packer.
//
// Packing runs on the host: the packer makes codes kPieceBytes at a time, and scales of a segment,
// and hands pieces to an upload function, so that a model streams through small pinned buffers.
// Threads: distinct segments may be packed concurrently.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <vector>

#include "absl/status/status.h"
#include "kernels/backend.h"
#include "kernels/cuda/target.h"
#include "kernels/cuda/weight_view.h"

namespace quantd::QUANTD_CUDA_NS {

class CudaPackedWeight : public PackedWeight {
 public:
  /// Where a segment's parts start: bytes into the codes buffer, bytes into the scales buffer.
  struct Layout {
    size_t codes = 0;
    size_t scales = 0;         // of WeightView::scale, or pairs with zero points
    size_t zeros = 0;          // of WeightView::zero, unless paired
    size_t nested_absmax = 0;  // f32
    size_t nested_map = 0;     // f32 [256]
  };
  struct Plan {
    size_t code_bytes = 0;
    size_t scale_bytes = 0;
    size_t columns = 0;  // int32 [k], bytes into the scales buffer; of all segments
    std::vector<Layout> segments;
  };
  /// Takes `bytes` at `host`, valid during the call only, to device memory at `device`.
  using Upload = std::function<void(const void* host, size_t bytes, void* device)>;
  /// Its inverse.
  using Download = std::function<void(const void* device, size_t bytes, void* host)>;

  static constexpr size_t kPieceBytes = size_t{4} << 20;

  /// UNIMPLEMENTED for more segments than WeightView::kMaxSegments, and for more rows, columns or
  /// flat blocks of a segment than 32-bit indices of the kernels count.
  static absl::Status CheckSupported(const QuantFormat& format, int64_t k,
                                     const std::vector<RowSegment>& segments);
  static Plan PlanFor(const QuantFormat& format, int64_t k,
                      const std::vector<RowSegment>& segments);

  /// The buffers have the plan's bytes and are 256-byte aligned. CheckSupported was OK.
  CudaPackedWeight(const QuantFormat& format, int64_t k, std::vector<RowSegment> segments,
                   Plan plan, Buffer codes, Buffer scales);

  const WeightView& view() const { return view_; }
  int64_t bytes() const override { return static_cast<int64_t>(codes_.bytes() + scales_.bytes()); }

  /// Makes the device image of `segment` from `matrix`, which the caller has checked
  /// (CheckPackRows).
  void Pack(size_t segment, const QuantizedMatrix& matrix, const Upload& upload);
  /// The part of Pack behind the codes, for a segment that was quantized on the device: `matrix`
  /// needs scales (and zero points, and columns) and nothing else.
  void PackScales(size_t segment, const QuantizedMatrix& matrix, const Upload& upload);
  /// The exact inverse of Pack.
  QuantizedMatrix Unpack(size_t segment, const Download& download) const;

 private:
  void PackCodes4(size_t segment, const QuantizedMatrix& matrix, const Upload& upload);
  void PackCodes2(size_t segment, const QuantizedMatrix& matrix, const Upload& upload);
  /// Block whose values are at `place` of a segment's arrays; -1: padding.
  int64_t BlockAtPlace(size_t segment, int64_t place) const;
  uint8_t* DeviceCodes(size_t segment) const;
  std::byte* DeviceScales(size_t offset) const { return scales_.as<std::byte>() + offset; }

  Plan plan_;
  Buffer codes_;
  Buffer scales_;
  WeightView view_;
};

}  // namespace quantd::QUANTD_CUDA_NS
