// compressed-tensors (llm-compressor): checkpoints of integer, fp8 and nvfp4 weights, with and
// without quantized activations.
//
// Layout of the stored tensors, from compressed-tensors 0.20. With scale grids [n, groups],
// [n, 1] (channel), [1] (tensor) or [ceil(n / rows), ceil(k / columns)] (block):
//   pack-quantized  <m>.weight_packed I32 [n, ceil(k * bits / 32)]: a dense stream along k of
//                   q + 2^(bits - 1); <m>.weight_scale; <m>.weight_shape I64 [2]; asymmetric:
//                   <m>.weight_zero_point I32 [ceil(n * bits / 32), groups], the same stream along
//                   n; actorder "group": <m>.weight_g_idx I32 [k], the group of each input
//   int-quantized   <m>.weight I8 [n, k]; <m>.weight_scale; asymmetric: <m>.weight_zero_point I8
//   float-quantized <m>.weight F8_E4M3 [n, k]; <m>.weight_scale
//   nvfp4-pack-quantized  <m>.weight_packed U8 [n, k / 2], the first element in the low half;
//                   <m>.weight_scale F8_E4M3 [n, k / 16]; <m>.weight_global_scale F32 [1];
//                   perhaps <m>.input_global_scale F32 [1], without a use here
//   static activations    <m>.input_scale [1], <m>.input_zero_point I8 [1]
// w = (q - zero) * scale; nvfp4: w = q * (scale / global_scale).
#include "engine/weights/methods/compressed_tensors.h"

#include <algorithm>

#include "engine/weights/methods/bit_stream.h"
#include "engine/weights/methods/column_order.h"
#include "engine/weights/methods/method.h"
#include "engine/weights/methods/stored.h"
#include "kernels/ceil_div.h"

namespace quantd {
namespace {

using Group = CompressedTensorsGroup;
using Format = Group::Format;
using Strategy = Group::Strategy;

// One module: where its tensors are and what its group says.
struct Module {
  const Checkpoint& checkpoint;
  const WeightShape& shape;
  const Group& group;

