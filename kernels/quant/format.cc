// Names, byte counts and element values of formats; see format.h. Thread-safe: no state.
#include "kernels/quant/format.h"

#include <charconv>
#include <cstring>

#include "kernels/ceil_div.h"
#include "kernels/status.h"

namespace quantd {
namespace {

using Kind = BlockShape::Kind;

template <typename T>
struct Name {
  T value;
  const char* text;
};
constexpr Name<Codec> kCodecs[] = {
    {Codec::kF32, "f32"},     {Codec::kF16, "f16"},   {Codec::kBF16, "bf16"},
    {Codec::kNf4, "nf4"},     {Codec::kFp4, "fp4"},   {Codec::kInt8, "int8"},
    {Codec::kUInt8, "uint8"}, {Codec::kInt4, "int4"}, {Codec::kUInt4, "uint4"},
    {Codec::kUInt2, "uint2"}, {Codec::kE2M1, "e2m1"}, {Codec::kE4M3, "e4m3"}};
constexpr Name<ScaleType> kScales[] = {
    {ScaleType::kF32, "f32"},       {ScaleType::kF16, "f16"},       {ScaleType::kBF16, "bf16"},
    {ScaleType::kNested, "nested"}, {ScaleType::kAbsmax, "absmax"}, {ScaleType::kE4M3, "e4m3"}};
constexpr Name<ZeroType> kZeros[] = {{ZeroType::kU8, "zero_u8"},
                                     {ZeroType::kF16, "zero_f16"},
                                     {ZeroType::kBF16, "zero_bf16"},
                                     {ZeroType::kF32, "zero_f32"},
                                     {ZeroType::kAddedBF16, "offset_bf16"},
                                     {ZeroType::kAddedF32, "offset_f32"}};
constexpr Name<Kind> kBlocks[] = {{Kind::kRow, "row"},
                                  {Kind::kGroup, "group"},
                                  {Kind::kFlat, "flat"},
                                  {Kind::kTile, "tile"},
                                  {Kind::kStrided, "strided"}};

template <typename T, size_t kCount>
const char* TextOf(const Name<T> (&names)[kCount], T value) {
  for (const Name<T>& name : names) {
    if (name.value == value) return name.text;
  }
  return "?";
}

/// The value whose text is `text`.
template <typename T, size_t kCount>
std::optional<T> ValueOf(const Name<T> (&names)[kCount], std::string_view text) {
  for (const Name<T>& name : names) {
    if (text == name.text) return name.value;
  }
  return std::nullopt;
}

std::string BlockText(const BlockShape& block) {
  std::string text = TextOf(kBlocks, block.kind);
  if (block.kind == Kind::kTile) return text + fmt::format("{}x{}", block.rows, block.size);
  return block.kind == Kind::kRow ? text : text + fmt::format("{}", block.size);
}

/// A positive number at the start of `text`, which loses it; 0 when there is none.
int32_t TakeNumber(std::string_view& text) {
  int32_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || value < 1) return 0;
  text.remove_prefix(static_cast<size_t>(end - text.data()));
  return value;
}

std::optional<BlockShape> ParseBlock(std::string_view text) {
  for (const Name<Kind>& name : kBlocks) {
    if (!text.starts_with(name.text)) continue;
    std::string_view rest = text.substr(std::strlen(name.text));
    BlockShape block{name.value, 0, 0};
    if (name.value == Kind::kTile) {
      block.rows = TakeNumber(rest);
      if (rest.starts_with("x")) rest.remove_prefix(1);
    }
    if (name.value != Kind::kRow) block.size = TakeNumber(rest);
    if (!rest.empty()) return std::nullopt;
    return block;
  }
  return std::nullopt;
}

int64_t BitsOf(ScaleType scale) {
  switch (scale) {
    case ScaleType::kNone: return 0;
    case ScaleType::kF32:
    case ScaleType::kAbsmax: return 32;
    case ScaleType::kF16:
    case ScaleType::kBF16: return 16;
    case ScaleType::kNested:
    case ScaleType::kE4M3: return 8;
  }
  return 0;
}

int64_t BitsOf(ZeroType zero) {
  switch (zero) {
    case ZeroType::kNone: return 0;
    case ZeroType::kU8: return 8;
    case ZeroType::kF16:
    case ZeroType::kBF16:
    case ZeroType::kAddedBF16: return 16;
    case ZeroType::kF32:
    case ZeroType::kAddedF32: return 32;
  }
  return 0;
}

float DecodeCode(Codec codec, uint8_t code) {
  switch (codec) {
    case Codec::kInt8: return Int8Codec::Decode(code);
    case Codec::kE4M3: return E4M3Codec::Decode(code);
    case Codec::kUInt8:
    case Codec::kUInt2: return static_cast<float>(code);
    default: return TableOf(codec)[code & 15];
  }
}

float PlainElement(Codec codec, const uint8_t* codes, size_t i) {
  if (codec == Codec::kF32) {
    float f;
    std::memcpy(&f, codes + 4 * i, 4);
    return f;
  }
  uint16_t bits;
  std::memcpy(&bits, codes + 2 * i, 2);
  return codec == Codec::kF16 ? static_cast<float>(std::bit_cast<F16>(bits))
                              : static_cast<float>(std::bit_cast<BF16>(bits));
}

}  // namespace

