// bitsandbytes 0.50: 4-bit (nf4, fp4, double quantization) and LLM.int8(), on load and from
// checkpoints.
//
// Layout of the stored tensors, from transformers 5 and bitsandbytes' QuantState.as_dict. 4-bit:
//   <m>.weight                                  bytes of two codes (element 2i in the high half),
//   in any dtype <m>.weight.absmax                           F32 [blocks], or U8 [blocks] of nested
//   codes <m>.weight.quant_map                        F32 [16] <m>.weight.nested_absmax,
//   .nested_quant_map F32 [blocks / 256], F32 [256] <m>.weight.quant_state.bitsandbytes__<type> U8:
//   JSON with blocksize, shape, nested_offset, ...
// 8-bit: <m>.weight I8 [n, k], <m>.SCB F32 [n], <m>.weight_format U8 scalar, 0 for row-major.
#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <nlohmann/json.hpp>

#include "engine/weights/json_check.h"
#include "engine/weights/methods/bitsandbytes.h"
#include "engine/weights/methods/method.h"
#include "engine/weights/methods/stored.h"
#include "engine/weights/module_match.h"
#include "engine/weights/value_scan.h"
#include "kernels/quant/quantize.h"

namespace quantd {
namespace {

std::string_view TypeName(Codec codec) { return codec == Codec::kNf4 ? "nf4" : "fp4"; }

constexpr char kStatePrefix[] = ".weight.quant_state.bitsandbytes__";

// A one-dimensional companion tensor of `count` elements.
absl::StatusOr<const StoredTensor*> Companion(const Checkpoint& c, const std::string& name,
                                              StoredDType dtype, int64_t count) {
  const StoredTensor* t = c.Find(name);
  if (t == nullptr) return DataLoss("tensor {} is missing", name);
  if (t->dtype != dtype || NumElements(*t) != count || t->shape.size() > 2) {
    return DataLoss("tensor {}: {}, expected {} [{}]", name, TypeText(*t), ToString(dtype), count);
  }
  return t;
}

absl::StatusOr<std::vector<float>> Scales(const Checkpoint& c, const std::string& name) {
  ASSIGN_OR_RETURN(std::vector<float> scales, FiniteFloats(c, name));
  RETURN_IF_ERROR(CheckNotNegative(scales, name));
  return scales;
}

// ---- 4-bit
// --------------------------------------------------------------------------------------------

struct QuantState {
  std::string tensor;  // its name
  Codec codec = Codec::kNf4;
  int32_t block = 0;
  bool nested = false;
  float nested_offset = 0.0f;
};

// The name of the quant_state tensor, whose suffix is the type; empty when there is none.
std::string StateName(const Checkpoint& c, const std::string& module) {
  const std::string prefix = module + kStatePrefix;
  const auto it = c.tensors().lower_bound(prefix);
  return it != c.tensors().end() && it->first.rfind(prefix, 0) == 0 ? it->first : "";
}

absl::Status CheckShapeField(const nlohmann::json& json, const WeightShape& shape) {
  const auto it = json.find("shape");
  if (it != json.end() && it->is_array() && it->size() == 2 && (*it)[0].is_number_unsigned() &&
      (*it)[1].is_number_unsigned() && (*it)[0].get<uint64_t>() == static_cast<uint64_t>(shape.n) &&
      (*it)[1].get<uint64_t>() == static_cast<uint64_t>(shape.k)) {
    return absl::OkStatus();
  }
  return DataLoss("shape is {}, config.json says [{}, {}]",
                  it == json.end() ? "missing" : it->dump(), shape.n, shape.k);
}

absl::StatusOr<QuantState> ParseQuantState(const nlohmann::json& json, const WeightShape& shape) {
  if (!json.is_object()) return DataLoss("not a JSON object");
  RETURN_IF_ERROR(CheckShapeField(json, shape));
  QuantState state;
  const std::string type = json.value("quant_type", nlohmann::json()).is_string()
                               ? json["quant_type"].get<std::string>()
                               : std::string();
  if (type != "nf4" && type != "fp4") {
    return Unimplemented("quant_type \"{}\" is not supported; supported: nf4, fp4", type);
  }
  state.codec = type == "nf4" ? Codec::kNf4 : Codec::kFp4;
  const auto block = json.find("blocksize");
  const uint64_t size =
      block != json.end() && block->is_number_unsigned() ? block->get<uint64_t>() : 0;
  if (size < 32 || size > 4096 || (size & (size - 1)) != 0) {  // what bitsandbytes has kernels for
    return DataLoss("blocksize is {}, not a power of two from 32 to 4096",
                    block == json.end() ? "missing" : block->dump());
  }
  state.block = static_cast<int32_t>(size);

  const bool any_nested = json.contains("nested_blocksize") || json.contains("nested_offset");
  if (!any_nested) return state;
  state.nested = true;
  const auto nested_block = json.find("nested_blocksize");
  if (nested_block == json.end() || !nested_block->is_number_unsigned() ||
      nested_block->get<uint64_t>() != QuantizedMatrix::kNestedBlock) {
    return Unimplemented("nested_blocksize {} is not supported; supported: {}",
                         nested_block == json.end() ? "(missing)" : nested_block->dump(),
                         QuantizedMatrix::kNestedBlock);
  }
  const auto dtype = json.find("nested_dtype");
  if (dtype != json.end() && *dtype != "float32") {
    return Unimplemented("nested_dtype {} is not supported; supported: float32", dtype->dump());
  }
  const auto offset = json.find("nested_offset");
  if (offset == json.end() || !offset->is_number())
    return DataLoss("nested_offset is missing or not a number");
  state.nested_offset = static_cast<float>(offset->get<double>());
  if (!std::isfinite(state.nested_offset)) return DataLoss("nested_offset is not finite");
  return state;
}

absl::StatusOr<QuantState> ReadQuantState(const Checkpoint& c, const WeightShape& shape) {
  constexpr size_t kMaxStateBytes = 4096;  // real ones take 80 to 200
  const std::string name = StateName(c, shape.module);
  if (name.empty()) return DataLoss("tensor {}{}<type> is missing", shape.module, kStatePrefix);
  const StoredTensor& t = *c.Find(name);
  if (t.dtype != StoredDType::kU8 || t.data.size() > kMaxStateBytes) {
    return DataLoss("tensor {}: {}, expected at most {} bytes of U8", name, TypeText(t),
                    kMaxStateBytes);
  }
  const std::string_view text(reinterpret_cast<const char*>(t.data.data()), t.data.size());
  RETURN_IF_ERROR(CheckJson(text, "tensor " + name));
  auto state = ParseQuantState(nlohmann::json::parse(text, nullptr, false), shape);
  if (!state.ok()) return Annotate(state.status(), "tensor " + name);
  state->tensor = name;
  const std::string suffix = name.substr(shape.module.size() + sizeof(kStatePrefix) - 1);
  if (suffix != TypeName(state->codec)) {
    return DataLoss("tensor {}: quant_type is {}", name, TypeName(state->codec));
  }
  return state;
}

// What the tensors say against config.json.
absl::Status CheckAgainstConfig(const QuantState& state, const BitsAndBytesSettings& config,
                                const std::string& module) {
  if (config.bits != 4) {
    return DataLoss("{}: is stored as bitsandbytes_4bit, config.json says {}", module,
                    config.label());
  }
  if (state.codec == config.codec && state.nested == config.double_quant) return absl::OkStatus();
  const auto nested = [](bool yes) { return yes ? " with double quantization" : ""; };
  return DataLoss("{}: is stored as {}{}, config.json says {}{}", module, TypeName(state.codec),
                  nested(state.nested), TypeName(config.codec), nested(config.double_quant));
}

absl::Status CheckQuantMap(const StoredTensor& t, Codec codec, const std::string& name) {
  const std::vector<float> stored = Values<float>(t);
  const float* ours = codec == Codec::kNf4 ? kNf4Table : kFp4Table;
  for (size_t i = 0; i < stored.size(); ++i) {
    if (stored[i] == ours[i]) continue;
    return Unimplemented("tensor {}: entry {} is {}, bitsandbytes' {} table has {}", name, i,
                         stored[i], TypeName(codec), ours[i]);
  }
  return absl::OkStatus();
}

ActivationQuant Outliers(const BitsAndBytesSettings& s) {
  ActivationQuant activation;
  activation.kind = ActivationQuant::Kind::kInt8Outlier;
  activation.threshold = s.threshold;
  return activation;
}

absl::StatusOr<WeightSource> Check4(const Checkpoint& c, const WeightShape& shape,
                                    const BitsAndBytesSettings& config) {
  const std::string weight = shape.module + ".weight";
  ASSIGN_OR_RETURN(const QuantState state, ReadQuantState(c, shape));
  const StoredTensor* codes = c.Find(weight);
  if (codes == nullptr) return DataLoss("tensor {} is missing", weight);
  // bnb_4bit_quant_storage only changes the dtype in which the same bytes are stored.
  const int64_t bytes = (shape.n * shape.k + 1) / 2;
  const int64_t unit = (BitsOf(codes->dtype) + 7) / 8;
  if (static_cast<int64_t>(codes->data.size()) != (bytes + unit - 1) / unit * unit) {
    return DataLoss("tensor {}: {} holds {} bytes, 4-bit [{}, {}] takes {}", weight,
                    TypeText(*codes), codes->data.size(), shape.n, shape.k, bytes);
  }
  const int64_t blocks = (shape.n * shape.k + state.block - 1) / state.block;
  RETURN_IF_ERROR(
      Companion(c, weight + ".absmax", state.nested ? StoredDType::kU8 : StoredDType::kF32, blocks)
          .status());
  ASSIGN_OR_RETURN(const StoredTensor* map,
                   Companion(c, weight + ".quant_map", StoredDType::kF32, 16));
  RETURN_IF_ERROR(CheckQuantMap(*map, state.codec, weight + ".quant_map"));

  RETURN_IF_ERROR(CheckAgainstConfig(state, config, shape.module));
  WeightSource source;
  source.format = QuantFormat::Block4(state.codec, state.block, state.nested);
  source.tensors = {weight, weight + ".absmax", weight + ".quant_map", state.tensor};
  if (state.nested) {
    const int64_t nested =
        (blocks + QuantizedMatrix::kNestedBlock - 1) / QuantizedMatrix::kNestedBlock;
    RETURN_IF_ERROR(Companion(c, weight + ".nested_absmax", StoredDType::kF32, nested).status());
    RETURN_IF_ERROR(Companion(c, weight + ".nested_quant_map", StoredDType::kF32, 256).status());
    source.tensors.push_back(weight + ".nested_absmax");
    source.tensors.push_back(weight + ".nested_quant_map");
  }
  source.label = "bitsandbytes_4bit";
  return source;
}

absl::StatusOr<QuantizedMatrix> Load4(const Checkpoint& c, const WeightShape& shape) {
  const std::string weight = shape.module + ".weight";
  ASSIGN_OR_RETURN(const QuantState state, ReadQuantState(c, shape));
  QuantizedMatrix m;
  m.format = QuantFormat::Block4(state.codec, state.block, state.nested);
  m.n = shape.n;
  m.k = shape.k;
  if (!state.nested) {
    ASSIGN_OR_RETURN(m.scales, Scales(c, weight + ".absmax"));
  } else {
    m.nested_codes = Values<uint8_t>(*c.Find(weight + ".absmax"));
    ASSIGN_OR_RETURN(m.nested_absmax, Scales(c, weight + ".nested_absmax"));
    ASSIGN_OR_RETURN(m.nested_map, FiniteFloats(c, weight + ".nested_quant_map"));
    m.nested_offset = state.nested_offset;
  }
  const std::span<const std::byte> packed = c.Find(weight)->data;
  const size_t count = static_cast<size_t>(shape.n * shape.k);
  m.codes.resize(count);
  for (size_t i = 0; i < count; ++i) {
    const uint8_t byte = static_cast<uint8_t>(packed[i / 2]);
    m.codes[i] = i % 2 == 0 ? byte >> 4 : byte & 0x0f;
  }
  return m;
}

// ---- 8-bit

absl::StatusOr<WeightSource> Check8(const Checkpoint& c, const WeightShape& shape,
                                    const BitsAndBytesSettings& config) {
  if (config.bits != 8) {
    return DataLoss("{}: is stored as bitsandbytes_8bit, config.json says {}", shape.module,
                    config.label());
  }
  const std::string weight = shape.module + ".weight";
  const StoredTensor* codes = c.Find(weight);
  if (codes == nullptr) return DataLoss("tensor {} is missing", weight);
  if (codes->dtype != StoredDType::kI8 || codes->shape != std::vector<int64_t>{shape.n, shape.k}) {
    return DataLoss("tensor {}: {}, expected I8 [{}, {}]", weight, TypeText(*codes), shape.n,
                    shape.k);
  }
  RETURN_IF_ERROR(Companion(c, shape.module + ".SCB", StoredDType::kF32, shape.n).status());
  WeightSource source;
  source.format = QuantFormat::Int8Row();
  source.tensors = {weight, shape.module + ".SCB"};
  // Absent in files of old versions, which were row-major too.
  const std::string format = shape.module + ".weight_format";
  if (c.Find(format) != nullptr) {
    ASSIGN_OR_RETURN(const StoredTensor* t, Companion(c, format, StoredDType::kU8, 1));
    if (t->data[0] != std::byte{0}) {
      return Unimplemented("tensor {}: {} is not supported; supported: 0 (row-major)", format,
                           static_cast<int>(t->data[0]));
    }
    source.tensors.push_back(format);
  }
  source.label = "bitsandbytes_8bit";
  source.activation = Outliers(config);
  return source;
}

absl::StatusOr<QuantizedMatrix> Load8(const Checkpoint& c, const WeightShape& shape) {
  QuantizedMatrix m;
  m.format = QuantFormat::Int8Row();
  m.n = shape.n;
  m.k = shape.k;
  m.codes = Values<uint8_t>(*c.Find(shape.module + ".weight"));
  ASSIGN_OR_RETURN(m.scales, Scales(c, shape.module + ".SCB"));
  if (std::find(m.codes.begin(), m.codes.end(), uint8_t{0x80}) != m.codes.end()) {
    return DataLoss("tensor {}.weight: a code is -128; LLM.int8() has -127 to 127", shape.module);
  }
  return m;
}

// ---- options

constexpr std::array<std::string_view, 13> kBitsAndBytesKeys = {"quant_method",
                                                                "load_in_4bit",
                                                                "load_in_8bit",
                                                                "_load_in_4bit",
                                                                "_load_in_8bit",
                                                                "bnb_4bit_quant_type",
                                                                "bnb_4bit_use_double_quant",
                                                                "bnb_4bit_compute_dtype",
                                                                "bnb_4bit_quant_storage",
                                                                "llm_int8_threshold",
                                                                "llm_int8_skip_modules",
                                                                "llm_int8_enable_fp32_cpu_offload",
                                                                "llm_int8_has_fp16_weight"};

constexpr std::array<std::string_view, 9> kStorageDTypes = {
    "uint8", "int8", "int16", "int32", "int64", "float16", "bfloat16", "float32", "float64"};

// load_in_Xbit, which Hugging Face also writes with a leading underscore.
bool LoadIn(const OptionReader& reader, const std::string& key) {
  const std::string twin = "_" + key;
  const bool value = reader.Bool(key, reader.Bool(twin, false));
  if (reader.Find(key) != nullptr && reader.Find(twin) != nullptr &&
      reader.Bool(twin, value) != value) {
    reader.faults().Add("{}: contradicts {}", reader.Path(twin), key);
  }
  return value;
}

bool IsFloat(DType t) { return t == DType::kF32 || t == DType::kF16 || t == DType::kBF16; }

DType ComputeDTypeOf(const OptionReader& reader) {
  std::string name = reader.String("bnb_4bit_compute_dtype", "float32");
  if (name.rfind("torch.", 0) == 0) name = name.substr(6);
  const auto dtype = ParseDType(name);
  if (dtype && IsFloat(*dtype)) return *dtype;
  reader.faults().Add("{}: \"{}\" is not one of float32, float16, bfloat16",
                      reader.Path("bnb_4bit_compute_dtype"), name);
  return DType::kF32;
}

class BitsAndBytes : public Method {
 public:
  std::string_view name() const override { return "bitsandbytes"; }
  bool on_load() const override { return true; }
  bool trainable_with_peft(const MethodOptions&) const override { return true; }
  std::string_view skip_key() const override { return "llm_int8_skip_modules"; }
  std::string_view compute_dtype_key(const MethodOptions& options) const override {
    return SettingsOf<BitsAndBytesSettings>(options).bits == 4 ? "bnb_4bit_compute_dtype" : "";
  }