  std::string Name(std::string_view part) const { return fmt::format("{}.{}", shape.module, part); }
  bool Has(std::string_view part) const { return checkpoint.Find(Name(part)) != nullptr; }
  int64_t groups() const {
    return group.strategy == Strategy::kGroup ? CeilDiv(shape.k, group.group_size) : 1;
  }
  // [1] or [] of tensors; the first is what 0.20 writes.
  std::vector<std::vector<int64_t>> ScaleShapes() const {
    switch (group.strategy) {
      case Strategy::kTensor: return {{1}, {}, {1, 1}};
      case Strategy::kChannel: return {{shape.n, 1}, {shape.n}};
      case Strategy::kGroup: return {{shape.n, groups()}};
      case Strategy::kBlock:
        return {{CeilDiv(shape.n, group.block_rows), CeilDiv(shape.k, group.block_columns)}};
    }
    return {};
  }
};

// Tensor `name` of one of `dtypes` and of any of `shapes`.
absl::StatusOr<const StoredTensor*> Require(const Checkpoint& c, const std::string& name,
                                            std::initializer_list<StoredDType> dtypes,
                                            const std::vector<std::vector<int64_t>>& shapes) {
  const StoredTensor* t = c.Find(name);
  const bool known =
      t != nullptr && std::find(shapes.begin(), shapes.end(), t->shape) != shapes.end();
  return RequireTensor(c, name, dtypes, known ? t->shape : shapes.front());
}

constexpr std::initializer_list<StoredDType> kFloats = {StoredDType::kBF16, StoredDType::kF16,
                                                        StoredDType::kF32};

// Symmetric files of old releases hold zero points too, all of them 0.
absl::Status CheckAllZero(const StoredTensor& t, const std::string& name) {
  const auto is_zero = [](std::byte b) { return b == std::byte{0}; };
  if (std::all_of(t.data.begin(), t.data.end(), is_zero)) return absl::OkStatus();
  return DataLoss("tensor {}: is not zero, config.json says symmetric", name);
}

// ---- what the format is

Codec CodecOf(const Group& group) {
  switch (group.format) {
    case Format::kFloat: return Codec::kE4M3;
    case Format::kNvfp4: return Codec::kE2M1;
    default: break;
  }
  if (group.bits == 8) return group.symmetric ? Codec::kInt8 : Codec::kUInt8;
  if (group.bits == 2) return Codec::kUInt2;  // symmetric: with zero points of 2
  return group.symmetric ? Codec::kInt4 : Codec::kUInt4;
}

// After the scale's dtype has been checked.
QuantFormat FormatOf(const Module& m, bool reordered) {
  const StoredDType scale = m.checkpoint.Find(m.Name("weight_scale"))->dtype;
  QuantFormat f;
  f.codec = CodecOf(m.group);
  switch (m.group.strategy) {
    case Strategy::kTensor:  // the scale is repeated, so that modules can share a weight
    case Strategy::kChannel: f.block = {BlockShape::Kind::kRow, 0, 0}; break;
    case Strategy::kGroup: f.block = {BlockShape::Kind::kGroup, m.group.group_size, 0}; break;
    case Strategy::kBlock:
      f.block = {BlockShape::Kind::kTile, m.group.block_columns, m.group.block_rows};
      break;
  }
  f.scale = scale == StoredDType::kF8E4M3 ? ScaleType::kE4M3
            : scale == StoredDType::kBF16 ? ScaleType::kBF16
            : scale == StoredDType::kF16  ? ScaleType::kF16
                                          : ScaleType::kF32;
  const bool is_unsigned =
      f.codec == Codec::kUInt2 || f.codec == Codec::kUInt4 || f.codec == Codec::kUInt8;
  f.zero = is_unsigned ? ZeroType::kU8 : ZeroType::kNone;
  f.reordered = reordered;
  return f;
}

absl::StatusOr<std::vector<int32_t>> ReadColumns(const Module& m) {
  const std::string name = m.Name("weight_g_idx");
  ASSIGN_OR_RETURN(const StoredTensor* t,
                   RequireTensor(m.checkpoint, name, {StoredDType::kI32}, {m.shape.k}));
  return ColumnOrder(Values<int32_t>(*t), m.group.group_size, name);
}

// ---- checks

absl::Status CheckCodes(const Module& m, std::vector<std::string>& tensors) {
  const int64_t n = m.shape.n, k = m.shape.k;
  const auto require = [&](std::string_view part, StoredDType dtype,
                           const std::vector<int64_t>& shape) {
    tensors.push_back(m.Name(part));
    return RequireTensor(m.checkpoint, tensors.back(), {dtype}, shape).status();
  };
  switch (m.group.format) {
    case Format::kInt: return require("weight", StoredDType::kI8, {n, k});
    case Format::kFloat: return require("weight", StoredDType::kF8E4M3, {n, k});
    case Format::kNvfp4:
      if (k % 16 != 0) {
        return Unimplemented("{}: {} inputs are not a multiple of nvfp4's groups of 16",
                             m.shape.module, k);
      }
      RETURN_IF_ERROR(require("weight_packed", StoredDType::kU8, {n, k / 2}));
      // Of quantized activations, which weight-only groups do not have; written all the same.
      if (m.Has("input_global_scale")) {
        tensors.push_back(m.Name("input_global_scale"));
        RETURN_IF_ERROR(
            Require(m.checkpoint, tensors.back(), {StoredDType::kF32}, {{1}, {}}).status());
      }
      return require("weight_global_scale", StoredDType::kF32, {1});
    case Format::kPacked: break;
  }
  RETURN_IF_ERROR(require("weight_packed", StoredDType::kI32, {n, WordsFor(k, m.group.bits)}));
  RETURN_IF_ERROR(require("weight_shape", StoredDType::kI64, {2}));
  const std::vector<int64_t> said = Values<int64_t>(*m.checkpoint.Find(tensors.back()));
  if (said != std::vector<int64_t>{n, k}) {
    return DataLoss("tensor {}: says {}, config.json says [{}, {}]", tensors.back(),
                    ShapeText(said), n, k);
  }
  return absl::OkStatus();
}

// Whether zero points lie in the same bit stream as the codes.
bool PacksZeros(const Group& group) {
  return group.format == Format::kPacked && group.strategy != Strategy::kTensor;
}

absl::Status CheckZeros(const Module& m, std::vector<std::string>& tensors) {
  const std::string name = m.Name("weight_zero_point");
  const StoredTensor* t = m.checkpoint.Find(name);
  if (m.group.symmetric) {
    if (t == nullptr) return absl::OkStatus();
    tensors.push_back(name);
    return CheckAllZero(*t, name);
  }
  tensors.push_back(name);
  if (!PacksZeros(m.group)) {
    return Require(m.checkpoint, name, {StoredDType::kI8}, m.ScaleShapes()).status();
  }
  return RequireTensor(m.checkpoint, name, {StoredDType::kI32},
                       {WordsFor(m.shape.n, m.group.bits), m.groups()})
      .status();
}

absl::StatusOr<float> ReadScalar(const Module& m, std::string_view part,
                                 std::initializer_list<StoredDType> dtypes) {
  const std::string name = m.Name(part);
  RETURN_IF_ERROR(Require(m.checkpoint, name, dtypes, {{1}, {}, {1, 1}}).status());
  ASSIGN_OR_RETURN(const std::vector<float> values, FiniteFloats(m.checkpoint, name));
  if (values[0] > 0) return values[0];
  return DataLoss("tensor {}: is {}; a scale is positive", name, values[0]);
}

absl::StatusOr<ActivationQuant> CheckActivation(const Module& m,
                                                std::vector<std::string>& tensors) {
  ActivationQuant activation = m.group.activation;
  if (activation.kind == ActivationQuant::Kind::kNone || !m.group.static_activation) {
    return activation;
  }
  ASSIGN_OR_RETURN(activation.scale, ReadScalar(m, "input_scale", kFloats));
  tensors.push_back(m.Name("input_scale"));
  const std::string zero = m.Name("input_zero_point");
  if (m.group.symmetric_activation) {
    if (!m.Has("input_zero_point")) return activation;
    tensors.push_back(zero);
    RETURN_IF_ERROR(CheckAllZero(*m.checkpoint.Find(zero), zero));
    return activation;
  }
  tensors.push_back(zero);
  ASSIGN_OR_RETURN(const StoredTensor* t,
                   Require(m.checkpoint, zero, {StoredDType::kI8}, {{1}, {}, {1, 1}}));
  activation.zero_point = Values<int8_t>(*t)[0];
  return activation;
}

absl::StatusOr<WeightSource> CheckModule(const Module& m) {
  WeightSource source;
  source.label = "compressed-tensors";
  RETURN_IF_ERROR(CheckCodes(m, source.tensors));
  const std::string scale = m.Name("weight_scale");
  source.tensors.push_back(scale);
  const bool nvfp4 = m.group.format == Format::kNvfp4;
  RETURN_IF_ERROR(
      Require(m.checkpoint, scale,
              nvfp4 ? std::initializer_list<StoredDType>{StoredDType::kF8E4M3} : kFloats,
              m.ScaleShapes())
          .status());
  RETURN_IF_ERROR(CheckZeros(m, source.tensors));
  if (m.group.has_column_order) {
    source.tensors.push_back(m.Name("weight_g_idx"));
    ASSIGN_OR_RETURN(source.columns, ReadColumns(m));
  }
  ASSIGN_OR_RETURN(source.activation, CheckActivation(m, source.tensors));
  source.format = FormatOf(m, !source.columns.empty());
  return source;
}

// ---- values

// One code a byte, [n, k] in the input's order, as CodecOf says.
std::vector<uint8_t> ReadPacked(const Module& m) {
  const int bits = m.group.bits;
  const std::vector<uint32_t> words = Values<uint32_t>(*m.checkpoint.Find(m.Name("weight_packed")));
  const int64_t row_words = WordsFor(m.shape.k, bits);
  // Stored as q + 2^(bits - 1); two's complement of the codec's width where that is signed.
  const bool is_signed = m.group.symmetric && bits != 2;
  const uint32_t offset = is_signed ? 1u << (bits - 1) : 0;
  const uint32_t mask = bits == 8 ? 0xff : 0xf;
  std::vector<uint8_t> codes(static_cast<size_t>(m.shape.n * m.shape.k));
  size_t i = 0;
  for (int64_t row = 0; row < m.shape.n; ++row) {
    const uint32_t* stream = words.data() + row * row_words;
    for (int64_t col = 0; col < m.shape.k; ++col) {
      codes[i++] = static_cast<uint8_t>((CodeAt(stream, 1, col, bits) - offset) & mask);
    }
  }
  return codes;
}

absl::StatusOr<std::vector<uint8_t>> ReadCodes(const Module& m) {
  if (m.group.format == Format::kPacked) return ReadPacked(m);
  if (m.group.format == Format::kNvfp4) {
    const std::vector<uint8_t> packed =
        Values<uint8_t>(*m.checkpoint.Find(m.Name("weight_packed")));
    std::vector<uint8_t> codes(packed.size() * 2);
    for (size_t i = 0; i < packed.size(); ++i) {
      codes[2 * i] = packed[i] & 15;
      codes[2 * i + 1] = packed[i] >> 4;
    }
    return codes;
  }
  std::vector<uint8_t> codes = Values<uint8_t>(*m.checkpoint.Find(m.Name("weight")));
  if (m.group.format == Format::kFloat) RETURN_IF_ERROR(CheckE4M3(codes, m.Name("weight")));
  if (!m.group.symmetric) {
    for (uint8_t& code : codes) code ^= 0x80;  // from -128 to 0
  }
  return codes;
}

// One a block, as the codes' unsigned codec counts.
std::vector<float> ReadZeros(const Module& m) {
  const size_t blocks = static_cast<size_t>(m.shape.n * m.groups());
  if (m.group.symmetric) return std::vector<float>(blocks, 2.0f);  // of 2 bits
  const StoredTensor& t = *m.checkpoint.Find(m.Name("weight_zero_point"));
  std::vector<float> zeros;
  if (!PacksZeros(m.group)) {
    const int half = 1 << (m.group.bits - 1);
    for (const int8_t z : Values<int8_t>(t)) zeros.push_back(static_cast<float>(z + half));
    zeros.resize(blocks, zeros.front());  // of the whole tensor
    return zeros;
  }
  const std::vector<uint32_t> words = Values<uint32_t>(t);
  const int64_t groups = m.groups();
  for (int64_t row = 0; row < m.shape.n; ++row) {
    for (int64_t g = 0; g < groups; ++g) {
      zeros.push_back(static_cast<float>(CodeAt(words.data() + g, groups, row, m.group.bits)));
    }
  }
  return zeros;
}

// Out of range only where int8 zero points stand beside narrower codes.
absl::Status CheckZeroRange(const std::vector<float>& zeros, const Module& m) {
  const float largest = static_cast<float>((1 << m.group.bits) - 1);
  for (size_t i = 0; i < zeros.size(); ++i) {
    if (zeros[i] >= 0 && zeros[i] <= largest) continue;
    const float half = static_cast<float>(1 << (m.group.bits - 1));
    return DataLoss("tensor {}: element {} is {}, which {} bits do not hold",
                    m.Name("weight_zero_point"), i, zeros[i] - half, m.group.bits);
  }
  return absl::OkStatus();
}

absl::StatusOr<QuantizedMatrix> LoadModule(const Module& m) {
  QuantizedMatrix q;
  q.n = m.shape.n;
  q.k = m.shape.k;
  if (m.group.has_column_order) {
    ASSIGN_OR_RETURN(q.columns, ReadColumns(m));
  }
  q.format = FormatOf(m, !q.columns.empty());
  ASSIGN_OR_RETURN(q.codes, ReadCodes(m));
  ASSIGN_OR_RETURN(q.scales, FiniteFloats(m.checkpoint, m.Name("weight_scale")));
  // Integers may have scales of either sign: AutoRound's symmetric ones, exported in this format,
  // are negative where that serves the larger end of a group.
  if (m.group.format == Format::kFloat || m.group.format == Format::kNvfp4) {
    RETURN_IF_ERROR(CheckNotNegative(q.scales, m.Name("weight_scale")));
  }
  if (m.group.strategy == Strategy::kTensor) {
    q.scales.assign(static_cast<size_t>(q.n), q.scales.front());
  }
  if (m.group.format == Format::kNvfp4) {
    ASSIGN_OR_RETURN(q.global_scale, ReadScalar(m, "weight_global_scale", {StoredDType::kF32}));
  }
  if (q.format.zero != ZeroType::kNone) {
    q.zeros = ReadZeros(m);
    RETURN_IF_ERROR(CheckZeroRange(q.zeros, m));
  }
  if (!q.columns.empty()) ReorderColumns(q.columns, q.codes);
  return q;
}

class CompressedTensors : public Method {
 public:
  std::string_view name() const override { return "compressed-tensors"; }
  bool trainable_with_peft(const MethodOptions&) const override { return true; }
  std::string_view skip_key() const override { return "ignore"; }

