// The packer; see packed_weight.h for its contract and weight_view.h for the layout.
#include "kernels/cuda/packed_weight.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <limits>

#include "kernels/ceil_div.h"
#include "kernels/status.h"

namespace quantd::QUANTD_CUDA_NS {
namespace {

static_assert(std::endian::native == std::endian::little);

bool IsBlock4(const QuantFormat& format) { return BitsOf(format.codec) == 4; }

int64_t PaddedK(const QuantFormat& format, int64_t k) {
  return IsBlock4(format) ? CeilDiv(k, kTileCols) * kTileCols : k;
}

int64_t RowTiles(int64_t rows) { return CeilDiv(rows, kTileRows); }

Stored StoredOf(ScaleType type) {
  switch (type) {
    case ScaleType::kNone: return Stored::kNone;
    case ScaleType::kF32:
    case ScaleType::kAbsmax: return Stored::kF32;
    case ScaleType::kF16: return Stored::kF16;
    case ScaleType::kBF16: return Stored::kBF16;
    case ScaleType::kNested: return Stored::kNested;
    case ScaleType::kE4M3: return Stored::kE4M3;
  }
  return Stored::kNone;
}

Stored StoredOf(ZeroType type) {
  switch (type) {
    case ZeroType::kNone: return Stored::kNone;
    case ZeroType::kU8: return Stored::kU8;
    case ZeroType::kF16: return Stored::kF16;
    case ZeroType::kBF16:
    case ZeroType::kAddedBF16: return Stored::kBF16;
    case ZeroType::kF32:
    case ZeroType::kAddedF32: return Stored::kF32;
  }
  return Stored::kNone;
}

size_t SizeOf(Stored type) {
  switch (type) {
    case Stored::kNone: return 0;
    case Stored::kF16:
    case Stored::kBF16: return 2;
    case Stored::kF32: return 4;
    default: return 1;
  }
}

/// `value`, which `type` holds exactly, as it is stored.
uint32_t BitsOf(Stored type, float value) {
  switch (type) {
    case Stored::kU8: return static_cast<uint8_t>(value);
    case Stored::kE4M3: return E4M3Codec::Encode(value);
    case Stored::kF16: return F16(value).bits;
    case Stored::kBF16: return BF16(value).bits;
    default: return std::bit_cast<uint32_t>(value);
  }
}

float FloatOf(Stored type, uint32_t bits) {
  switch (type) {
    case Stored::kU8: return static_cast<float>(bits);
    case Stored::kE4M3: return E4M3Codec::Decode(static_cast<uint8_t>(bits));
    case Stored::kF16: return static_cast<float>(std::bit_cast<F16>(static_cast<uint16_t>(bits)));
    case Stored::kBF16: return static_cast<float>(std::bit_cast<BF16>(static_cast<uint16_t>(bits)));
    default: return std::bit_cast<float>(bits);
  }
}

/// The type that both halves of a pair have.
Stored PairType(const QuantFormat& format) {
  const Stored scale = StoredOf(format.scale), zero = StoredOf(format.zero);
  const bool half = scale == Stored::kF16 || scale == Stored::kBF16;
  return half && (zero == Stored::kU8 || zero == scale) ? scale : Stored::kNone;
}

/// How the blocks of a segment of an [n, k] weight are ordered.
struct Blocks {
  BlockOrder order = BlockOrder::kNone;
  int64_t size = 0;
  int64_t rows = 1;
  int64_t per_row = 0;
  bool paired = false;