  MethodOptions Read(const OptionReader& reader, OptionSource source) const override {
    const bool in_4bit = LoadIn(reader, "load_in_4bit");
    const bool in_8bit = LoadIn(reader, "load_in_8bit");
    MethodOptions options;
    options.method = name();
    if (source == OptionSource::kProfile) reader.CheckKeys(kBitsAndBytesKeys);
    if (in_4bit == in_8bit) {
      reader.faults().Add(
          "{}: {} load_in_4bit and load_in_8bit is true; bitsandbytes needs exactly one",
          reader.where(), in_4bit ? "each of" : "neither of");
    }

    // Every key is checked, also those the other width uses: Hugging Face always writes all of
    // them.
    const std::string type = reader.String("bnb_4bit_quant_type", "fp4");
    if (type != "nf4" && type != "fp4") {
      reader.faults().Add("{}: \"{}\" is not one of nf4, fp4", reader.Path("bnb_4bit_quant_type"),
                          type);
    }
    const bool double_quant = reader.Bool("bnb_4bit_use_double_quant", false);
    const DType compute = ComputeDTypeOf(reader);
    const std::string storage = reader.String("bnb_4bit_quant_storage", "uint8");
    if (std::find(kStorageDTypes.begin(), kStorageDTypes.end(), storage) == kStorageDTypes.end()) {
      reader.faults().Add("{}: \"{}\" is not one of {}", reader.Path("bnb_4bit_quant_storage"),
                          storage, fmt::join(kStorageDTypes, ", "));
    }
    const double threshold = reader.Number("llm_int8_threshold", 6.0);
    if (!std::isfinite(threshold) || threshold < 0 ||
        threshold > 65504) {  // activations pass through f16
      reader.faults().Add("{}: {} is not between 0 and 65504", reader.Path("llm_int8_threshold"),
                          threshold);
    }
    if (reader.Bool("llm_int8_has_fp16_weight", false)) {
      reader.faults().AddUnimplemented("{}: true is not supported: weights are kept in int8",
                                       reader.Path("llm_int8_has_fp16_weight"));
    }
    if (reader.Bool("llm_int8_enable_fp32_cpu_offload", false)) {
      reader.faults().AddUnimplemented("{}: true is not supported: {}",
                                       reader.Path("llm_int8_enable_fp32_cpu_offload"),
                                       kOneBackend);
    }
    options.skip_modules = reader.Strings("llm_int8_skip_modules");
    if (source == OptionSource::kProfile) {
      for (const std::string& pattern : options.skip_modules) {
        reader.faults().Add(
            Annotate(CheckSkipPattern(pattern), reader.Path("llm_int8_skip_modules")));
      }
    }
    auto settings = std::make_shared<BitsAndBytesSettings>();
    settings->bits = in_8bit ? 8 : 4;
    if (in_8bit) {
      settings->threshold = static_cast<float>(threshold);
    } else {
      settings->codec = type == "nf4" ? Codec::kNf4 : Codec::kFp4;
      settings->double_quant = double_quant;
      options.compute_dtype = compute;
    }
    options.settings = std::move(settings);
    return options;
  }