  MethodOptions Read(const OptionReader& reader, OptionSource) const override {
    auto settings = std::make_shared<CompressedTensorsSettings>();
    ReadCompressedTensors(reader, *settings);
    MethodOptions options;
    options.method = name();
    options.skip_modules = settings->ignore;
    options.settings = std::move(settings);
    return options;
  }

  bool Detect(const Checkpoint& c, const WeightShape& shape) const override {
    for (const char* part : {"weight_packed", "weight_scale", "weight_shape"}) {
      if (c.Find(shape.module + "." + part) != nullptr) return true;
    }
    return false;
  }

  absl::StatusOr<WeightSource> Check(const Checkpoint& c, const WeightShape& shape,
                                     const MethodOptions& config) const override {
    const auto& settings = SettingsOf<CompressedTensorsSettings>(config);
    const Group* group = settings.GroupOf(shape.module);
    if (group == nullptr) {
      return DataLoss(
          "{}: is stored as compressed-tensors, but no group of config.json targets it, or it is "
          "ignored",
          shape.module);
    }
    const Module m{c, shape, *group};
    auto source = CheckModule(m);
    if (!source.ok()) {
      return Annotate(source.status(), fmt::format("{} ({}, {} of config.json)", shape.module,
                                                   ToString(group->format), group->name));
    }
    if (settings.has_kv_scales && m.Has("output_scale")) {  // where old releases kept k's and v's
      source->tensors.push_back(m.Name("output_scale"));
    }
    return source;
  }

