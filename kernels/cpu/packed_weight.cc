// Canonical matrices into panels: the only place that knows how bytes move from one to the other.
#include "kernels/cpu/packed_weight.h"

#include <algorithm>
#include <cstring>

#include "kernels/host_memory.h"
#include "kernels/status.h"

namespace quantd {
namespace {

constexpr int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }

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

/// The code that stands for 0.0, for padding.
uint8_t ZeroCode(Codec codec) { return codec == Codec::kNf4 ? 7 : 0; }

void PackPanel4(const uint8_t* rows, int64_t num_rows, int64_t k, int64_t padded_k, uint8_t zero,
                uint8_t* panel) {
  const int64_t chunks = padded_k / 8;
  const int64_t whole = k / 8;
  auto* out = reinterpret_cast<uint32_t*>(panel);
  uint8_t padding[8];
  std::memset(padding, zero, sizeof(padding));
  const uint32_t empty = PackNibbles(padding);
  for (int64_t c = 0; c < chunks; ++c) {
    for (int64_t r = 0; r < kPanelRows; ++r) {
      uint32_t word = empty;
      if (r < num_rows) {
        const uint8_t* src = rows + r * k + c * 8;
        if (c < whole) {
          word = PackNibbles(src);
        } else {
          uint8_t tail[8];
          std::memcpy(tail, padding, sizeof(tail));
          std::memcpy(tail, src, static_cast<size_t>(k - c * 8));
          word = PackNibbles(tail);
        }
      }
      out[c * kPanelRows + r] = word;
    }
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

}  // namespace

absl::StatusOr<std::unique_ptr<CpuPackedWeight>> CpuPackedWeight::Create(
    const QuantFormat& format, int64_t k, std::vector<RowSegment> segments,
    MemoryComponent component, MemoryAccount& account) {
  const bool int8 = format.codec == Codec::kInt8;
  const bool four_bit = BitsOf(format.codec) == 4;
  auto weight =
      std::unique_ptr<CpuPackedWeight>(new CpuPackedWeight(format, k, std::move(segments)));
  weight->panel_bytes_ = weight->padded_k() * kPanelRows * BitsOf(format.codec) / 8;
  const int64_t block = format.block.size;
  weight->blocks_within_rows_ = four_bit && k % block == 0 && block % kPadK == 0;

  // One buffer for codes and one for scales; the parts of a segment follow each other, 64-byte
  // aligned.
  struct Parts {
    int64_t codes, scales, nested_codes, nested_map, nested_absmax, row_sums;
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
    if (int8) {
      at.scales = reserve(p.panels * kPanelRows * 4);
      at.row_sums = reserve(p.panels * kPanelRows * 4);
    } else if (four_bit) {
      const int64_t flat = CeilDiv(s.rows * k, block);
      const int64_t count =
          weight->blocks_within_rows_ ? p.panels * (k / block) * kPanelRows : flat;
      if (format.scale == ScaleType::kNested) {
        at.nested_codes = reserve(count);
        at.nested_map = reserve(256 * 4);
        at.nested_absmax = reserve(CeilDiv(flat, QuantizedMatrix::kNestedBlock) * 4);
      } else {
        at.scales = reserve(count * 4);
      }
    }
    weight->packed_.push_back(p);
    offsets.push_back(at);
  }
  ASSIGN_OR_RETURN(weight->codes_,
                   AllocateHost(static_cast<size_t>(code_bytes), component, account));
  ASSIGN_OR_RETURN(weight->scales_, AllocateHost(static_cast<size_t>(scale_bytes),
                                                 MemoryComponent::kScales, account));
  for (size_t i = 0; i < offsets.size(); ++i) {
    PackedSegment& p = weight->packed_[i];
    auto* base = weight->scales_.as<uint8_t>();
    p.codes = weight->codes_.as<uint8_t>() + offsets[i].codes;
    if (int8 || (four_bit && format.scale == ScaleType::kF32)) {
      p.scales = reinterpret_cast<float*>(base + offsets[i].scales);
    }
    if (int8) p.row_sums = reinterpret_cast<int32_t*>(base + offsets[i].row_sums);
    if (format.scale == ScaleType::kNested) {
      p.nested_codes = base + offsets[i].nested_codes;
      p.nested_map = reinterpret_cast<float*>(base + offsets[i].nested_map);
      p.nested_absmax = reinterpret_cast<float*>(base + offsets[i].nested_absmax);
    }
  }
  return weight;
}

void CpuPackedWeight::Pack(size_t segment, const QuantizedMatrix& matrix, ThreadPool& pool) {
  QUANTD_CHECK(segment < packed_.size(), "segment {} of {}", segment, packed_.size());
  PackedSegment& p = packed_[segment];
  QUANTD_CHECK(!p.filled, "segment {} packed twice", segment);
  p.filled = true;
  const int64_t columns = k();
  const Codec codec = format().codec;
  const bool four_bit = BitsOf(codec) == 4;
  const bool int8 = codec == Codec::kInt8;
  const int64_t row_bytes = four_bit || int8 ? columns : columns * BitsOf(codec) / 8;
  const int64_t blocks = blocks_within_rows_ ? columns / format().block.size : 0;
  const bool nested = format().scale == ScaleType::kNested;

  constexpr int64_t kPanelsPerChunk = 8;
  pool.Run(CeilDiv(p.panels, kPanelsPerChunk), [&](int64_t chunk, int) {
    const int64_t end = std::min(p.panels, (chunk + 1) * kPanelsPerChunk);
    for (int64_t i = chunk * kPanelsPerChunk; i < end; ++i) {
      const int64_t row = i * kPanelRows;
      const int64_t rows = std::min(kPanelRows, p.rows - row);
      const uint8_t* src = matrix.codes.data() + row * row_bytes;
      uint8_t* panel = p.codes + i * panel_bytes_;
      if (four_bit) {
        PackPanel4(src, rows, columns, padded_k(), ZeroCode(codec), panel);
      } else {
        PackPanelBytes(src, rows, row_bytes, GroupBytes(codec), panel);
      }
      for (int64_t r = 0; r < rows; ++r) {
        if (int8) {
          int32_t sum = 0;
          for (int64_t c = 0; c < columns; ++c) sum += static_cast<int8_t>(src[r * row_bytes + c]);
          p.row_sums[row + r] = sum;
          p.scales[row + r] = matrix.scales[static_cast<size_t>(row + r)];
        }
        for (int64_t b = 0; b < blocks; ++b) {
          const size_t from = static_cast<size_t>((row + r) * blocks + b);
          const int64_t to = (i * blocks + b) * kPanelRows + r;
          if (nested) {
            p.nested_codes[to] = matrix.nested_codes[from];
          } else {
            p.scales[to] = matrix.scales[from];
          }
        }
      }
    }
  });
  if (four_bit && !blocks_within_rows_) {
    if (nested) {
      std::copy(matrix.nested_codes.begin(), matrix.nested_codes.end(), p.nested_codes);
    } else {
      std::copy(matrix.scales.begin(), matrix.scales.end(), p.scales);
    }
  }
  if (nested) {
    std::copy(matrix.nested_map.begin(), matrix.nested_map.end(), p.nested_map);
    std::copy(matrix.nested_absmax.begin(), matrix.nested_absmax.end(), p.nested_absmax);
    p.nested_offset = matrix.nested_offset;
  }
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
