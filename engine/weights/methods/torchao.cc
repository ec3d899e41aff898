// torchao 0.18 as transformers 5 saves it, and on load.
//
// A quantized weight is a tensor subclass, flattened into <m>._weight_<attribute>. The file's
// __metadata__ holds under the original name "<m>.weight" the class and its fields as JSON:
//   {"_type": "Int8Tensor", "_data": {"block_size": [1, 256], ...}, "_tensor_data_names": [...]}
// qdata, scale, zero_point of each class, with a grid of ceil(n / rows) x ceil(k / columns) blocks:
//   Int8Tensor    I8 [n, k], F32 grid, I8 grid (absent or 0 where symmetric): (q - zero) * scale
//   Float8Tensor  F8_E4M3 [n, k], F32 grid: q * scale
//   IntxUnpackedToInt8Tensor  I8 [n, k] of narrower values, float grid, I8 grid: (q - zero) * scale
//   Int4Tensor    I8 [n, k / 2] of signed halves, the first in the low one; float [k / g, n] twice:
//                 q * scale + zero_point
#include "engine/weights/methods/torchao.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "engine/weights/json_check.h"
#include "engine/weights/methods/stored.h"
#include "engine/weights/module_match.h"
#include "engine/weights/value_scan.h"
#include "kernels/quant/quantize_fp8.h"
#include "kernels/quant/quantize_int.h"

namespace quantd {
namespace {

using Type = TorchAoSettings::Type;
using Json = nlohmann::json;

constexpr std::initializer_list<StoredDType> kFloats = {StoredDType::kBF16, StoredDType::kF16,
                                                        StoredDType::kF32};

constexpr std::string_view kSupported =
    "supported: Int8Tensor, Float8Tensor, IntxUnpackedToInt8Tensor, Int4Tensor (plain)";

std::string PartName(const std::string& module, std::string_view part) {
  return fmt::format("{}._weight_{}", module, part);
}

// What the metadata says of one weight.
struct Subclass {
  std::string type;
  Json data;
  std::vector<std::string> parts;             // of _tensor_data_names
  int64_t block_rows = 1, block_columns = 0;  // of a block

