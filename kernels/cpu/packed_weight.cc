// Canonical matrices into panels: the only place that knows how bytes move from one to the other.
#include "kernels/cpu/packed_weight.h"

#include <algorithm>
#include <cstring>

#include "kernels/ceil_div.h"
#include "kernels/host_memory.h"
#include "kernels/status.h"

namespace quantd {
namespace {

int64_t AlignUp(int64_t bytes) { return CeilDiv(bytes, 64) * 64; }

/// The eight codes of `bytes` (one a byte, low nibble) as the dword of columns 8c .. 8c + 7.
uint32_t PackNibbles(const uint8_t* bytes) {
  uint64_t u;
  std::memcpy(&u, bytes, 8);
  // Even columns are bytes 0, 2, 4, 6; gather their nibbles into 16 adjacent bits, twice folding by
  // half.
  uint64_t even = u & 0x000f000f000f000full;
  even = (even | (even >> 12)) & 0x000000ff000000ffull;
  even = (even | (even >> 24)) & 0xffffull;
  uint64_t odd = (u >> 8) & 0x000f000f000f000full;
  odd = (odd | (odd >> 12)) & 0x000000ff000000ffull;
  odd = (odd | (odd >> 24)) & 0xffffull;
  return static_cast<uint32_t>(even | (odd << 16));
}

/// The sixteen codes of `bytes` (one a byte, low two bits) as the dword of columns 16c .. 16c + 15.
uint32_t PackPairsOfBits(const uint8_t* bytes) {
  uint32_t word = 0;
  for (int c = 0; c < 16; ++c) {
    word |= static_cast<uint32_t>(bytes[c] & 3) << (c % 2 * 16 + c / 2 * 2);
  }
  return word;
}

/// Codes below a byte: `pack` makes a dword of kColumns codes. Padding meets zeros in x: any code
/// will do.
template <int64_t kColumns>
void PackPanelCodes(const uint8_t* rows, int64_t num_rows, int64_t k,
                    uint32_t (*pack)(const uint8_t*), uint8_t* panel) {
  auto* out = reinterpret_cast<uint32_t*>(panel);
  const int64_t whole = k / kColumns;
  for (int64_t c = 0; c < whole; ++c) {
    for (int64_t r = 0; r < num_rows; ++r) {
      out[c * kPanelRows + r] = pack(rows + r * k + c * kColumns);
    }
  }
  for (int64_t r = 0; whole * kColumns < k && r < num_rows; ++r) {
    uint8_t tail[kColumns] = {};
    std::memcpy(tail, rows + r * k + whole * kColumns, static_cast<size_t>(k - whole * kColumns));
    out[whole * kPanelRows + r] = pack(tail);
  }
}

/// Interleaves groups of `group` bytes of the rows: [k_bytes / group][16][group].
void PackPanelBytes(const uint8_t* rows, int64_t num_rows, int64_t row_bytes, int64_t group,
                    uint8_t* panel) {
  for (int64_t r = 0; r < num_rows; ++r) {
    const uint8_t* src = rows + r * row_bytes;
    const int64_t whole = row_bytes / group;
    if (group == 4) {
      for (int64_t g = 0; g < whole; ++g)
        std::memcpy(panel + (g * kPanelRows + r) * 4, src + g * 4, 4);
    } else {
      for (int64_t g = 0; g < whole; ++g)
        std::memcpy(panel + (g * kPanelRows + r) * 2, src + g * 2, 2);
    }
    const int64_t tail = row_bytes - whole * group;
    if (tail > 0) {
      std::memcpy(panel + (whole * kPanelRows + r) * group, src + whole * group,
                  static_cast<size_t>(tail));
    }
  }
}

/// Bytes of a row that stay together in a panel.
int64_t GroupBytes(Codec codec) { return codec == Codec::kF16 ? 2 : 4; }

/// One panel of any codec from rows of `row_bytes`.
void PackPanel(Codec codec, const uint8_t* rows, int64_t num_rows, int64_t row_bytes,
               int64_t panel_bytes, uint8_t* panel) {
  if (BitsOf(codec) == 4) return PackPanelCodes<8>(rows, num_rows, row_bytes, PackNibbles, panel);
  if (BitsOf(codec) == 2) {
    return PackPanelCodes<16>(rows, num_rows, row_bytes, PackPairsOfBits, panel);
  }
  PackPanelBytes(rows, num_rows, row_bytes, GroupBytes(codec), panel);
  if (codec != Codec::kUInt8 && codec != Codec::kE4M3) return;
  auto* words = reinterpret_cast<uint32_t*>(panel);
  for (int64_t i = 0; i < panel_bytes / 4; ++i) {
    const uint32_t w = words[i];
    words[i] = codec == Codec::kUInt8 ? w ^ 0x80808080u
                                      : (w & 0xff0000ffu) | (w & 0xff00u) << 8 | (w >> 8 & 0xff00u);
  }
}

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

template <typename T>
void StoreAt(uint8_t* array, int64_t i, T value) {
  std::memcpy(array + i * static_cast<int64_t>(sizeof(T)), &value, sizeof(T));
}

void StoreScale(ScaleType type, float value, uint8_t* array, int64_t i) {
  switch (type) {
    case ScaleType::kF16: return StoreAt(array, i, F16(value));
    case ScaleType::kBF16: return StoreAt(array, i, BF16(value));
    case ScaleType::kE4M3: return StoreAt(array, i, E4M3Codec::Encode(value));
    default: return StoreAt(array, i, value);
  }
}

void StoreZero(ZeroType type, float value, uint8_t* array, int64_t i) {
  switch (type) {
    case ZeroType::kU8: return StoreAt(array, i, static_cast<uint8_t>(value));
    case ZeroType::kF16: return StoreAt(array, i, F16(value));
    case ZeroType::kBF16:
    case ZeroType::kAddedBF16: return StoreAt(array, i, BF16(value));
    default: return StoreAt(array, i, value);
  }
}

/// CpuPackedWeight::block_columns.
int64_t BlockColumns(const QuantFormat& format, int64_t k) {
  using Kind = BlockShape::Kind;
  const int64_t size = format.block.size;
  const int64_t chunk = ChunkColumns(format.codec);
  switch (format.block.kind) {
    case Kind::kNone:
    case Kind::kStrided: return 0;
    case Kind::kFlat: return k % size == 0 && size % chunk == 0 ? size : 0;
    case Kind::kRow: return CeilDiv(k, chunk) * chunk;
    case Kind::kGroup:
    case Kind::kTile:
      if (size >= k) return CeilDiv(k, chunk) * chunk;
      return size % chunk == 0 ? size : 0;
  }
  return 0;
}

}  // namespace

absl::StatusOr<std::unique_ptr<CpuPackedWeight>> CpuPackedWeight::Create(
    const QuantFormat& format, int64_t k, std::vector<RowSegment> segments,
    MemoryComponent component, MemoryAccount& account) {
  auto weight =
      std::unique_ptr<CpuPackedWeight>(new CpuPackedWeight(format, k, std::move(segments)));
  weight->panel_bytes_ = weight->padded_k() * kPanelRows * BitsOf(format.codec) / 8;
  weight->block_columns_ = BlockColumns(format, k);
  if (weight->block_columns_ > 0) weight->blocks_per_row_ = CeilDiv(k, weight->block_columns_);
  const bool nested = format.scale == ScaleType::kNested;
  const bool row_sums = format.codec == Codec::kInt8 && format.zero == ZeroType::kNone &&
                        format.block.kind == BlockShape::Kind::kRow;

  // One buffer for codes and one for scales; the parts of a segment follow each other, 64-byte
  // aligned.
  struct Parts {
    int64_t codes, scales, zeros, nested_map, nested_absmax, row_sums;
  };
  std::vector<Parts> offsets;
  int64_t code_bytes = 0;
  int64_t scale_bytes = 0;
  const auto reserve = [&scale_bytes](int64_t bytes) {
    const int64_t at = scale_bytes;
    scale_bytes += AlignUp(bytes);
    return at;
  };
  for (const RowSegment& s : weight->segments()) {
    PackedSegment p;
    p.first_row = s.first_row;
    p.rows = s.rows;
    p.first_panel = weight->num_panels_;
    p.panels = CeilDiv(s.rows, kPanelRows);
    weight->num_panels_ += p.panels;
    Parts at{};
    at.codes = code_bytes;
    code_bytes += p.panels * weight->panel_bytes_;
    const int64_t blocks = format.block.Count(s.rows, k);
    const int64_t stored =
        weight->panel_order() ? p.panels * weight->blocks_per_row_ * kPanelRows : blocks;
    at.scales = reserve(stored * BytesOf(format.scale));
    at.zeros = reserve(stored * BytesOf(format.zero));
    if (nested) {
      at.nested_map = reserve(256 * 4);
      at.nested_absmax = reserve(CeilDiv(blocks, QuantizedMatrix::kNestedBlock) * 4);
    }
    if (row_sums) at.row_sums = reserve(p.panels * kPanelRows * 4);
    weight->packed_.push_back(p);
    offsets.push_back(at);
  }
  const int64_t columns = format.reordered ? reserve(k * 4) : 0;
  ASSIGN_OR_RETURN(weight->codes_,
                   AllocateHost(static_cast<size_t>(code_bytes), component, account));
  ASSIGN_OR_RETURN(weight->scales_, AllocateHost(static_cast<size_t>(scale_bytes),
                                                 MemoryComponent::kScales, account));
  uint8_t* const base = weight->scales_.as<uint8_t>();
  for (size_t i = 0; i < offsets.size(); ++i) {
    PackedSegment& p = weight->packed_[i];
    p.codes = weight->codes_.as<uint8_t>() + offsets[i].codes;
    if (format.scale != ScaleType::kNone) p.scales = base + offsets[i].scales;
    if (format.zero != ZeroType::kNone) p.zeros = base + offsets[i].zeros;
    if (nested) {
      p.nested_map = reinterpret_cast<float*>(base + offsets[i].nested_map);
      p.nested_absmax = reinterpret_cast<float*>(base + offsets[i].nested_absmax);
    }
    if (row_sums) p.row_sums = reinterpret_cast<int32_t*>(base + offsets[i].row_sums);
  }
  if (format.reordered) weight->columns_ = reinterpret_cast<int32_t*>(base + columns);
  return weight;
}

void CpuPackedWeight::Pack(size_t segment, const QuantizedMatrix& matrix, ThreadPool& pool) {
  QUANTD_CHECK(segment < packed_.size(), "segment {} of {}", segment, packed_.size());
  PackedSegment& p = packed_[segment];
  QUANTD_CHECK(!p.filled, "segment {} packed twice", segment);
  p.filled = true;
  const Codec codec = format().codec;
  const ScaleType scale = format().scale;
  const int64_t row_bytes = IsPlain(codec) ? k() * BitsOf(codec) / 8 : k();
  const int64_t blocks = panel_order() ? blocks_per_row_ : 0;
  const auto store = [&](int64_t from, int64_t to) {
    const size_t i = static_cast<size_t>(from);
    if (scale == ScaleType::kNested) {
      p.scales[to] = matrix.nested_codes[i];
    } else {
      StoreScale(scale, matrix.scales[i], p.scales, to);
    }
    if (p.zeros != nullptr) StoreZero(format().zero, matrix.zeros[i], p.zeros, to);
  };

  constexpr int64_t kPanelsPerChunk = 8;
  pool.Run(CeilDiv(p.panels, kPanelsPerChunk), [&](int64_t chunk, int) {
    const int64_t end = std::min(p.panels, (chunk + 1) * kPanelsPerChunk);
    for (int64_t i = chunk * kPanelsPerChunk; i < end; ++i) {
      const int64_t row = i * kPanelRows;
      const int64_t rows = std::min(kPanelRows, p.rows - row);
      const uint8_t* src = matrix.codes.data() + row * row_bytes;
      PackPanel(codec, src, rows, row_bytes, panel_bytes_, p.codes + i * panel_bytes_);
      for (int64_t r = 0; r < rows; ++r) {
        if (p.row_sums != nullptr) {
          int32_t sum = 0;
          for (int64_t c = 0; c < k(); ++c) sum += static_cast<int8_t>(src[r * row_bytes + c]);
          p.row_sums[row + r] = sum;
        }
        for (int64_t b = 0; b < blocks; ++b) {
          store((row + r) * blocks + b, (i * blocks + b) * kPanelRows + r);
        }
      }
    }
  });
  if (scale != ScaleType::kNone && !panel_order()) {
    const int64_t count = format().block.Count(matrix.n, matrix.k);
    for (int64_t b = 0; b < count; ++b) store(b, b);
  }
  if (scale == ScaleType::kNested) {
    std::copy(matrix.nested_map.begin(), matrix.nested_map.end(), p.nested_map);
    std::copy(matrix.nested_absmax.begin(), matrix.nested_absmax.end(), p.nested_absmax);
    p.nested_offset = matrix.nested_offset;
  }
  if (scale == ScaleType::kE4M3) p.global_scale = matrix.global_scale;
  if (columns_ != nullptr) std::copy(matrix.columns.begin(), matrix.columns.end(), columns_);
}

void CpuPackedWeight::ReadRow(int64_t row, float* out) const {
  for (const PackedSegment& p : packed_) {
    if (row < p.first_row || row >= p.first_row + p.rows) continue;
    const int64_t local = row - p.first_row;
    const uint8_t* panel = p.codes + local / kPanelRows * panel_bytes_;
    const int64_t lane = local % kPanelRows;
    switch (format().codec) {
      case Codec::kBF16: {
        const auto* v = reinterpret_cast<const BF16*>(panel);
        for (int64_t c = 0; c < k(); ++c) {
          out[c] = static_cast<float>(v[(c / 2 * kPanelRows + lane) * 2 + c % 2]);
        }
        return;
      }
      case Codec::kF16: {
        const auto* v = reinterpret_cast<const F16*>(panel);
        for (int64_t c = 0; c < k(); ++c) out[c] = static_cast<float>(v[c * kPanelRows + lane]);
        return;
      }
      case Codec::kF32: {
        const auto* v = reinterpret_cast<const float*>(panel);
        for (int64_t c = 0; c < k(); ++c) out[c] = v[c * kPanelRows + lane];
        return;
      }
      default: QUANTD_CHECK(false, "ReadRow of format {}", format().ToString());
    }
  }
  QUANTD_CHECK(false, "row {} of {}", row, n());
}

}  // namespace quantd
