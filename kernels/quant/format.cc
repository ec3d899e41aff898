// Names, byte counts and element values of formats; see format.h. Thread-safe: no state.
#include "kernels/quant/format.h"

#include <bit>
#include <cstdlib>
#include <cstring>

#include "kernels/status.h"

namespace quantd {
namespace {

struct CodecName {
  Codec codec;
  const char* name;
};
constexpr CodecName kCodecNames[] = {{Codec::kF32, "f32"},   {Codec::kF16, "f16"},
                                     {Codec::kBF16, "bf16"}, {Codec::kNf4, "nf4"},
                                     {Codec::kFp4, "fp4"},   {Codec::kInt8, "int8"}};

int64_t NumBlocks(const QuantFormat& f, int64_t n, int64_t k) {
  switch (f.block.kind) {
    case BlockShape::Kind::kNone: return 0;
    case BlockShape::Kind::kRow: return n;
    case BlockShape::Kind::kFlat: return (n * k + f.block.size - 1) / f.block.size;
  }
  return 0;
}

}  // namespace

QuantFormat QuantFormat::Plain(DType dtype) {
  QUANTD_CHECK(dtype == DType::kF32 || dtype == DType::kF16 || dtype == DType::kBF16);
  const Codec codec = dtype == DType::kF32   ? Codec::kF32
                      : dtype == DType::kF16 ? Codec::kF16
                                             : Codec::kBF16;
  return {codec, {}, ScaleType::kNone};
}

QuantFormat QuantFormat::Block4(Codec codec, int32_t block, bool nested) {
  QUANTD_CHECK(codec == Codec::kNf4 || codec == Codec::kFp4);
  return {codec, {BlockShape::Kind::kFlat, block}, nested ? ScaleType::kNested : ScaleType::kF32};
}

QuantFormat QuantFormat::Int8Row() {
  return {Codec::kInt8, {BlockShape::Kind::kRow, 0}, ScaleType::kF32};
}

std::string QuantFormat::ToString() const {
  std::string text;
  for (const CodecName& c : kCodecNames) {
    if (c.codec == codec) text = c.name;
  }
  if (block.kind == BlockShape::Kind::kRow) text += ".row";
  if (block.kind == BlockShape::Kind::kFlat) text += fmt::format(".flat{}", block.size);
  if (scale == ScaleType::kF32) text += ".f32";
  if (scale == ScaleType::kNested) text += ".nested";
  return text;
}

absl::StatusOr<QuantFormat> QuantFormat::Parse(const std::string& text) {
  // Formats are few and their text is canonical, so parsing is: take the codec and the block size,
  // build each candidate, and accept the one that prints as `text`.
  for (const CodecName& c : kCodecNames) {
    if (IsPlain(c.codec)) {
      const QuantFormat f{c.codec, {}, ScaleType::kNone};
      if (f.ToString() == text) return f;
    }
  }
  if (Int8Row().ToString() == text) return Int8Row();
  const size_t flat = text.find(".flat");
  if (flat != std::string::npos) {
    const int32_t size = static_cast<int32_t>(std::strtol(text.c_str() + flat + 5, nullptr, 10));
    for (Codec codec : {Codec::kNf4, Codec::kFp4}) {
      for (bool nested : {false, true}) {
        if (size > 0 && Block4(codec, size, nested).ToString() == text)
          return Block4(codec, size, nested);
      }
    }
  }
  return InvalidArgument("\"{}\" is not a quantization format", text);
}

int64_t QuantFormat::StoredBytes(int64_t n, int64_t k) const {
  const int64_t codes = (n * k * BitsOf(codec) + 7) / 8;
  const int64_t blocks = NumBlocks(*this, n, k);
  switch (scale) {
    case ScaleType::kNone: return codes;
    case ScaleType::kF32: return codes + 4 * blocks;
    case ScaleType::kNested: {
      const int64_t nested =
          (blocks + QuantizedMatrix::kNestedBlock - 1) / QuantizedMatrix::kNestedBlock;
      return codes + blocks + 4 * nested + 256 * 4 + 4;
    }
  }
  return codes;
}

float QuantizedMatrix::Scale(int64_t row, int64_t col) const {
  size_t block = 0;
  switch (format.block.kind) {
    case BlockShape::Kind::kNone: return 1.0f;
    case BlockShape::Kind::kRow: block = static_cast<size_t>(row); break;
    case BlockShape::Kind::kFlat:
      block = static_cast<size_t>((row * k + col) / format.block.size);
      break;
  }
  if (format.scale == ScaleType::kNested) {
    // A product stored before the addition: contraction into one FMA would change the last bit.
    volatile float product = nested_map[nested_codes[block]] * nested_absmax[block / kNestedBlock];
    return product + nested_offset;
  }
  return format.codec == Codec::kInt8 ? scales[block] * kInt8Step : scales[block];
}

float QuantizedMatrix::Dequantize(int64_t row, int64_t col) const {
  const size_t i = static_cast<size_t>(row * k + col);
  switch (format.codec) {
    case Codec::kF32: {
      float f;
      std::memcpy(&f, codes.data() + 4 * i, 4);
      return f;
    }
    case Codec::kF16: {
      F16 h;
      std::memcpy(&h, codes.data() + 2 * i, 2);
      return static_cast<float>(h);
    }
    case Codec::kBF16: {
      BF16 b;
      std::memcpy(&b, codes.data() + 2 * i, 2);
      return static_cast<float>(b);
    }
    case Codec::kNf4: return Nf4Codec::Decode(codes[i]) * Scale(row, col);
    case Codec::kFp4: return Fp4Codec::Decode(codes[i]) * Scale(row, col);
    case Codec::kInt8: return Int8Codec::Decode(codes[i]) * Scale(row, col);
  }
  return 0.0f;
}

}  // namespace quantd