  bool Has(std::string_view part) const {
    return std::find(parts.begin(), parts.end(), part) != parts.end();
  }
  /// A field; null when absent.
  Json Field(const char* name) const {
    const auto it = data.find(name);
    return it == data.end() ? Json() : *it;
  }
  /// The _data of a field that is an object of that class; null otherwise.
  static Json Inside(const Json& field, std::string_view type) {
    if (!field.is_object() || field.value("_type", Json()) != Json(std::string(type))) return {};
    return field.value("_data", Json());
  }
};

/// Device packings and formats that are not read, with what works instead.
absl::Status CheckClass(const std::string& type) {
  for (const char* known :
       {"Int8Tensor", "Float8Tensor", "IntxUnpackedToInt8Tensor", "Int4Tensor"}) {
    if (type == known) return absl::OkStatus();
  }
  if (type.starts_with("Int4")) {
    return Unimplemented("\"{}\" is packed for one device; save with int4_packing_format PLAIN",
                         type);
  }
  return Unimplemented("\"{}\" is not supported; {}", type, kSupported);
}

absl::StatusOr<Subclass> ParseSubclass(const Json& json, const WeightShape& shape) {
  const auto field = [&](const char* name) {
    return json.is_object() ? json.value(name, Json()) : Json();
  };
  const Json type = field("_type"), names = field("_tensor_data_names");
  Subclass s;
  s.data = field("_data");
  if (!type.is_string() || !names.is_array() || !s.data.is_object()) {
    return DataLoss("has no _type, _data and _tensor_data_names");
  }
  s.type = type.get<std::string>();
  RETURN_IF_ERROR(CheckClass(s.type));
  for (const Json& name : names) {
    if (name.is_string()) s.parts.push_back(name.get<std::string>());
  }
  const Json block = s.Field("block_size");
  const auto side = [&block](size_t i) {
    return block[i].is_number_unsigned() && block[i].get<uint64_t>() <= (1u << 30)
               ? block[i].get<int64_t>()
               : 0;
  };
  if (!block.is_array() || block.size() != 2 || side(0) < 1 || side(1) < 1) {
    return DataLoss("block_size is {}, not [rows, columns]", block.dump());
  }
  s.block_rows = std::min(side(0), shape.n);
  s.block_columns = std::min(side(1), shape.k);
  return s;
}

absl::StatusOr<Subclass> ReadSubclass(const Checkpoint& c, const WeightShape& shape) {
  const std::string weight = shape.module + ".weight";
  const std::string qdata = PartName(shape.module, "qdata");
  const StoredTensor* t = c.Find(qdata);
  if (t == nullptr) return DataLoss("tensor {} is missing", qdata);
  const auto& metadata = c.metadata(t->file);
  const auto it = metadata.find(weight);
  if (it == metadata.end()) {
    return DataLoss("{}: __metadata__ says nothing of {}", c.file_name(t->file), weight);
  }
  const std::string where = fmt::format("{}: __metadata__ of {}", c.file_name(t->file), weight);
  RETURN_IF_ERROR(CheckJson(it->second, where));
  auto subclass = ParseSubclass(Json::parse(it->second, nullptr, false), shape);
  if (!subclass.ok()) return Annotate(subclass.status(), where);
  return subclass;
}

// ---- activations

absl::Status CheckGranularity(const Json& kwargs) {
  const Json granularity = kwargs.value("granularity", Json());
  const Json type = granularity.is_object() ? granularity.value("_type", Json()) : Json();
  if (type == "PerRow") return absl::OkStatus();
  return Unimplemented("activations with granularity {} are not supported; supported: PerRow",
                       type.dump());
}

absl::StatusOr<ActivationQuant> ActivationOfSubclass(const Subclass& s) {
  for (const char* part : {"act_quant_scale", "act_quant_zero_point"}) {
    if (s.Has(part)) return Unimplemented("static activation scales ({}) are not supported", part);
  }
  if (s.Has("act_pre_scale")) {
    return Unimplemented("scaled activations (act_pre_scale) are not supported");
  }
  if (s.type == "Int4Tensor") {
    const Json dtype = s.Field("activation_dtype");
    if (dtype.is_null() || Subclass::Inside(dtype, "torch.dtype") == "bfloat16") {
      return ActivationQuant();
    }
    return Unimplemented("activation_dtype {} is not supported; supported: bfloat16", dtype.dump());
  }
  if (s.type == "IntxUnpackedToInt8Tensor") {
    const Json activation = s.Field("activation_quantization");
    if (activation.is_null()) return ActivationQuant();
    if (activation == "int8_asym_per_token") return TorchAoIntxActivation();
    return Unimplemented(
        "activation_quantization {} is not supported; supported: null, "
        "\"int8_asym_per_token\"",
        activation.dump());
  }
  const Json kwargs = s.Field("act_quant_kwargs");
  if (kwargs.is_null()) return ActivationQuant();
  const bool int8 = s.type == "Int8Tensor";
  const Json inside = Subclass::Inside(
      kwargs, int8 ? "QuantizeTensorToInt8Kwargs" : "QuantizeTensorToFloat8Kwargs");
  if (!inside.is_object()) return DataLoss("act_quant_kwargs are {}", kwargs.dump());
  RETURN_IF_ERROR(CheckGranularity(inside));
  for (const char* bound : {"hp_value_lb", "hp_value_ub"}) {
    if (!inside.value(bound, Json()).is_null()) {
      return Unimplemented("bounds of activations ({}) are not supported", bound);
    }
  }
  if (inside.value("reduce_range", Json(false)) == true) {
    return Unimplemented("activations of 7 bits (reduce_range) are not supported");
  }
  if (!int8) return TorchAoFp8Activation();
  const Json mapping = Subclass::Inside(inside.value("mapping_type", Json()), "MappingType");
  if (mapping.is_null() || mapping == "SYMMETRIC") return TorchAoInt8Activation(true);
  if (mapping == "ASYMMETRIC") return TorchAoInt8Activation(false);
  return Unimplemented("mapping_type {} of activations is not supported", mapping.dump());
}

// ---- weights

// Codes of IntxUnpackedToInt8Tensor: "int4" is 4.
absl::StatusOr<int> IntxBits(const Subclass& s) {
  const Json dtype = Subclass::Inside(s.Field("target_dtype"), "torch.dtype");
  for (int bits = 1; bits <= 8; ++bits) {
    if (dtype == fmt::format("int{}", bits)) return bits;
  }
  return DataLoss("target_dtype is {}, not one of int1 to int8", dtype.dump());
}

BlockShape BlockOf(const Subclass& s, const WeightShape& shape) {
  using Kind = BlockShape::Kind;
  const int32_t rows = static_cast<int32_t>(s.block_rows);
  const int32_t columns = static_cast<int32_t>(s.block_columns);
  if (columns == shape.k && (rows == 1 || rows == shape.n)) return {Kind::kRow, 0, 0};
  return rows == 1 ? BlockShape{Kind::kGroup, columns, 0} : BlockShape{Kind::kTile, columns, rows};
}

/// One scale (or zero point) of the whole weight, which is repeated for every row.
bool IsWhole(const Subclass& s, const WeightShape& shape) {
  return s.block_rows == shape.n && s.block_columns == shape.k && shape.n > 1;
}

std::vector<int64_t> GridOf(const Subclass& s, const WeightShape& shape) {
  return {(shape.n + s.block_rows - 1) / s.block_rows,
          (shape.k + s.block_columns - 1) / s.block_columns};
}

ScaleType ScaleTypeOf(StoredDType dtype) {
  return dtype == StoredDType::kBF16  ? ScaleType::kBF16
         : dtype == StoredDType::kF16 ? ScaleType::kF16
                                      : ScaleType::kF32;
}

absl::StatusOr<QuantFormat> CheckInt4(const Checkpoint& c, const WeightShape& shape,
                                      const Subclass& s) {
  const int64_t group = s.block_columns;
  if (s.block_rows != 1 || shape.k % 2 != 0) {
    return Unimplemented("Int4Tensor with blocks of {} rows, or an odd number of inputs",
                         s.block_rows);
  }
  if (s.Field("shape") != Json({shape.n, shape.k})) {
    return DataLoss("shape is {}, config.json says [{}, {}]", s.Field("shape").dump(), shape.n,
                    shape.k);
  }
  const std::vector<int64_t> grid = {(shape.k + group - 1) / group, shape.n};
  RETURN_IF_ERROR(RequireTensor(c, PartName(shape.module, "qdata"),
                                {StoredDType::kI8, StoredDType::kU8}, {shape.n, shape.k / 2})
                      .status());
  ASSIGN_OR_RETURN(const StoredTensor* scale,
                   RequireTensor(c, PartName(shape.module, "scale"), kFloats, grid));
  RETURN_IF_ERROR(
      RequireTensor(c, PartName(shape.module, "zero_point"), {scale->dtype}, grid).status());
  const DType dtype = *ToDType(scale->dtype);
  return Int4OffsetFormat(dtype, static_cast<int32_t>(group));
}

absl::StatusOr<QuantFormat> CheckGrid(const Checkpoint& c, const WeightShape& shape,
                                      const Subclass& s) {
  const bool fp8 = s.type == "Float8Tensor";
  const std::string qdata = PartName(shape.module, "qdata");
  const StoredTensor* codes = c.Find(qdata);
  if (fp8 && codes->dtype != StoredDType::kF8E4M3 && codes->shape.size() == 2) {
    return Unimplemented("tensor {}: {} is not supported; supported: F8_E4M3", qdata,
                         ToString(codes->dtype));
  }
  RETURN_IF_ERROR(
      RequireTensor(c, qdata, {fp8 ? StoredDType::kF8E4M3 : StoredDType::kI8}, {shape.n, shape.k})
          .status());
  ASSIGN_OR_RETURN(const StoredTensor* scale,
                   RequireTensor(c, PartName(shape.module, "scale"), kFloats, GridOf(s, shape)));
  int bits = 8;
  if (s.type == "IntxUnpackedToInt8Tensor") {
    ASSIGN_OR_RETURN(bits, IntxBits(s));
  }
  bool has_zeros = false;
  const std::string zero_name = PartName(shape.module, "zero_point");
  if (s.Has("zero_point") && !fp8) {
    const StoredTensor* zero = c.Find(zero_name);
    if (zero != nullptr && ToDType(zero->dtype).has_value() && zero->dtype != StoredDType::kI8) {
      return Unimplemented("tensor {}: {} zero points are not supported; supported: I8", zero_name,
                           ToString(zero->dtype));
    }
    ASSIGN_OR_RETURN(zero, RequireTensor(c, zero_name, {StoredDType::kI8}, GridOf(s, shape)));
    has_zeros = std::any_of(zero->data.begin(), zero->data.end(),
                            [](std::byte b) { return b != std::byte{0}; });
  }
  QuantFormat f;
  f.codec = fp8         ? Codec::kE4M3
            : bits <= 4 ? (has_zeros ? Codec::kUInt4 : Codec::kInt4)
                        : (has_zeros ? Codec::kUInt8 : Codec::kInt8);
  f.block = BlockOf(s, shape);
  f.scale = ScaleTypeOf(scale->dtype);
  f.zero = has_zeros ? ZeroType::kU8 : ZeroType::kNone;
  return f;
}

absl::StatusOr<QuantFormat> CheckWeight(const Checkpoint& c, const WeightShape& shape,
                                        const Subclass& s) {
  return s.type == "Int4Tensor" ? CheckInt4(c, shape, s) : CheckGrid(c, shape, s);
}

// ---- values

absl::StatusOr<std::vector<float>> ReadScales(const Checkpoint& c, const std::string& name) {
  ASSIGN_OR_RETURN(std::vector<float> scales, FiniteFloats(c, name));
  RETURN_IF_ERROR(CheckNotNegative(scales, name));
  return scales;
}

// [k / g, n] to QuantizedMatrix's [n, k / g].
std::vector<float> Transposed(const std::vector<float>& grid, int64_t n) {
  const size_t rows = static_cast<size_t>(n), groups = grid.size() / rows;
  std::vector<float> out(grid.size());
  for (size_t g = 0; g < groups; ++g) {
    for (size_t r = 0; r < rows; ++r) out[r * groups + g] = grid[g * rows + r];
  }
  return out;
}

absl::Status LoadInt4(const Checkpoint& c, const WeightShape& shape, QuantizedMatrix& m) {
  ASSIGN_OR_RETURN(const std::vector<float> scales, ReadScales(c, PartName(shape.module, "scale")));
  ASSIGN_OR_RETURN(const std::vector<float> offsets,
                   FiniteFloats(c, PartName(shape.module, "zero_point")));
  m.scales = Transposed(scales, m.n);
  m.zeros = Transposed(offsets, m.n);
  m.codes.resize(static_cast<size_t>(m.n * m.k));
  size_t i = 0;
  for (const uint8_t byte : Values<uint8_t>(*c.Find(PartName(shape.module, "qdata")))) {
    m.codes[i++] = byte & 0xf;
    m.codes[i++] = byte >> 4;
  }
  return absl::OkStatus();
}

/// `values` of `name` are what `bits` hold; then two's complement of the codec's width, or plus
/// half its range where codes are unsigned.
absl::Status ToCodec(const std::string& name, int bits, const QuantFormat& format,
                     std::vector<uint8_t>& values) {
  const int least = -(1 << (bits - 1)), most = -least - 1;
  const bool narrow = BitsOf(format.codec) == 4;
  const int offset = format.zero == ZeroType::kNone ? 0 : narrow ? 8 : 128;
  for (size_t i = 0; i < values.size(); ++i) {
    const int value = static_cast<int8_t>(values[i]);
    if (value < least || value > most) {
      return DataLoss("tensor {}: element {} is {}, not one of int{}", name, i, value, bits);
    }
    values[i] = static_cast<uint8_t>((value + offset) & (narrow ? 0xf : 0xff));
  }
  return absl::OkStatus();
}

absl::Status LoadGrid(const Checkpoint& c, const WeightShape& shape, const Subclass& s,
                      QuantizedMatrix& m) {
  const std::string qdata = PartName(shape.module, "qdata");
  m.codes = Values<uint8_t>(*c.Find(qdata));
  ASSIGN_OR_RETURN(m.scales, ReadScales(c, PartName(shape.module, "scale")));
  const bool whole = IsWhole(s, shape);
  if (whole) m.scales.assign(static_cast<size_t>(m.n), m.scales.front());
  if (s.type == "Float8Tensor") return CheckE4M3(m.codes, qdata);
  int bits = 8;
  if (s.type == "IntxUnpackedToInt8Tensor") {
    ASSIGN_OR_RETURN(bits, IntxBits(s));
  }
  RETURN_IF_ERROR(ToCodec(qdata, bits, m.format, m.codes));
  if (m.format.zero == ZeroType::kNone) return absl::OkStatus();
  const std::string name = PartName(shape.module, "zero_point");
  std::vector<uint8_t> zeros = Values<uint8_t>(*c.Find(name));
  RETURN_IF_ERROR(ToCodec(name, bits, m.format, zeros));
  m.zeros.assign(zeros.begin(), zeros.end());
  if (whole) m.zeros.assign(static_cast<size_t>(m.n), m.zeros.front());
  return absl::OkStatus();
}

class TorchAo : public Method {
 public:
  std::string_view name() const override { return "torchao"; }
  bool trainable_with_peft(const MethodOptions& options) const override {
    // transformers looks for "8weight" in the name of the config's class.
    const std::string_view name = ClassName(SettingsOf<TorchAoSettings>(options).type);
    return name.find("8Weight") != std::string_view::npos;
  }
  bool on_load() const override { return true; }

