#include "engine/plan/packed_bytes.h"

#include "engine/plan/sizes.h"

namespace quantd {
namespace {

using plan::RoundUp;

constexpr int64_t kRowsOfPanel = 16;    // of cpu's panels and of cuda's tiles
constexpr int64_t kColumnsOfTile = 64;  // of cuda's tiles of 4-bit codes
constexpr int64_t kNestedMapBytes = 256 * 4;
constexpr int64_t kScalesOfStatistic = 256;

int64_t BytesOf(ScaleType type) {
  switch (type) {
    case ScaleType::kNone: return 0;
    case ScaleType::kNested:
    case ScaleType::kE4M3: return 1;
    case ScaleType::kF16:
    case ScaleType::kBF16: return 2;
    case ScaleType::kF32:
    case ScaleType::kAbsmax: return 4;
  }
  return 0;
}

int64_t BytesOf(ZeroType type) {
  switch (type) {
    case ZeroType::kNone: return 0;
    case ZeroType::kU8: return 1;
    case ZeroType::kF16:
    case ZeroType::kBF16:
    case ZeroType::kAddedBF16: return 2;
    case ZeroType::kF32:
    case ZeroType::kAddedF32: return 4;
  }
  return 0;
}

/// Columns that share a scale where these are whole steps of `step` columns of one row; 0 where
/// they are not.
int64_t ColumnsOfBlock(const BlockShape& block, int64_t k, int64_t step) {
  const bool whole = block.size > 0 && block.size % step == 0;
  switch (block.kind) {
    case BlockShape::Kind::kRow: return RoundUp(k, step);
    case BlockShape::Kind::kGroup:
      return block.size >= k ? RoundUp(k, step) : whole ? block.size : 0;
    case BlockShape::Kind::kFlat: return whole && k % block.size == 0 ? block.size : 0;
    default: return 0;
  }
}

PackedBytes OfRef(const QuantFormat& f, int64_t n, int64_t k) {
  const int64_t blocks = f.block.Count(n, k);
  PackedBytes bytes;
  bytes.codes = RoundUp(CeilDiv(n * k * BitsOf(f.codec), 8), 4);
  bytes.scales = RoundUp(blocks * BytesOf(f.scale), 4) + RoundUp(blocks * BytesOf(f.zero), 4);
  if (f.scale == ScaleType::kNested) {
    bytes.scales += CeilDiv(blocks, kScalesOfStatistic) * 4 + kNestedMapBytes + 4;  // the offset
  }
  if (f.scale == ScaleType::kE4M3) bytes.scales += 4;  // of the whole matrix
  return bytes;
}

PackedBytes OfCpu(const QuantFormat& f, int64_t n, int64_t k) {
  constexpr int64_t kLine = 64;
  const int64_t chunk = f.codec == Codec::kUInt2 ? 16 : 8;
  const int64_t rows = RoundUp(n, kRowsOfPanel);
  const int64_t blocks = f.block.Count(n, k);
  const int64_t columns = ColumnsOfBlock(f.block, k, chunk);
  const int64_t places = columns > 0 ? rows * CeilDiv(k, columns) : blocks;
  PackedBytes bytes;
  bytes.codes = rows * RoundUp(k, chunk) * BitsOf(f.codec) / 8;
  bytes.scales =
      RoundUp(places * BytesOf(f.scale), kLine) + RoundUp(places * BytesOf(f.zero), kLine);
  if (f.scale == ScaleType::kNested) {
    bytes.scales += kNestedMapBytes + RoundUp(CeilDiv(blocks, kScalesOfStatistic) * 4, kLine);
  }
  const bool row_sums = f.codec == Codec::kInt8 && f.zero == ZeroType::kNone &&
                        f.block.kind == BlockShape::Kind::kRow;
  if (row_sums) bytes.scales += rows * 4;
  return bytes;
}

/// A scale and a zero point that cuda keeps in one word of twice the scale's width.
bool SharesAWord(const QuantFormat& f) {
  const bool half = f.scale == ScaleType::kF16 || f.scale == ScaleType::kBF16;
  const bool same = (f.scale == ScaleType::kF16 && f.zero == ZeroType::kF16) ||
                    (f.scale == ScaleType::kBF16 &&
                     (f.zero == ZeroType::kBF16 || f.zero == ZeroType::kAddedBF16));
  return half && (f.zero == ZeroType::kU8 || same);
}

PackedBytes OfCuda(const QuantFormat& f, int64_t n, int64_t k) {
  const bool tiles = BitsOf(f.codec) == 4;
  const int64_t rows = RoundUp(n, kRowsOfPanel);
  const int64_t blocks = f.block.Count(n, k);
  const int64_t columns = tiles ? ColumnsOfBlock(f.block, k, kColumnsOfTile) : 0;
  const bool staged =
      columns > 0 && f.scale != ScaleType::kE4M3 && (f.zero == ZeroType::kNone || SharesAWord(f));
  PackedBytes bytes;
  bytes.codes = tiles ? rows * RoundUp(k, kColumnsOfTile) / 2 : CeilDiv(n * k * BitsOf(f.codec), 8);
  if (staged) {
    const int64_t word = f.zero == ZeroType::kNone ? BytesOf(f.scale) : 4;
    bytes.scales = rows * CeilDiv(k, columns) * word;
  } else {
    bytes.scales = blocks * (BytesOf(f.scale) + BytesOf(f.zero));
  }
  if (f.scale == ScaleType::kNested) {
    bytes.scales += CeilDiv(blocks, kScalesOfStatistic) * 4 + kNestedMapBytes;
  }
  // Where the next module's may begin; of others whole words.
  bytes.scales = RoundUp(bytes.scales, staged ? 16 : 4);
  return bytes;
}

}  // namespace

PackedBytes PackedBytesOf(PlanBackend backend, const QuantFormat& format, int64_t n, int64_t k) {
  switch (backend) {
    case PlanBackend::kRef: return OfRef(format, n, k);
    case PlanBackend::kCpu: return OfCpu(format, n, k);
    case PlanBackend::kCuda: return OfCuda(format, n, k);
  }
  return {};
}

int64_t ColumnOrderBytes(const QuantFormat& format, int64_t k) {
  return format.reordered ? 4 * k : 0;
}

}  // namespace quantd
