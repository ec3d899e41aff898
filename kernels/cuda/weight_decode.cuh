// Reading a WeightView on the device: segments, scales, and results of any type.
#pragma once

#include <cstdint>

#include "kernels/cuda/numeric.cuh"
#include "kernels/cuda/ops.h"
#include "kernels/cuda/weight_view.h"

namespace quantd::QUANTD_CUDA_NS {

/// Segments are selected, not indexed: a kernel argument indexed by a register would be copied to
/// local memory.
__device__ __forceinline__ WeightSegment SegmentAt(const WeightView& w, int index) {
  WeightSegment segment = w.segments[0];
#pragma unroll
  for (int i = 1; i < WeightView::kMaxSegments; ++i) {
    if (i == index) segment = w.segments[i];
  }
  return segment;
}

/// The segment that holds row tile `tile` (counted over all segments).
__device__ __forceinline__ int SegmentIndexOfTile(const WeightView& w, int tile) {
  int index = 0;
#pragma unroll
  for (int i = 1; i < WeightView::kMaxSegments; ++i) {
    if (i < w.num_segments && tile >= w.segments[i].first_tile) index = i;
  }
  return index;
}
__device__ __forceinline__ WeightSegment SegmentOfTile(const WeightView& w, int tile) {
  return SegmentAt(w, SegmentIndexOfTile(w, tile));
}

/// The segment that holds output `row`.
__device__ __forceinline__ WeightSegment SegmentOfRow(const WeightView& w, int row) {
  int index = 0;
#pragma unroll
  for (int i = 1; i < WeightView::kMaxSegments; ++i) {
    if (i < w.num_segments && row >= w.segments[i].first_row) index = i;
  }
  return SegmentAt(w, index);
}

/// A double-quantized scale: two roundings, as the definition has it; an fma would make one.
__device__ __forceinline__ float NestedScale(float mapped, float absmax, float offset) {
  return __fadd_rn(__fmul_rn(mapped, absmax), offset);
}

/// Scale of element (row, col) of a segment of 4-bit weights; row within the segment.
__device__ __forceinline__ float BlockScale(const WeightView& w, const WeightSegment& segment,
                                            int row, int col) {
  const int64_t flat = (static_cast<int64_t>(row) * w.k + col) / w.block;
  const int64_t place =
      w.tiled_scales
          ? (static_cast<int64_t>(row / kTileRows) * (w.k / w.block) + col / w.block) * kTileRows +
                row % kTileRows
          : flat;
  if (!w.nested) return segment.scales[place];
  return NestedScale(segment.nested_map[segment.nested_codes[place]],
                     segment.nested_absmax[flat / kNestedGroup], segment.nested_offset);
}

/// y[index] = value, rounded to `type`.
__device__ __forceinline__ void StoreFloat(FloatType type, void* y, int64_t index, float value) {
  if (type == FloatType::kBF16) {
    static_cast<BF16*>(y)[index] = FromFloat<BF16>(value);
  } else if (type == FloatType::kF16) {
    static_cast<F16*>(y)[index] = FromFloat<F16>(value);
  } else {
    static_cast<float*>(y)[index] = value;
  }
}

/// x[index] of `type` as f32.
__device__ __forceinline__ float LoadFloat(FloatType type, const void* x, int64_t index) {
  if (type == FloatType::kBF16) return ToFloat(static_cast<const BF16*>(x)[index]);
  if (type == FloatType::kF16) return ToFloat(static_cast<const F16*>(x)[index]);
  return static_cast<const float*>(x)[index];
}

}  // namespace quantd::QUANTD_CUDA_NS