  MethodOptions Read(const OptionReader& reader, OptionSource source) const override {
    auto settings = std::make_shared<TorchAoSettings>();
    ReadTorchAo(reader, source, *settings);
    MethodOptions options;
    options.method = name();
    options.skip_modules = reader.Strings(skip_key());
    if (source == OptionSource::kProfile) {
      for (const std::string& pattern : options.skip_modules) {
        reader.faults().Add(Annotate(CheckSkipPattern(pattern), reader.Path(skip_key())));
      }
      if (reader.Bool("include_input_output_embeddings", false)) {
        reader.faults().AddUnimplemented("{}: an embedding cannot be quantized",
                                         reader.Path("include_input_output_embeddings"));
      }
    }
    options.settings = std::move(settings);
    return options;
  }

  bool Detect(const Checkpoint& c, const WeightShape& shape) const override {
    const std::string prefix = PartName(shape.module, "");
    const auto it = c.tensors().lower_bound(prefix);
    return it != c.tensors().end() && it->first.starts_with(prefix);
  }

  absl::StatusOr<WeightSource> Check(const Checkpoint& c, const WeightShape& shape,
                                     const MethodOptions& config) const override {
    ASSIGN_OR_RETURN(const Subclass s, ReadSubclass(c, shape));
    const std::string_view said = TensorClass(SettingsOf<TorchAoSettings>(config).type);
    if (!said.empty() && said != s.type) {
      return DataLoss("{}: is stored as {}, config.json's quant_type makes {}", shape.module,
                      s.type, said);
    }
    WeightSource source;
    source.label = name();
    const auto annotated = [&](const absl::Status& status) {
      return Annotate(status, fmt::format("{} ({})", shape.module, s.type));
    };
    auto activation = ActivationOfSubclass(s);
    if (!activation.ok()) return annotated(activation.status());
    auto format = CheckWeight(c, shape, s);
    if (!format.ok()) return annotated(format.status());
    source.activation = *activation;
    source.format = *format;
    for (const std::string& part : s.parts) {
      source.tensors.push_back(PartName(shape.module, part));
      if (c.Find(source.tensors.back()) == nullptr) {
        return annotated(DataLoss("tensor {} is missing", source.tensors.back()));
      }
    }
    return source;
  }

