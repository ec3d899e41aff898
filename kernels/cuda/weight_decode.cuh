// Reading a WeightView on the device: segments, scales, and results of any type.
#pragma once

#include <bit>
#include <cstdint>

#include "kernels/cuda/numeric.cuh"
#include "kernels/cuda/ops.h"
#include "kernels/cuda/ptx.cuh"
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

/// Element i of an array of `type`, as it is.
__device__ __forceinline__ float LoadStored(Stored type, const void* data, int64_t i) {
  switch (type) {
    case Stored::kF32: return static_cast<const float*>(data)[i];
    case Stored::kF16: return FloatOfF16(static_cast<const uint16_t*>(data)[i]);
    case Stored::kBF16: return FloatOfBF16(static_cast<const uint16_t*>(data)[i]);
    case Stored::kE4M3: return E4M3Codec::Decode(static_cast<const uint8_t*>(data)[i]);
    case Stored::kU8: return static_cast<float>(static_cast<const uint8_t*>(data)[i]);
    default: return 0.0f;
  }
}

/// A scale or zero point of a pair: `type` is kF16 or kBF16.
__device__ __forceinline__ float FloatOfHalf(Stored type, uint16_t bits) {
  return type == Stored::kBF16 ? FloatOfBF16(bits) : FloatOfF16(bits);
}

/// The number that `bits`, zero-extended, are when stored as `type`: LoadStored in two steps, for
/// loads that run ahead.
__device__ __forceinline__ float FloatOfBits(Stored type, uint32_t bits) {
  const auto half = static_cast<uint16_t>(bits);
  const float as_half = type == Stored::kBF16 ? FloatOfBF16(half) : FloatOfF16(half);
  const float as_integer = static_cast<float>(bits & 0xffu);
  return type == Stored::kF32  ? std::bit_cast<float>(bits)
         : type == Stored::kU8 ? as_integer
                               : as_half;
}

/// The scale of a row where HasRowScales.
__device__ __forceinline__ float LoadRowScale(Stored type, const void* scales, int64_t row) {
  if (type == Stored::kF32) return static_cast<const float*>(scales)[row];
  return FloatOfHalf(type, static_cast<const uint16_t*>(scales)[row]);
}

/// Where the scale of element (row, col) of a segment is; row within the segment.
__device__ __forceinline__ int64_t BlockPlace(const WeightView& w, const WeightSegment& segment,
                                              int row, int col) {
  const int64_t flat = static_cast<int64_t>(row) * w.k + col;
  switch (w.order) {
    case BlockOrder::kFlat: return flat / w.block;
    case BlockOrder::kStrided: return flat % segment.blocks;
    case BlockOrder::kTiled:
      return (static_cast<int64_t>(row / kTileRows) * w.row_blocks + col / w.block) * kTileRows +
             row % kTileRows;
    default: return static_cast<int64_t>(row / w.block_rows) * w.row_blocks + col / w.block;
  }
}

/// Scale and zero point of a block.
struct BlockValues {
  float scale = 1.0f;
  float zero = 0.0f;
};

/// Those at `place`, which is BlockPlace of (row, col).
__device__ __forceinline__ BlockValues BlockAt(const WeightView& w, const WeightSegment& segment,
                                               int64_t place, int row, int col) {
  if (w.paired) {
    const uint32_t pair = static_cast<const uint32_t*>(segment.scales)[place];
    return {FloatOfHalf(w.scale, static_cast<uint16_t>(pair)),
            FloatOfHalf(w.scale, static_cast<uint16_t>(pair >> 16))};
  }
  BlockValues values;
  if (w.scale == Stored::kNested) {
    const int64_t flat = w.order == BlockOrder::kTiled
                             ? static_cast<int64_t>(row) * w.row_blocks + col / w.block
                             : place;
    values.scale =
        NestedScale(segment.nested_map[static_cast<const uint8_t*>(segment.scales)[place]],
                    segment.nested_absmax[flat / kNestedGroup], segment.scale_base);
  } else if (w.scale == Stored::kE4M3) {
    values.scale = __fdiv_rn(LoadStored(w.scale, segment.scales, place), segment.scale_base);
  } else {
    values.scale = __fmul_rn(LoadStored(w.scale, segment.scales, place), w.scale_step);
  }
  values.zero = LoadStored(w.zero, segment.zeros, place);
  return values;
}
__device__ __forceinline__ BlockValues BlockOf(const WeightView& w, const WeightSegment& segment,
                                               int row, int col) {
  return BlockAt(w, segment, BlockPlace(w, segment, row, col), row, col);
}

/// QuantizedMatrix::Dequantize of a code's value: every operation rounded, none contracted.
__device__ __forceinline__ float Dequantized(const WeightView& w, float code,
                                             const BlockValues& block) {
  if (w.added_zero) return __fadd_rn(__fmul_rn(code, block.scale), block.zero);
  return __fmul_rn(__fsub_rn(code, block.zero), block.scale);
}

/// The value of a code of one byte.
__device__ __forceinline__ float ByteCode(Codec codec, uint8_t code) {
  return codec == Codec::kInt8   ? Int8Codec::Decode(code)
         : codec == Codec::kE4M3 ? E4M3Codec::Decode(code)
                                 : static_cast<float>(code);
}

/// The value of code (row, col) of codes that lie row-major: of one byte, or of two bits.
template <int kBits>
__device__ __forceinline__ float RowMajorCode(const WeightView& w, const WeightSegment& segment,
                                              int row, int col) {
  const int64_t flat = static_cast<int64_t>(row) * w.k + col;
  if constexpr (kBits == 2) {
    return static_cast<float>(segment.codes[flat / 4] >> (flat % 4 * 2) & 3);
  } else {
    return ByteCode(w.codec, segment.codes[flat]);
  }
}

/// Codes of one byte offset .. offset + 15 of a row, zero from column k on; offset is a multiple of
/// 16. kAligned: HasAlignedRows.
template <bool kAligned>
__device__ __forceinline__ uint4 Load16Codes(const void* row, int offset, int k) {
  const auto* const codes = static_cast<const uint8_t*>(row);
  if constexpr (kAligned) {
    return offset < k ? LoadStreaming(codes + offset) : make_uint4(0, 0, 0, 0);
  } else {
    uint32_t words[4] = {0, 0, 0, 0};
#pragma unroll
    for (int i = 0; i < 16; ++i) {
      if (offset + i < k) words[i / 4] |= static_cast<uint32_t>(codes[offset + i]) << 8 * (i % 4);
    }
    return make_uint4(words[0], words[1], words[2], words[3]);
  }
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

// ---- host ----

/// True when every row of codes of one byte is 16-byte aligned.
inline bool HasAlignedRows(const WeightView& w) {
  bool aligned = w.k % 16 == 0;
  for (int s = 0; s < w.num_segments; ++s) {
    aligned = aligned && reinterpret_cast<uintptr_t>(w.segments[s].codes) % 16 == 0;
  }
  return aligned;
}

}  // namespace quantd::QUANTD_CUDA_NS