  absl::StatusOr<QuantizedMatrix> Load(const Checkpoint& c, const WeightShape& shape,
                                       const MethodOptions& config) const override {
    const auto& settings = SettingsOf<CompressedTensorsSettings>(config);
    return LoadModule({c, shape, *settings.GroupOf(shape.module)});
  }
};

}  // namespace

std::string CompressedTensorsSettings::ToYaml() const {
  std::string yaml = "config_groups:\n";
  for (const Group& g : groups) {
    yaml += fmt::format("  {}: {{format: {}, num_bits: {}, targets: [\"{}\"]}}\n", g.name,
                        ToString(g.format), g.bits, fmt::join(g.targets, "\", \""));
  }
  return yaml;
}

std::string CompressedTensorsSettings::Describe() const {
  std::string text;
  for (const Group& g : groups) {
    text += fmt::format("{} {} {} bits", text.empty() ? "compressed-tensors" : ",",
                        ToString(g.format), g.bits);
    if (g.strategy == Strategy::kGroup) text += fmt::format(" in groups of {}", g.group_size);
    if (g.activation.kind != ActivationQuant::Kind::kNone) text += " with quantized activations";
  }
  return text;
}

const Method& CompressedTensorsMethod() {
  static const CompressedTensors kMethod;
  return kMethod;
}

}  // namespace quantd