  absl::StatusOr<QuantizedMatrix> Load(const Checkpoint& c, const WeightShape& shape,
                                       const MethodOptions&) const override {
    ASSIGN_OR_RETURN(const Subclass s, ReadSubclass(c, shape));
    QuantizedMatrix m;
    m.n = shape.n;
    m.k = shape.k;
    ASSIGN_OR_RETURN(m.format, CheckWeight(c, shape, s));
    if (s.type == "Int4Tensor") {
      RETURN_IF_ERROR(LoadInt4(c, shape, m));
    } else {
      RETURN_IF_ERROR(LoadGrid(c, shape, s, m));
    }
    return m;
  }

  QuantFormat FormatOf(const WeightShape&, const MethodOptions& options,
                       DType plain) const override {
    const auto& s = SettingsOf<TorchAoSettings>(options);
    switch (s.type) {
      case Type::kInt4WeightOnly: return Int4OffsetFormat(plain, s.group_size);
      case Type::kIntxWeightOnly:
      case Type::kInt8DynamicActivationIntxWeight: return Groups(s).Format(plain);
      default: break;
    }
    QuantFormat f;
    const bool fp8 =
        s.type == Type::kFloat8WeightOnly || s.type == Type::kFloat8DynamicActivationFloat8Weight;
    f.codec = fp8 ? Codec::kE4M3 : Codec::kInt8;
    f.block = {BlockShape::Kind::kRow, 0, 0};
    f.scale = ScaleType::kF32;
    return f;
  }