  bool Detect(const Checkpoint& c, const WeightShape& shape) const override {
    return c.Find(shape.module + ".weight.absmax") != nullptr ||
           !StateName(c, shape.module).empty() || c.Find(shape.module + ".SCB") != nullptr;
  }

  absl::StatusOr<WeightSource> Check(const Checkpoint& c, const WeightShape& shape,
                                     const MethodOptions& config) const override {
    const auto& settings = SettingsOf<BitsAndBytesSettings>(config);
    return IsStored8(c, shape) ? Check8(c, shape, settings) : Check4(c, shape, settings);
  }

  absl::StatusOr<QuantizedMatrix> Load(const Checkpoint& c, const WeightShape& shape,
                                       const MethodOptions&) const override {
    return IsStored8(c, shape) ? Load8(c, shape) : Load4(c, shape);
  }

  QuantFormat FormatOf(const WeightShape&, const MethodOptions& options, DType) const override {
    const auto& s = SettingsOf<BitsAndBytesSettings>(options);
    return s.bits == 8 ? QuantFormat::Int8Row()
                       : QuantFormat::Block4(s.codec, s.block_size, s.double_quant);
  }

  absl::StatusOr<QuantizedMatrix> Quantize(const TensorView& w, const MethodOptions& options,
                                           DType) const override {
    RETURN_IF_ERROR(CheckQuantizeRows(w, options));
    const auto& s = SettingsOf<BitsAndBytesSettings>(options);
    if (s.bits == 8) return QuantizeInt8Rows(w);
    QuantizedMatrix m = QuantizeBlock4(w, s.codec, s.block_size);
    if (s.double_quant) NestScales(m);
    return m;
  }

