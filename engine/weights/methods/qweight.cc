#include "engine/weights/methods/qweight.h"

#include <algorithm>
#include <array>
#include <numeric>

#include "engine/weights/methods/bit_stream.h"
#include "engine/weights/methods/column_order.h"
#include "engine/weights/methods/stored.h"
#include "engine/weights/module_match.h"

namespace quantd {
namespace {

using Packing = QWeightLayout::Packing;

constexpr std::array<int, 4> kBits = {2, 3, 4, 8};
/// Column 8j + c of an AWQ word j is its nibble kAwqNibble[c].
constexpr std::array<int, 8> kAwqNibble = {0, 4, 1, 5, 2, 6, 3, 7};

int64_t GroupOf(const WeightShape& shape, const QWeightLayout& layout) {
  return layout.group_size < 0 ? shape.k : std::min(layout.group_size, shape.k);
}

int64_t NumGroups(const WeightShape& shape, const QWeightLayout& layout) {
  const int64_t group = GroupOf(shape, layout);
  return (shape.k + group - 1) / group;
}

std::vector<int64_t> QWeightShape(const WeightShape& shape, Packing packing, int bits) {
  if (packing == Packing::kAwq) return {shape.k, WordsFor(shape.n, 4)};
  return {WordsFor(shape.k, bits), shape.n};
}

bool HasShapeOf(const StoredTensor& t, const WeightShape& shape, Packing packing) {
  if (packing == Packing::kAwq) return t.shape == QWeightShape(shape, packing, 4);
  return std::any_of(kBits.begin(), kBits.end(),
                     [&](int bits) { return t.shape == QWeightShape(shape, packing, bits); });
}

/// Adds the one that the first format leaves out of zero points, as its readers do.
void AddOne(std::vector<uint32_t>& words, int bits) {
  uint32_t ones = 0;
  for (int bit = 0; bit < 32; bit += bits) ones |= 1u << bit;
  for (uint32_t& word : words) word += ones;
}

/// The zero points in QuantizedMatrix's order: [n, groups].
std::vector<uint8_t> ReadZeros(const Checkpoint& c, const WeightShape& shape,
                               const QWeightLayout& layout) {
  const int64_t groups = NumGroups(shape, layout);
  const int64_t stride = WordsFor(shape.n, layout.bits);
  const bool straddles = 32 % layout.bits != 0;
  const uint32_t mask = (1u << layout.bits) - 1u;
  auto words = Values<uint32_t>(*c.Find(shape.module + ".qzeros"));
  if (layout.zeros_minus_one && !straddles) AddOne(words, layout.bits);
  std::vector<uint8_t> zeros(static_cast<size_t>(shape.n * groups));
  for (int64_t g = 0; g < groups; ++g) {
    const uint32_t* row = words.data() + g * stride;
    for (int64_t n = 0; n < shape.n; ++n) {
      uint32_t zero = layout.packing == Packing::kAwq
                          ? row[n / 8] >> (4 * kAwqNibble[static_cast<size_t>(n % 8)])
                          : CodeAt(row, 1, n, layout.bits);
      if (layout.zeros_minus_one && straddles) ++zero;
      zeros[static_cast<size_t>(n * groups + g)] = static_cast<uint8_t>(zero & mask);
    }
  }
  return zeros;
}

/// The stored order of columns that makes groups contiguous; empty when they are already.
absl::StatusOr<std::vector<int32_t>> ReadColumns(const Checkpoint& c, const WeightShape& shape,
                                                 const QWeightLayout& layout) {
  const std::string name = shape.module + ".g_idx";
  const StoredTensor* t = c.Find(name);
  if (t == nullptr || layout.packing == Packing::kAwq) return std::vector<int32_t>();
  return ColumnOrder(Values<int32_t>(*t), GroupOf(shape, layout), name);
}

/// The format of codes with these zero points, which are cleared where signed codes need none.
QuantFormat FormatFor(const WeightShape& shape, const QWeightLayout& layout, StoredDType scale,
                      bool reordered, std::vector<uint8_t>& zeros) {
  QuantFormat f;
  const uint8_t middle = static_cast<uint8_t>(1 << (layout.bits - 1));
  const bool symmetric = layout.bits != 2 && std::all_of(zeros.begin(), zeros.end(),
                                                         [&](uint8_t z) { return z == middle; });
  if (symmetric) {
    zeros.clear();
    f.codec = layout.bits == 8 ? Codec::kInt8 : Codec::kInt4;
  } else {
    f.codec = layout.bits == 8 ? Codec::kUInt8 : layout.bits == 2 ? Codec::kUInt2 : Codec::kUInt4;
    f.zero = ZeroType::kU8;
  }
  f.block = {BlockShape::Kind::kGroup, static_cast<int32_t>(GroupOf(shape, layout)), 0};
  f.scale = scale == StoredDType::kF16    ? ScaleType::kF16
            : scale == StoredDType::kBF16 ? ScaleType::kBF16
                                          : ScaleType::kF32;
  f.reordered = reordered;
  return f;
}

/// Codes [n, k] of code_at(input, output), columns in stored order. Packed words run along the
/// outputs and codes along the inputs, so that tiles which fit the first cache are turned.
template <typename CodeAtFn>
std::vector<uint8_t> Transposed(const WeightShape& shape, const std::vector<int32_t>& columns,
                                const CodeAtFn& code_at) {
  constexpr int64_t kRows = 16, kColumns = 64;
  std::vector<uint8_t> codes(static_cast<size_t>(shape.n * shape.k));
  uint8_t tile[kRows][kColumns];
  for (int64_t n0 = 0; n0 < shape.n; n0 += kRows) {
    const int64_t rows = std::min(kRows, shape.n - n0);
    for (int64_t k0 = 0; k0 < shape.k; k0 += kColumns) {
      const int64_t cols = std::min(kColumns, shape.k - k0);
      for (int64_t col = 0; col < cols; ++col) {
        const int64_t input = columns.empty() ? k0 + col : columns[static_cast<size_t>(k0 + col)];
        for (int64_t row = 0; row < rows; ++row) tile[row][col] = code_at(input, n0 + row);
      }
      for (int64_t row = 0; row < rows; ++row) {
        std::copy_n(tile[row], cols, codes.begin() + (n0 + row) * shape.k + k0);
      }
    }
  }
  return codes;
}

/// AutoGPTQ wrote a bias of zeros beside every linear, also where the model has none; it changes
/// nothing, so it belongs to the weight.
bool HasZeroBias(const Checkpoint& c, const WeightShape& shape) {
  const StoredTensor* bias = c.Find(shape.module + ".bias");
  return bias != nullptr && bias->shape == std::vector<int64_t>{shape.n} &&
         std::all_of(bias->data.begin(), bias->data.end(),
                     [](std::byte b) { return b == std::byte{0}; });
}

}  // namespace

std::string QWeightSettings::ToYaml() const {
  std::string text = fmt::format("bits: {}\ngroup_size: {}\n", layout.bits, layout.group_size);
  for (const QWeightOverride& o : overrides) {
    text += fmt::format("\"{}\": {} {}\n", o.pattern, o.bits.value_or(layout.bits),
                        o.group_size.value_or(layout.group_size));
  }
  return text;
}

std::string QWeightSettings::Describe() const {
  const std::string groups =
      layout.group_size < 0 ? "a group a row" : fmt::format("groups of {}", layout.group_size);
  return fmt::format("{} {}-bit, {}", method, layout.bits, groups);
}

QWeightLayout QWeightSettings::LayoutOf(const std::string& module) const {
  QWeightLayout own = layout;
  for (const QWeightOverride& o : overrides) {
    if (!OverrideMatches(o.pattern, module)) continue;
    own.bits = o.bits.value_or(own.bits);
    own.group_size = o.group_size.value_or(own.group_size);
    break;
  }
  return own;
}

int ReadQWeightBits(const OptionReader& reader, int fallback) {
  const int64_t bits = reader.Integer("bits", fallback, 1, 8);
  if (std::find(kBits.begin(), kBits.end(), bits) != kBits.end()) return static_cast<int>(bits);
  reader.faults().AddUnimplemented("{}: {} is not supported; supported: {}", reader.Path("bits"),
                                   bits, fmt::join(kBits, ", "));
  return fallback;
}

int64_t ReadGroupSize(const OptionReader& reader, int64_t fallback) {
  constexpr int64_t kLargest = INT32_MAX;
  const int64_t group = reader.Integer("group_size", fallback, -1, kLargest);
  if (group != 0) return group;
  reader.faults().Add("{}: 0 is neither -1 nor positive", reader.Path("group_size"));
  return fallback;
}

bool DetectQWeight(const Checkpoint& checkpoint, const WeightShape& shape, Packing packing) {
  const StoredTensor* t = checkpoint.Find(shape.module + ".qweight");
  const Packing other = packing == Packing::kGptq ? Packing::kAwq : Packing::kGptq;
  return t != nullptr && (HasShapeOf(*t, shape, packing) || !HasShapeOf(*t, shape, other));
}

absl::StatusOr<WeightSource> QWeightMethod::Check(const Checkpoint& c, const WeightShape& shape,
                                                  const MethodOptions& config) const {
  const auto& settings = SettingsOf<QWeightSettings>(config);
  const QWeightLayout layout = settings.LayoutOf(shape.module);
  const bool gptq = layout.packing == Packing::kGptq;
  const int64_t groups = NumGroups(shape, layout);
  WeightSource source;
  source.label = settings.method;
  if (!gptq && layout.bits != 4) {
    return Unimplemented("{}: {} bits are not supported in AWQ's packing; supported: 4",
                         shape.module, layout.bits);
  }

  const std::string qweight = shape.module + ".qweight";
  auto found = RequireTensor(c, qweight, {StoredDType::kI32, StoredDType::kU32},
                             QWeightShape(shape, layout.packing, layout.bits));
  if (!found.ok()) {
    return DataLoss("{} ({} bits, config.json)", Message(found.status()), layout.bits);
  }
  const std::string qzeros = shape.module + ".qzeros";
  const std::string scales = shape.module + ".scales";
  const StoredTensor* scale = c.Find(scales);
  // A wrong group size shows in all of them; the scales say it plainest.
  auto by_group = RequireTensor(
      c, scales, {StoredDType::kF16, StoredDType::kBF16, StoredDType::kF32}, {groups, shape.n});
  if (by_group.ok()) {
    by_group = RequireTensor(c, qzeros, {StoredDType::kI32, StoredDType::kU32},
                             {groups, WordsFor(shape.n, layout.bits)});
  }
  if (!by_group.ok()) {
    return DataLoss("{} (group_size {}, config.json)", Message(by_group.status()),
                    layout.group_size);
  }
  source.tensors = {qweight, qzeros, scales};

  const std::string g_idx = shape.module + ".g_idx";
  if (gptq && c.Find(g_idx) != nullptr) {
    RETURN_IF_ERROR(RequireTensor(c, g_idx, {StoredDType::kI32}, {shape.k}).status());
    source.tensors.push_back(g_idx);
  }
  if (HasZeroBias(c, shape)) source.tensors.push_back(shape.module + ".bias");
  ASSIGN_OR_RETURN(source.columns, ReadColumns(c, shape, layout));
  std::vector<uint8_t> zeros = ReadZeros(c, shape, layout);
  source.format = FormatFor(shape, layout, scale->dtype, !source.columns.empty(), zeros);
  return source;
}

absl::StatusOr<QuantizedMatrix> QWeightMethod::Load(const Checkpoint& c, const WeightShape& shape,
                                                    const MethodOptions& config) const {
  const auto& settings = SettingsOf<QWeightSettings>(config);
  const QWeightLayout layout = settings.LayoutOf(shape.module);
  const int bits = layout.bits;
  const std::string name = shape.module + ".scales";
  QuantizedMatrix m;
  m.n = shape.n;
  m.k = shape.k;
  ASSIGN_OR_RETURN(m.columns, ReadColumns(c, shape, layout));
  std::vector<uint8_t> zeros = ReadZeros(c, shape, layout);
  m.format = FormatFor(shape, layout, c.Find(name)->dtype, !m.columns.empty(), zeros);
  m.zeros.assign(zeros.begin(), zeros.end());

  // Stored [groups, n]. Of either sign: auto-round's symmetric scales are negative at times.
  ASSIGN_OR_RETURN(const std::vector<float> scales, FiniteFloats(c, name));
  const int64_t groups = NumGroups(shape, layout);
  m.scales.resize(scales.size());
  for (int64_t g = 0; g < groups; ++g) {
    for (int64_t n = 0; n < shape.n; ++n) {
      m.scales[static_cast<size_t>(n * groups + g)] = scales[static_cast<size_t>(g * shape.n + n)];
    }
  }

  const auto words = Values<uint32_t>(*c.Find(shape.module + ".qweight"));
  // Signed codes are what the unsigned ones are less the middle, in two's complement of the codec.
  const bool is_signed = m.format.zero == ZeroType::kNone;
  const uint32_t middle = is_signed ? 1u << (bits - 1) : 0u;
  const uint32_t mask = (1u << BitsOf(m.format.codec)) - 1u;
  if (layout.packing == Packing::kAwq) {
    const int64_t stride = WordsFor(shape.n, 4);
    m.codes = Transposed(shape, m.columns, [&](int64_t k, int64_t n) {
      const uint32_t word = words[static_cast<size_t>(k * stride + n / 8)];
      const uint32_t code = word >> (4 * kAwqNibble[static_cast<size_t>(n % 8)]) & 15u;
      return static_cast<uint8_t>((code - middle) & mask);
    });
  } else {
    m.codes = Transposed(shape, m.columns, [&](int64_t k, int64_t n) {
      const uint32_t code = CodeAt(words.data() + n, shape.n, k, bits);
      return static_cast<uint8_t>((code - middle) & mask);
    });
  }
  return m;
}

}  // namespace quantd
