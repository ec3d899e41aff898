// The packer; see packed_weight.h for its contract and weight_view.h for the layout.
#include "kernels/cuda/packed_weight.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <limits>

#include "kernels/status.h"

namespace quantd::QUANTD_CUDA_NS {
namespace {

static_assert(std::endian::native == std::endian::little);

bool IsBlock4(const QuantFormat& format) { return BitsOf(format.codec) == 4; }

bool HasTiledScales(const QuantFormat& format, int64_t k) {
  return IsBlock4(format) && k % format.block.size == 0 && format.block.size % kTileCols == 0;
}

int64_t PaddedK(const QuantFormat& format, int64_t k) {
  return IsBlock4(format) ? (k + kTileCols - 1) / kTileCols * kTileCols : k;
}

int64_t RowTiles(int64_t rows) { return (rows + kTileRows - 1) / kTileRows; }

int64_t FlatBlocks(const QuantFormat& format, int64_t rows, int64_t k) {
  return (rows * k + format.block.size - 1) / format.block.size;
}

/// Scales of a segment, with the padding of tiles.
int64_t ScaleCount(const QuantFormat& format, int64_t rows, int64_t k) {
  if (format.codec == Codec::kInt8) return rows;
  if (HasTiledScales(format, k)) return RowTiles(rows) * kTileRows * (k / format.block.size);
  return FlatBlocks(format, rows, k);
}

int64_t NestedGroups(const QuantFormat& format, int64_t rows, int64_t k) {
  return (FlatBlocks(format, rows, k) + kNestedGroup - 1) / kNestedGroup;
}

/// The code whose value is zero, with which tiles are padded.
uint8_t ZeroCode(Codec codec) { return codec == Codec::kNf4 ? 7 : 0; }

/// Reserves `bytes` at the next multiple of `alignment`; returns where.
size_t Reserve(size_t& total, size_t bytes, size_t alignment) {
  const size_t at = (total + alignment - 1) / alignment * alignment;
  total = at + bytes;
  return at;
}

void UploadInPieces(const void* host, size_t bytes, void* device,
                    const CudaPackedWeight::Upload& upload) {
  for (size_t at = 0; at < bytes; at += CudaPackedWeight::kPieceBytes) {
    upload(static_cast<const std::byte*>(host) + at,
           std::min(bytes - at, CudaPackedWeight::kPieceBytes),
           static_cast<std::byte*>(device) + at);
  }
}

template <typename T>
void UploadAll(const std::vector<T>& values, void* device, const CudaPackedWeight::Upload& upload) {
  UploadInPieces(values.data(), values.size() * sizeof(T), device, upload);
}

/// Eight codes -> four bytes of two, the earlier code high, each in the low half of 16 bits.
uint64_t PairsOf(const uint8_t* codes) {
  uint64_t v;
  std::memcpy(&v, codes, sizeof(v));
  return (v << 4 | v >> 8) & 0x00ff00ff00ff00ffu;
}

/// One tile: 16 rows of 64 codes, `stride` bytes apart -> 512 bytes of fragments.
void PackTile(const uint8_t* codes, int64_t stride, uint32_t* out) {
  for (int g = 0; g < 8; ++g) {
    const uint8_t* const low = codes + g * stride;
    const uint8_t* const high = low + 8 * stride;
    for (int s = 0; s < 4; ++s) {
      // Registers a0 (row g), a1 (row g + 8), a2 and a3 (the same, eight columns on) of four lanes.
      const uint64_t a01 = PairsOf(low + 16 * s) | PairsOf(high + 16 * s) << 8;
      const uint64_t a23 = PairsOf(low + 16 * s + 8) | PairsOf(high + 16 * s + 8) << 8;
      for (int t = 0; t < 4; ++t) {
        out[(4 * g + t) * 4 + s] = static_cast<uint32_t>(a01 >> (16 * t) & 0xffffu) |
                                   static_cast<uint32_t>(a23 >> (16 * t) & 0xffffu) << 16;
      }
    }
  }
}

}  // namespace

absl::Status CudaPackedWeight::CheckSupported(const QuantFormat& format, int64_t k,
                                              const std::vector<RowSegment>& segments) {
  if (segments.size() > WeightView::kMaxSegments) {
    return Unimplemented("the cuda backend fuses at most {} modules into a weight, not {}",
                         WeightView::kMaxSegments, segments.size());
  }
  constexpr int64_t kMax = std::numeric_limits<int32_t>::max() - 4096;
  int64_t rows = 0;
  for (const RowSegment& s : segments) {
    rows += s.rows;
    if (rows > kMax || k > kMax || (IsBlock4(format) && FlatBlocks(format, s.rows, k) > kMax)) {
      return Unimplemented("the cuda backend has no kernels for {} rows of {}", rows, k);
    }
  }
  return absl::OkStatus();
}

CudaPackedWeight::Plan CudaPackedWeight::PlanFor(const QuantFormat& format, int64_t k,
                                                 const std::vector<RowSegment>& segments) {
  Plan plan;
  for (const RowSegment& s : segments) {
    Layout layout;
    if (IsBlock4(format)) {
      layout.codes = Reserve(
          plan.code_bytes,
          static_cast<size_t>(RowTiles(s.rows) * PaddedK(format, k) / kTileCols) * kTileBytes, 1);
    } else {  // rows of all segments without gaps: one matrix
      layout.codes =
          Reserve(plan.code_bytes, static_cast<size_t>(s.rows * k * BitsOf(format.codec) / 8), 1);
    }
    const size_t scales =
        format.scale == ScaleType::kNone ? 0 : static_cast<size_t>(ScaleCount(format, s.rows, k));
    if (format.scale == ScaleType::kF32 || format.scale == ScaleType::kAbsmax) {
      // Int8 rows: SCB of all segments is one array too.
      layout.scales = Reserve(plan.scale_bytes, scales * sizeof(float), IsBlock4(format) ? 16 : 4);
    } else if (format.scale == ScaleType::kNested) {
      layout.scales = Reserve(plan.scale_bytes, scales, 16);
      layout.nested_absmax = Reserve(
          plan.scale_bytes, static_cast<size_t>(NestedGroups(format, s.rows, k)) * sizeof(float),
          sizeof(float));
      layout.nested_map = Reserve(plan.scale_bytes, 256 * sizeof(float), sizeof(float));
    }
    plan.segments.push_back(layout);
  }
  return plan;
}

CudaPackedWeight::CudaPackedWeight(const QuantFormat& format, int64_t k,
                                   std::vector<RowSegment> segments, Plan plan, Buffer codes,
                                   Buffer scales)
    : PackedWeight(format, k, std::move(segments)),
      plan_(std::move(plan)),
      codes_(std::move(codes)),
      scales_(std::move(scales)) {
  view_.codec = format.codec;
  view_.nested = format.scale == ScaleType::kNested;
  view_.tiled_scales = HasTiledScales(format, k);
  view_.block = IsBlock4(format) ? format.block.size : 0;
  view_.n = static_cast<int32_t>(n());
  view_.k = static_cast<int32_t>(k);
  view_.padded_k = static_cast<int32_t>(PaddedK(format, k));
  view_.num_segments = static_cast<int32_t>(this->segments().size());
  int32_t row = 0;
  for (size_t i = 0; i < this->segments().size(); ++i) {
    const Layout& layout = plan_.segments[i];
    WeightSegment& s = view_.segments[i];
    s.first_row = row;
    s.rows = static_cast<int32_t>(this->segments()[i].rows);
    s.first_tile = view_.row_tiles;
    s.codes = DeviceCodes(i);
    const void* const scale = DeviceScales(layout.scales);
    if (format.scale != ScaleType::kNone && !view_.nested) s.scales = static_cast<const float*>(scale);
    if (view_.nested) {
      s.nested_codes = static_cast<const uint8_t*>(scale);
      s.nested_absmax = reinterpret_cast<const float*>(DeviceScales(layout.nested_absmax));
      s.nested_map = reinterpret_cast<const float*>(DeviceScales(layout.nested_map));
    }
    row += s.rows;
    view_.row_tiles += static_cast<int32_t>(RowTiles(s.rows));
  }
}

uint8_t* CudaPackedWeight::DeviceCodes(size_t segment) const {
  return codes_.as<uint8_t>() + plan_.segments[segment].codes;
}

void CudaPackedWeight::Pack(size_t segment, const QuantizedMatrix& matrix, const Upload& upload) {
  if (IsBlock4(format())) {
    PackCodes4(segment, matrix, upload);
  } else {
    UploadAll(matrix.codes, DeviceCodes(segment), upload);
  }
  PackScales(segment, matrix, upload);
}

void CudaPackedWeight::PackScales(size_t segment, const QuantizedMatrix& matrix,
                                  const Upload& upload) {
  const Layout& layout = plan_.segments[segment];
  if (format().scale == ScaleType::kF32 || format().scale == ScaleType::kAbsmax) {
    if (view_.tiled_scales) {
      PackTiledScales(segment, matrix.scales, upload);
    } else {
      UploadAll(matrix.scales, DeviceScales(layout.scales), upload);
    }
  } else if (format().scale == ScaleType::kNested) {
    if (view_.tiled_scales) {
      PackTiledScales(segment, matrix.nested_codes, upload);
    } else {
      UploadAll(matrix.nested_codes, DeviceScales(layout.scales), upload);
    }
    UploadAll(matrix.nested_absmax, DeviceScales(layout.nested_absmax), upload);
    UploadAll(matrix.nested_map, DeviceScales(layout.nested_map), upload);
    view_.segments[segment].nested_offset = matrix.nested_offset;
  }
}

void CudaPackedWeight::PackCodes4(size_t segment, const QuantizedMatrix& matrix,
                                  const Upload& upload) {
  const int64_t rows = matrix.n, columns = matrix.k;
  const int64_t k_tiles = view_.padded_k / kTileCols;
  const int64_t tiles = RowTiles(rows) * k_tiles;
  constexpr int64_t kPieceTiles = kPieceBytes / kTileBytes;
  constexpr size_t kTileWords = kTileBytes / sizeof(uint32_t);
  std::vector<uint32_t> piece(static_cast<size_t>(std::min(tiles, kPieceTiles)) * kTileWords);
  uint8_t padded[kTileRows * kTileCols];
  for (int64_t first = 0; first < tiles; first += kPieceTiles) {
    const int64_t count = std::min(kPieceTiles, tiles - first);
    for (int64_t i = 0; i < count; ++i) {
      const int64_t row = (first + i) / k_tiles * kTileRows;
      const int64_t column = (first + i) % k_tiles * kTileCols;
      const uint8_t* const codes = matrix.codes.data() + row * columns + column;
      uint32_t* const out = piece.data() + static_cast<size_t>(i) * kTileWords;
      if (row + kTileRows <= rows && column + kTileCols <= columns) {
        PackTile(codes, columns, out);
        continue;
      }
      std::memset(padded, ZeroCode(format().codec), sizeof(padded));
      const size_t width = static_cast<size_t>(std::min<int64_t>(kTileCols, columns - column));
      for (int64_t r = 0; r < std::min<int64_t>(kTileRows, rows - row); ++r) {
        std::memcpy(padded + r * kTileCols, codes + r * columns, width);
      }
      PackTile(padded, kTileCols, out);
    }
    upload(piece.data(), static_cast<size_t>(count) * kTileBytes,
           DeviceCodes(segment) + first * kTileBytes);
  }
}

template <typename T>
void CudaPackedWeight::PackTiledScales(size_t segment, const std::vector<T>& scales,
                                       const Upload& upload) {
  const int64_t rows = segments()[segment].rows;
  const int64_t blocks = k() / format().block.size;  // of a row
  const int64_t columns = RowTiles(rows) * blocks;   // of 16 scales
  constexpr int64_t kPieceColumns = kPieceBytes / (kTileRows * sizeof(T));
  std::vector<T> piece(static_cast<size_t>(std::min(columns, kPieceColumns)) * kTileRows);
  std::byte* const device = DeviceScales(plan_.segments[segment].scales);
  for (int64_t first = 0; first < columns; first += kPieceColumns) {
    const int64_t count = std::min(kPieceColumns, columns - first);
    for (int64_t i = 0; i < count; ++i) {
      const int64_t row = (first + i) / blocks * kTileRows, block = (first + i) % blocks;
      for (int64_t r = 0; r < kTileRows; ++r) {
        piece[static_cast<size_t>(i * kTileRows + r)] =
            row + r < rows ? scales[static_cast<size_t>((row + r) * blocks + block)] : T{};
      }
    }
    upload(piece.data(), static_cast<size_t>(count * kTileRows) * sizeof(T),
           device + static_cast<size_t>(first * kTileRows) * sizeof(T));
  }
}

QuantizedMatrix CudaPackedWeight::Unpack(size_t segment, const Download& download) const {
  const Layout& layout = plan_.segments[segment];
  QuantizedMatrix m;
  m.format = format();
  m.n = segments()[segment].rows;
  m.k = k();
  if (!IsBlock4(format())) {
    m.codes.resize(static_cast<size_t>(m.n * m.k * BitsOf(format().codec) / 8));
    download(DeviceCodes(segment), m.codes.size(), m.codes.data());
  } else {
    std::vector<uint8_t> packed(
        static_cast<size_t>(RowTiles(m.n) * (view_.padded_k / kTileCols) * kTileBytes));
    download(DeviceCodes(segment), packed.size(), packed.data());
    m.codes.resize(static_cast<size_t>(m.n * m.k));
    for (int64_t i = 0; i < m.n * m.k; ++i) {
      const NibblePlace place = PlaceOfNibble(i / m.k, i % m.k, view_.padded_k);
      const uint8_t pair = packed[static_cast<size_t>(place.byte)];
      m.codes[static_cast<size_t>(i)] = place.high ? pair >> 4 : pair & 15;
    }
  }
  if (format().scale == ScaleType::kNone) return m;

  const auto read_scales = [&]<typename T>(std::vector<T>& scales) {
    std::vector<T> stored(static_cast<size_t>(ScaleCount(format(), m.n, m.k)));
    download(DeviceScales(layout.scales), stored.size() * sizeof(T), stored.data());
    if (!view_.tiled_scales) {
      scales = std::move(stored);
      return;
    }
    const int64_t blocks = m.k / format().block.size;
    for (int64_t i = 0; i < m.n * blocks; ++i) {
      const int64_t row = i / blocks, block = i % blocks;
      scales.push_back(stored[static_cast<size_t>((row / kTileRows * blocks + block) * kTileRows +
                                                  row % kTileRows)]);
    }
  };
  if (format().scale == ScaleType::kF32 || format().scale == ScaleType::kAbsmax) {
    read_scales(m.scales);
    return m;
  }
  read_scales(m.nested_codes);
  m.nested_map.resize(256);
  download(DeviceScales(layout.nested_map), 256 * sizeof(float), m.nested_map.data());
  m.nested_absmax.resize(static_cast<size_t>(NestedGroups(format(), m.n, m.k)));
  download(DeviceScales(layout.nested_absmax), m.nested_absmax.size() * sizeof(float),
           m.nested_absmax.data());
  m.nested_offset = view_.segments[segment].nested_offset;
  return m;
}

}  // namespace quantd::QUANTD_CUDA_NS