  absl::Status CheckQuantizeRows(const TensorView& w, const MethodOptions& options) const override {
    // LLM.int8() rounds weights to f16 first.
    return SettingsOf<BitsAndBytesSettings>(options).bits == 8 ? CheckFitsF16(w) : absl::OkStatus();
  }

  ActivationQuant ActivationOf(const MethodOptions& options) const override {
    const auto& s = SettingsOf<BitsAndBytesSettings>(options);
    return s.bits == 8 ? Outliers(s) : ActivationQuant{};
  }

 private:
  static bool IsStored8(const Checkpoint& c, const WeightShape& shape) {
    return c.Find(shape.module + ".SCB") != nullptr;
  }
};

}  // namespace

std::string_view BitsAndBytesSettings::label() const {
  return bits == 8 ? "bitsandbytes_8bit" : "bitsandbytes_4bit";
}

std::string BitsAndBytesSettings::ToYaml() const {
  if (bits == 8) return fmt::format("load_in_8bit: true\nllm_int8_threshold: {}\n", threshold);
  return fmt::format("load_in_4bit: true\nbnb_4bit_quant_type: {}\nbnb_4bit_use_double_quant: {}\n",
                     TypeName(codec), double_quant);
}

std::string BitsAndBytesSettings::Describe() const {
  if (bits == 8) return fmt::format("bitsandbytes 8-bit, threshold {}", threshold);
  return fmt::format("bitsandbytes 4-bit {}{}", TypeName(codec),
                     double_quant ? ", double quantization" : "");
}

const Method& BitsAndBytesMethod() {
  static const BitsAndBytes kMethod;
  return kMethod;
}

}  // namespace quantd