  /// Scales in memory, with the padding of tiles.
  int64_t Places(const QuantFormat& format, int64_t n, int64_t k) const {
    if (order == BlockOrder::kTiled) return RowTiles(n) * kTileRows * per_row;
    return format.block.Count(n, k);
  }
};

Blocks BlocksOf(const QuantFormat& format, int64_t k) {
  using Kind = BlockShape::Kind;
  const BlockShape& block = format.block;
  Blocks b;
  b.size = block.size;
  bool tiled = false;  // blocks are whole k tiles of a row
  switch (block.kind) {
    case Kind::kNone: return b;
    case Kind::kRow:
      b.size = PaddedK(format, k);
      tiled = true;
      break;
    case Kind::kGroup:
      if (block.size >= k) b.size = PaddedK(format, k);
      tiled = b.size % kTileCols == 0;
      break;
    case Kind::kFlat: tiled = block.size % kTileCols == 0 && k % block.size == 0; break;
    case Kind::kTile: b.rows = block.rows; break;
    case Kind::kStrided: break;
  }
  b.per_row = CeilDiv(k, b.size);
  b.paired = format.zero != ZeroType::kNone && PairType(format) != Stored::kNone;
  tiled = tiled && IsBlock4(format) && format.scale != ScaleType::kE4M3 &&
          (format.zero == ZeroType::kNone || b.paired);
  b.paired = b.paired && tiled;
  const bool crosses_rows = block.kind == Kind::kFlat && k % block.size != 0;
  b.order = tiled                          ? BlockOrder::kTiled
            : crosses_rows                 ? BlockOrder::kFlat
            : block.kind == Kind::kStrided ? BlockOrder::kStrided
                                           : BlockOrder::kGrid;
  return b;
}

int64_t NestedGroups(const QuantFormat& format, int64_t rows, int64_t k) {
  return CeilDiv(format.block.Count(rows, k), kNestedGroup);
}

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
    if (rows > kMax || k > kMax || format.block.Count(s.rows, k) > kMax) {
      return Unimplemented("the cuda backend has no kernels for {} rows of {}", rows, k);
    }
  }
  return absl::OkStatus();
}

CudaPackedWeight::Plan CudaPackedWeight::PlanFor(const QuantFormat& format, int64_t k,
                                                 const std::vector<RowSegment>& segments) {
  Plan plan;
  const Blocks blocks = BlocksOf(format, k);
  for (const RowSegment& s : segments) {
    Layout layout;
    if (IsBlock4(format)) {
      layout.codes = Reserve(
          plan.code_bytes,
          static_cast<size_t>(RowTiles(s.rows) * PaddedK(format, k) / kTileCols) * kTileBytes, 1);
    } else {  // rows of all segments without gaps: one matrix
      layout.codes =
          Reserve(plan.code_bytes,
                  static_cast<size_t>(CeilDiv(s.rows * k * quantd::BitsOf(format.codec), 8)), 1);
    }
    const auto places = static_cast<size_t>(blocks.Places(format, s.rows, k));
    // Those of rows of all segments are one array too.
    const size_t scale_size = blocks.paired ? 4 : SizeOf(StoredOf(format.scale));
    const size_t alignment = blocks.order == BlockOrder::kTiled ? 16 : scale_size;
    if (scale_size > 0) layout.scales = Reserve(plan.scale_bytes, places * scale_size, alignment);
    const size_t zero_size = blocks.paired ? 0 : SizeOf(StoredOf(format.zero));
    if (zero_size > 0) layout.zeros = Reserve(plan.scale_bytes, places * zero_size, zero_size);
    if (format.scale == ScaleType::kNested) {
      layout.nested_absmax = Reserve(
          plan.scale_bytes, static_cast<size_t>(NestedGroups(format, s.rows, k)) * sizeof(float),
          sizeof(float));
      layout.nested_map = Reserve(plan.scale_bytes, 256 * sizeof(float), sizeof(float));
    }
    plan.segments.push_back(layout);
  }
  if (format.reordered) {
    plan.columns =
        Reserve(plan.scale_bytes, static_cast<size_t>(k) * sizeof(int32_t), sizeof(int32_t));
  }
  Reserve(plan.scale_bytes, 0, sizeof(int32_t));  // LinearBytes reads whole words
  return plan;
}