int64_t BlockShape::Count(int64_t n, int64_t k) const {
  switch (kind) {
    case Kind::kNone: return 0;
    case Kind::kRow: return n;
    case Kind::kGroup: return n * CeilDiv(k, size);
    case Kind::kFlat: return CeilDiv(n * k, size);
    case Kind::kTile: return CeilDiv(n, rows) * CeilDiv(k, size);
    case Kind::kStrided: return n * k / size;
  }
  return 0;
}

int64_t BlockShape::IndexOf(int64_t n, int64_t k, int64_t row, int64_t col) const {
  switch (kind) {
    case Kind::kNone: return 0;
    case Kind::kRow: return row;
    case Kind::kGroup: return row * CeilDiv(k, size) + col / size;
    case Kind::kFlat: return (row * k + col) / size;
    case Kind::kTile: return row / rows * CeilDiv(k, size) + col / size;
    case Kind::kStrided: return (row * k + col) % (n * k / size);
  }
  return 0;
}

QuantFormat QuantFormat::Plain(DType dtype) {
  QUANTD_CHECK(dtype == DType::kF32 || dtype == DType::kF16 || dtype == DType::kBF16);
  QuantFormat f;
  f.codec = dtype == DType::kF32 ? Codec::kF32 : dtype == DType::kF16 ? Codec::kF16 : Codec::kBF16;
  return f;
}

QuantFormat QuantFormat::Block4(Codec codec, int32_t block, bool nested) {
  QUANTD_CHECK(quantd::BitsOf(codec) == 4);
  QuantFormat f;
  f.codec = codec;
  f.block = {Kind::kFlat, block, 0};
  f.scale = nested ? ScaleType::kNested : ScaleType::kF32;
  return f;
}

QuantFormat QuantFormat::Int8Row() {
  QuantFormat f;
  f.codec = Codec::kInt8;
  f.block = {Kind::kRow, 0, 0};
  f.scale = ScaleType::kAbsmax;
  return f;
}

std::string QuantFormat::ToString() const {
  std::string text = TextOf(kCodecs, codec);
  if (block.kind != Kind::kNone) text += "." + BlockText(block);
  if (scale != ScaleType::kNone) text += fmt::format(".{}", TextOf(kScales, scale));
  if (zero != ZeroType::kNone) text += fmt::format(".{}", TextOf(kZeros, zero));
  if (reordered) text += ".reordered";
  return text;
}

absl::StatusOr<QuantFormat> QuantFormat::Parse(const std::string& text) {
  // The text is canonical: the parts are read in order, and what does not print as `text` again is
  // refused.
  QuantFormat f;
  std::string_view rest(text);
  const auto take = [&rest] {
    const size_t dot = rest.find('.');
    const std::string_view part = rest.substr(0, dot);
    rest = dot == std::string_view::npos ? std::string_view() : rest.substr(dot + 1);
    return part;
  };
  if (const auto codec = ValueOf(kCodecs, take())) f.codec = *codec;
  if (!IsPlain(f.codec)) {
    if (const auto block = ParseBlock(take())) f.block = *block;
    if (const auto scale = ValueOf(kScales, take())) f.scale = *scale;
    std::string_view part = take();
    if (const auto zero = ValueOf(kZeros, part)) {
      f.zero = *zero;
      part = take();
    }
    f.reordered = part == "reordered";
  }
  if (f.ToString() == text && f.Check().ok()) return f;
  return InvalidArgument("\"{}\" is not a quantization format", text);
}