  absl::StatusOr<QuantizedMatrix> Quantize(const TensorView& w, const MethodOptions& options,
                                           DType plain) const override {
    const auto& s = SettingsOf<TorchAoSettings>(options);
    if (plain == DType::kF16) RETURN_IF_ERROR(CheckFitsF16(w));
    switch (s.type) {
      case Type::kInt4WeightOnly: return QuantizeInt4Offset(w, plain, s.group_size);
      case Type::kIntxWeightOnly:
      case Type::kInt8DynamicActivationIntxWeight: return QuantizeIntGroups(w, plain, Groups(s));
      case Type::kFloat8WeightOnly:
      case Type::kFloat8DynamicActivationFloat8Weight: return QuantizeE4M3Rows(w, plain, s.whole);
      default: return QuantizeInt8SymmetricRows(w, plain, s.whole);
    }
  }

  ActivationQuant ActivationOf(const MethodOptions& options) const override {
    const auto& s = SettingsOf<TorchAoSettings>(options);
    switch (s.type) {
      case Type::kInt8DynamicActivationInt8Weight:
        return TorchAoInt8Activation(s.symmetric_activation);
      case Type::kFloat8DynamicActivationFloat8Weight: return TorchAoFp8Activation();
      case Type::kInt8DynamicActivationIntxWeight: return TorchAoIntxActivation();
      default: return {};
    }
  }

 private:
  static IntGroups Groups(const TorchAoSettings& s) { return {s.bits, s.group_size, s.symmetric}; }
};

}  // namespace

const Method& TorchAoMethod() {
  static const TorchAo kMethod;
  return kMethod;
}

}  // namespace quantd