CudaPackedWeight::CudaPackedWeight(const QuantFormat& format, int64_t k,
                                   std::vector<RowSegment> segments, Plan plan, Buffer codes,
                                   Buffer scales)
    : PackedWeight(format, k, std::move(segments)),
      plan_(std::move(plan)),
      codes_(std::move(codes)),
      scales_(std::move(scales)) {
  const Blocks blocks = BlocksOf(format, k);
  view_.codec = format.codec;
  view_.order = blocks.order;
  view_.scale = StoredOf(format.scale);
  view_.zero = StoredOf(format.zero);
  view_.added_zero = IsAdded(format.zero);
  view_.paired = blocks.paired;
  view_.scale_step = format.scale == ScaleType::kAbsmax ? kInt8Step : 1.0f;
  view_.block = static_cast<int32_t>(blocks.size);
  view_.block_rows = static_cast<int32_t>(blocks.rows);
  view_.row_blocks = static_cast<int32_t>(blocks.per_row);
  view_.n = static_cast<int32_t>(n());
  view_.k = static_cast<int32_t>(k);
  view_.padded_k = static_cast<int32_t>(PaddedK(format, k));
  view_.num_segments = static_cast<int32_t>(this->segments().size());
  if (format.reordered) {
    view_.columns = reinterpret_cast<const int32_t*>(DeviceScales(plan_.columns));
  }
  int32_t row = 0;
  for (size_t i = 0; i < this->segments().size(); ++i) {
    const Layout& layout = plan_.segments[i];
    WeightSegment& s = view_.segments[i];
    s.first_row = row;
    s.rows = static_cast<int32_t>(this->segments()[i].rows);
    s.first_tile = view_.row_tiles;
    s.blocks = format.block.Count(s.rows, k);
    s.codes = DeviceCodes(i);
    if (view_.scale != Stored::kNone) s.scales = DeviceScales(layout.scales);
    if (view_.zero != Stored::kNone && !view_.paired) s.zeros = DeviceScales(layout.zeros);
    if (view_.scale == Stored::kNested) {
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

int64_t CudaPackedWeight::BlockAtPlace(size_t segment, int64_t place) const {
  if (view_.order != BlockOrder::kTiled) return place;
  const int64_t column = place / kTileRows;  // of 16 scales
  const int64_t row = column / view_.row_blocks * kTileRows + place % kTileRows;
  if (row >= segments()[segment].rows) return -1;
  return row * view_.row_blocks + column % view_.row_blocks;
}

void CudaPackedWeight::Pack(size_t segment, const QuantizedMatrix& matrix, const Upload& upload) {
  switch (quantd::BitsOf(format().codec)) {
    case 4: PackCodes4(segment, matrix, upload); break;
    case 2: PackCodes2(segment, matrix, upload); break;
    default: UploadAll(matrix.codes, DeviceCodes(segment), upload);
  }
  PackScales(segment, matrix, upload);
}

void CudaPackedWeight::PackScales(size_t segment, const QuantizedMatrix& matrix,
                                  const Upload& upload) {
  const Layout& layout = plan_.segments[segment];
  const int64_t places = BlocksOf(format(), k()).Places(format(), segments()[segment].rows, k());
  // `bits_of` a block, `size` bytes of them; zero where there is none.
  const auto upload_blocks = [&](size_t size, size_t offset, const auto& bits_of) {
    std::vector<uint8_t> image(static_cast<size_t>(places) * size);
    for (int64_t place = 0; place < places; ++place) {
      const int64_t block = BlockAtPlace(segment, place);
      if (block < 0) continue;
      const uint32_t bits = bits_of(static_cast<size_t>(block));
      std::memcpy(image.data() + static_cast<size_t>(place) * size, &bits, size);
    }
    UploadAll(image, DeviceScales(offset), upload);
  };
  const Stored scale = view_.scale, zero = view_.zero;
  if (view_.paired) {
    upload_blocks(4, layout.scales, [&](size_t b) {
      return BitsOf(scale, matrix.scales[b]) | BitsOf(scale, matrix.zeros[b]) << 16;
    });
  } else if (scale == Stored::kNested) {
    upload_blocks(1, layout.scales, [&](size_t b) { return uint32_t{matrix.nested_codes[b]}; });
    UploadAll(matrix.nested_absmax, DeviceScales(layout.nested_absmax), upload);
    UploadAll(matrix.nested_map, DeviceScales(layout.nested_map), upload);
    view_.segments[segment].scale_base = matrix.nested_offset;
  } else if (scale != Stored::kNone) {
    upload_blocks(SizeOf(scale), layout.scales,
                  [&](size_t b) { return BitsOf(scale, matrix.scales[b]); });
    if (scale == Stored::kE4M3) view_.segments[segment].scale_base = matrix.global_scale;
  }
  if (zero != Stored::kNone && !view_.paired) {
    upload_blocks(SizeOf(zero), layout.zeros,
                  [&](size_t b) { return BitsOf(zero, matrix.zeros[b]); });
  }
  // The same for every segment (CheckPackRows).
  if (format().reordered && segment == 0) {
    UploadAll(matrix.columns, DeviceScales(plan_.columns), upload);
  }
}

void CudaPackedWeight::PackCodes2(size_t segment, const QuantizedMatrix& matrix,
                                  const Upload& upload) {
  std::vector<uint8_t> image((matrix.codes.size() + 3) / 4);
  for (size_t i = 0; i < matrix.codes.size(); ++i) {
    image[i / 4] |= static_cast<uint8_t>((matrix.codes[i] & 3) << i % 4 * 2);
  }
  UploadAll(image, DeviceCodes(segment), upload);
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
      std::memset(padded, ZeroCodeOf(format().codec), sizeof(padded));
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

QuantizedMatrix CudaPackedWeight::Unpack(size_t segment, const Download& download) const {
  const Layout& layout = plan_.segments[segment];
  QuantizedMatrix m;
  m.format = format();
  m.n = segments()[segment].rows;
  m.k = k();
  const int bits = quantd::BitsOf(format().codec);
  const auto elements = static_cast<size_t>(m.n * m.k);
  std::vector<uint8_t> packed(
      bits == 4 ? static_cast<size_t>(RowTiles(m.n) * (view_.padded_k / kTileCols) * kTileBytes)
                : (elements * static_cast<size_t>(bits) + 7) / 8);
  download(DeviceCodes(segment), packed.size(), packed.data());
  if (bits >= 8) {
    m.codes = std::move(packed);
  } else {
    m.codes.resize(elements);
    for (size_t i = 0; i < elements; ++i) {
      if (bits == 2) {
        m.codes[i] = packed[i / 4] >> i % 4 * 2 & 3;
        continue;
      }
      const NibblePlace place = PlaceOfNibble(static_cast<int64_t>(i) / m.k,
                                              static_cast<int64_t>(i) % m.k, view_.padded_k);
      const uint8_t pair = packed[static_cast<size_t>(place.byte)];
      m.codes[i] = place.high ? pair >> 4 : pair & 15;
    }
  }

  const int64_t places = BlocksOf(format(), k()).Places(format(), m.n, m.k);
  const auto blocks = static_cast<size_t>(format().block.Count(m.n, m.k));
  // Calls store(block, bits) for every block.
  const auto read_blocks = [&](size_t size, size_t offset, const auto& store) {
    std::vector<uint8_t> image(static_cast<size_t>(places) * size);
    download(DeviceScales(offset), image.size(), image.data());
    for (int64_t place = 0; place < places; ++place) {
      const int64_t block = BlockAtPlace(segment, place);
      uint32_t value = 0;
      std::memcpy(&value, image.data() + static_cast<size_t>(place) * size, size);
      if (block >= 0) store(static_cast<size_t>(block), value);
    }
  };
  const auto read_floats = [&](size_t offset, std::vector<float>& values, size_t count) {
    values.resize(count);
    download(DeviceScales(offset), count * sizeof(float), values.data());
  };
  const Stored scale = view_.scale, zero = view_.zero;
  if (scale != Stored::kNone && scale != Stored::kNested) m.scales.resize(blocks);
  if (zero != Stored::kNone) m.zeros.resize(blocks);
  if (view_.paired) {
    read_blocks(4, layout.scales, [&](size_t b, uint32_t pair) {
      m.scales[b] = FloatOf(scale, pair & 0xffffu);
      m.zeros[b] = FloatOf(scale, pair >> 16);
    });
  } else if (scale == Stored::kNested) {
    m.nested_codes.resize(blocks);
    read_blocks(1, layout.scales,
                [&](size_t b, uint32_t code) { m.nested_codes[b] = static_cast<uint8_t>(code); });
    read_floats(layout.nested_map, m.nested_map, 256);
    read_floats(layout.nested_absmax, m.nested_absmax,
                static_cast<size_t>(NestedGroups(format(), m.n, m.k)));
    m.nested_offset = view_.segments[segment].scale_base;
  } else if (scale != Stored::kNone) {
    read_blocks(SizeOf(scale), layout.scales,
                [&](size_t b, uint32_t value) { m.scales[b] = FloatOf(scale, value); });
    if (scale == Stored::kE4M3) m.global_scale = view_.segments[segment].scale_base;
  }
  if (zero != Stored::kNone && !view_.paired) {
    read_blocks(SizeOf(zero), layout.zeros,
                [&](size_t b, uint32_t value) { m.zeros[b] = FloatOf(zero, value); });
  }
  if (format().reordered) {
    m.columns.resize(static_cast<size_t>(m.k));
    download(DeviceScales(plan_.columns), m.columns.size() * sizeof(int32_t), m.columns.data());
  }
  return m;
}

}  // namespace quantd::QUANTD_CUDA_NS