absl::Status QuantFormat::Check() const {
  const auto wrong = [this](std::string_view why) {
    return InvalidArgument("\"{}\" is not a quantization format: {}", ToString(), why);
  };
  if (IsPlain(codec)) {
    return *this == QuantFormat{codec, {}, ScaleType::kNone, ZeroType::kNone, false}
               ? absl::OkStatus()
               : wrong("floats have no scales");
  }
  if (block.kind == Kind::kNone || scale == ScaleType::kNone) return wrong("codes need scales");
  if (block.kind != Kind::kRow && block.size < 1) return wrong("a block is empty");
  if (block.kind == Kind::kTile && block.rows < 1) return wrong("a block is empty");
  const bool table = codec == Codec::kNf4 || codec == Codec::kFp4 || codec == Codec::kE2M1;
  if (zero != ZeroType::kNone && (table || codec == Codec::kE4M3)) {
    return wrong("floats have no zero points");
  }
  if (zero == ZeroType::kNone &&
      (codec == Codec::kUInt2 || codec == Codec::kUInt4 || codec == Codec::kUInt8)) {
    return wrong("unsigned codes need zero points");
  }
  if (scale == ScaleType::kNested &&
      (block.kind != Kind::kFlat || (codec != Codec::kNf4 && codec != Codec::kFp4))) {
    return wrong("only blocks of nf4 and fp4 have nested scales");
  }
  if (scale == ScaleType::kAbsmax && !(*this == Int8Row())) return wrong("absmax is of int8 rows");
  if (scale == ScaleType::kE4M3 && zero != ZeroType::kNone) {
    return wrong("e4m3 scales come without zero points");
  }
  if (reordered && block.kind != Kind::kGroup && block.kind != Kind::kRow) {
    return wrong("only groups of columns can be reordered");
  }
  return absl::OkStatus();
}

int64_t QuantFormat::StoredBytes(int64_t n, int64_t k) const {
  const int64_t blocks = block.Count(n, k);
  int64_t bytes = (n * k * quantd::BitsOf(codec) + 7) / 8;
  bytes += blocks * (BitsOf(scale) + BitsOf(zero)) / 8;
  if (scale == ScaleType::kNested) {
    bytes += 4 * CeilDiv(blocks, QuantizedMatrix::kNestedBlock) + 256 * 4 + 4;
  }
  if (scale == ScaleType::kE4M3) bytes += 4;
  if (reordered) bytes += 4 * k;
  return bytes;
}

float QuantizedMatrix::Scale(int64_t row, int64_t col) const {
  if (format.scale == ScaleType::kNone) return 1.0f;
  const size_t b = static_cast<size_t>(format.block.IndexOf(n, k, row, col));
  switch (format.scale) {
    case ScaleType::kNested: {
      // A product stored before the addition: contraction into one FMA would change the last bit.
      volatile float product = nested_map[nested_codes[b]] * nested_absmax[b / kNestedBlock];
      return product + nested_offset;
    }
    case ScaleType::kAbsmax: return scales[b] * kInt8Step;
    case ScaleType::kE4M3: return scales[b] / global_scale;
    default: return scales[b];
  }
}

float QuantizedMatrix::Dequantize(int64_t row, int64_t col) const {
  const size_t i = static_cast<size_t>(row * k + col);
  if (IsPlain(format.codec)) return PlainElement(format.codec, codes.data(), i);
  const float code = DecodeCode(format.codec, codes[i]);
  const float scale = Scale(row, col);
  if (format.zero == ZeroType::kNone) return code * scale;
  const float zero = zeros[static_cast<size_t>(format.block.IndexOf(n, k, row, col))];
  if (!IsAdded(format.zero)) return (code - zero) * scale;
  volatile float product = code * scale;
  return product + zero;
}

std::vector<float> QuantizedMatrix::DequantizeAll() const {
  std::vector<float> out(static_cast<size_t>(n * k));
  for (int64_t row = 0; row < n; ++row) {
    for (int64_t col = 0; col < k; ++col) {
      const int64_t input = format.reordered ? columns[static_cast<size_t>(col)] : col;
      out[static_cast<size_t>(row * k + input)] = Dequantize(row, col);
    }
  }
  return out;
}

}  // namespace quantd
