#include "engine/weights/quantization_options.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <nlohmann/json.hpp>

#include "engine/weights/files.h"
#include "engine/weights/json_check.h"
#include "engine/weights/module_match.h"

namespace quantd {
namespace {

constexpr std::array<std::string_view, 13> kKeys = {"quant_method",
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

OptionValue ToOption(const nlohmann::json& json) {
  OptionValue v;
  v.text = json.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
  if (json.is_null()) {
    v.kind = OptionValue::Kind::kNull;
  } else if (json.is_boolean()) {
    v.kind = OptionValue::Kind::kBool;
    v.boolean = json.get<bool>();
  } else if (json.is_number()) {
    v.kind = OptionValue::Kind::kNumber;
    v.number = json.get<double>();
  } else if (json.is_string()) {
    v.kind = OptionValue::Kind::kString;
    v.text = json.get<std::string>();
  } else if (json.is_array() &&
             std::all_of(json.begin(), json.end(), [](const auto& e) { return e.is_string(); })) {
    v.kind = OptionValue::Kind::kStringList;
    for (const auto& e : json) v.list.push_back(e.template get<std::string>());
  } else {
    v.kind = OptionValue::Kind::kOther;
  }
  return v;
}

}  // namespace

std::string_view ToString(QuantMethod method) {
  switch (method) {
    case QuantMethod::kNone: return "none";
    case QuantMethod::kBitsAndBytes4: return "bitsandbytes_4bit";
    case QuantMethod::kBitsAndBytes8: return "bitsandbytes_8bit";
  }
  return "?";
}

std::string_view QuantTypeName(Codec codec) { return codec == Codec::kNf4 ? "nf4" : "fp4"; }

MethodOptions ReadQuantizationOptions(const OptionMap& map, const std::string& where,
                                      OptionSource source, FaultList& faults) {
  const OptionReader reader(map, where, faults);
  MethodOptions options;
  const bool in_4bit = LoadIn(reader, "load_in_4bit");
  const bool in_8bit = LoadIn(reader, "load_in_8bit");
  // Hugging Face takes load_in_* alone for bitsandbytes; nothing at all says nothing.
  const std::string method =
      reader.String("quant_method", in_4bit || in_8bit ? "bitsandbytes" : "");
  if (method.empty()) {
    faults.Add("{}: missing; supported: none, bitsandbytes", reader.Path("quant_method"));
    return options;
  }
  if (method == "none") {
    if (source == OptionSource::kProfile) {
      for (const auto& [key, value] : map) {
        if (std::find(kKeys.begin(), kKeys.end(), key) != kKeys.end() && key != "quant_method") {
          faults.Add("{}: has no meaning with quant_method: none", reader.Path(key));
        }
      }
      reader.CheckKeys(kKeys);
    }
    return options;
  }
  if (method != "bitsandbytes") {
    faults.AddUnimplemented(
        "{}: \"{}\" is not supported; supported: {}", reader.Path("quant_method"), method,
        source == OptionSource::kProfile ? "none, bitsandbytes" : "bitsandbytes");
    return options;
  }
  if (source == OptionSource::kProfile) reader.CheckKeys(kKeys);
  if (in_4bit == in_8bit) {
    faults.Add("{}: {} load_in_4bit and load_in_8bit is true; bitsandbytes needs exactly one",
               where, in_4bit ? "each of" : "neither of");
  }

  // Every key is checked, also those the other width uses: Hugging Face always writes all of them.
  const std::string type = reader.String("bnb_4bit_quant_type", "fp4");
  if (type != "nf4" && type != "fp4") {
    faults.Add("{}: \"{}\" is not one of nf4, fp4", reader.Path("bnb_4bit_quant_type"), type);
  }
  const bool double_quant = reader.Bool("bnb_4bit_use_double_quant", false);
  const DType compute = ComputeDTypeOf(reader);
  const std::string storage = reader.String("bnb_4bit_quant_storage", "uint8");
  if (std::find(kStorageDTypes.begin(), kStorageDTypes.end(), storage) == kStorageDTypes.end()) {
    faults.Add("{}: \"{}\" is not one of {}", reader.Path("bnb_4bit_quant_storage"), storage,
               fmt::join(kStorageDTypes, ", "));
  }
  const double threshold = reader.Number("llm_int8_threshold", 6.0);
  if (!std::isfinite(threshold) || threshold < 0 ||
      threshold > 65504) {  // activations pass through f16
    faults.Add("{}: {} is not between 0 and 65504", reader.Path("llm_int8_threshold"), threshold);
  }
  if (reader.Bool("llm_int8_has_fp16_weight", false)) {
    faults.AddUnimplemented("{}: true is not supported: weights are kept in int8",
                            reader.Path("llm_int8_has_fp16_weight"));
  }
  if (source == OptionSource::kProfile && reader.Bool("llm_int8_enable_fp32_cpu_offload", false)) {
    faults.AddUnimplemented("{}: true is not supported: a model lives on one backend",
                            reader.Path("llm_int8_enable_fp32_cpu_offload"));
  }
  options.skip_modules = reader.Strings("llm_int8_skip_modules");
  if (source == OptionSource::kProfile) {
    for (const std::string& pattern : options.skip_modules) {
      faults.Add(Annotate(CheckSkipPattern(pattern), reader.Path("llm_int8_skip_modules")));
    }
  }
  if (in_8bit) {
    options.method = QuantMethod::kBitsAndBytes8;
    options.int8_threshold = static_cast<float>(threshold);
  } else {
    options.method = QuantMethod::kBitsAndBytes4;
    options.codec = type == "nf4" ? Codec::kNf4 : Codec::kFp4;
    options.double_quant = double_quant;
    options.compute_dtype = compute;
  }
  return options;
}

absl::StatusOr<std::optional<MethodOptions>> ReadQuantizationConfig(
    const std::filesystem::path& dir) {
  constexpr int64_t kMaxConfigBytes = 1 << 20;
  ASSIGN_OR_RETURN(const std::string text, ReadTextFile(dir / "config.json", kMaxConfigBytes));
  RETURN_IF_ERROR(CheckJson(text, "config.json"));
  const auto json = nlohmann::json::parse(text, nullptr, false);
  if (!json.is_object()) return DataLoss("config.json: not an object");
  const auto it = json.find("quantization_config");
  if (it == json.end() || it->is_null()) return std::optional<MethodOptions>();
  if (!it->is_object()) return DataLoss("config.json: quantization_config is not an object");
  OptionMap map;
  for (const auto& [key, value] : it->items()) map.emplace_back(key, ToOption(value));
  FaultList faults;
  MethodOptions options =
      ReadQuantizationOptions(map, "quantization_config", OptionSource::kCheckpoint, faults);
  RETURN_IF_ERROR(Annotate(faults.ToStatus(absl::StatusCode::kDataLoss), "config.json"));
  if (options.method == QuantMethod::kNone) return std::optional<MethodOptions>();
  return std::optional<MethodOptions>(std::move(options));
}

std::string Describe(const MethodOptions& options) {
  switch (options.method) {
    case QuantMethod::kNone:
      return fmt::format("no quantization, dtype {}",
                         options.compute_dtype ? ToString(*options.compute_dtype) : "auto");
    case QuantMethod::kBitsAndBytes4:
      return fmt::format("bitsandbytes 4-bit {}{}, compute dtype {}", QuantTypeName(options.codec),
                         options.double_quant ? ", double quantization" : "",
                         options.compute_dtype ? ToString(*options.compute_dtype) : "auto");
    case QuantMethod::kBitsAndBytes8:
      return fmt::format("bitsandbytes 8-bit, threshold {}", options.int8_threshold);
  }
  return "?";
}

}  // namespace quantd
