// ParseProfile: YAML to fields, defaults, then validation, with all faults in one message.
#include <yaml-cpp/yaml.h>

#include <array>
#include <charconv>
#include <filesystem>

#include "engine/weights/module_match.h"
#include "engine/weights/option_map.h"
#include "engine/weights/profile.h"
#include "engine/weights/quantization_options.h"

namespace quantd {
namespace {

constexpr std::array<std::string_view, 7> kTopKeys = {
    "name", "description", "dtype", "quantization", "overrides", "kv_cache", "engine"};
constexpr std::array<std::string_view, 3> kOverrideKeys = {"match", "dtype", "quantization"};
constexpr std::array<std::string_view, 1> kKvKeys = {"dtype"};
constexpr std::array<std::string_view, 2> kEngineKeys = {"llm_int8_outlier_scope", "activation"};

OptionValue ScalarOption(const YAML::Node& node) {
  OptionValue v;
  v.text = node.Scalar();
  v.kind = OptionValue::Kind::kString;
  if (node.Tag() == "!") return v;  // quoted: a string, whatever it looks like
  if (v.text == "true" || v.text == "True" || v.text == "false" || v.text == "False") {
    v.kind = OptionValue::Kind::kBool;
    v.boolean = v.text[0] == 't' || v.text[0] == 'T';
    return v;
  }
  double number = 0;
  const char* end = v.text.data() + v.text.size();
  const auto [stop, error] = std::from_chars(v.text.data(), end, number);
  if (error == std::errc() && stop == end) {
    v.kind = OptionValue::Kind::kNumber;
    v.number = number;
  }
  return v;
}

OptionValue ToOption(const YAML::Node& node) {
  OptionValue v;
  if (node.IsNull()) return v;
  if (node.IsScalar()) return ScalarOption(node);
  if (node.IsMap()) {
    v.kind = OptionValue::Kind::kMap;
    v.text = "a mapping";
    for (const auto& entry : node) {
      if (entry.first.IsScalar()) v.map.push_back({entry.first.Scalar(), ToOption(entry.second)});
    }
    return v;
  }
  v.text = "a list";
  bool strings = true;
  for (const YAML::Node& item : node) {
    v.items.push_back(ToOption(item));
    strings = strings && item.IsScalar();
    if (item.IsScalar()) v.list.push_back(item.Scalar());
  }
  const bool numbers = !v.items.empty() && v.items[0].kind == OptionValue::Kind::kNumber;
  v.kind = strings && !numbers ? OptionValue::Kind::kStringList : OptionValue::Kind::kList;
  return v;
}

// The mapping `node` as options; yaml-cpp keeps duplicate keys, so they are found here.
OptionMap ToOptions(const YAML::Node& node, const std::string& where, FaultList& faults) {
  OptionMap map;
  if (!node.IsDefined() || node.IsNull()) return map;
  if (!node.IsMap()) {
    faults.Add("{}: not a mapping", where.empty() ? "the profile" : where);
    return map;
  }
  for (const auto& entry : node) {
    if (!entry.first.IsScalar()) {
      faults.Add("{}: a key that is not a string", where.empty() ? "the profile" : where);
      continue;
    }
    const std::string key = entry.first.Scalar();
    for (const auto& [known, value] : map) {
      if (known == key) faults.Add("{}{}{}: occurs twice", where, where.empty() ? "" : ".", key);
    }
    map.push_back({key, ToOption(entry.second)});
  }
  return map;
}

YAML::Node Child(const YAML::Node& node, const char* key) {
  return node.IsMap() ? node[key] : YAML::Node(YAML::NodeType::Undefined);
}

// auto or absent: nullopt. `others`: what else may stand there, for the message.
std::optional<DType> FloatDType(const OptionReader& reader, std::string_view key,
                                std::string_view others = "") {
  const std::string name = reader.String(key, "auto");
  if (name == "auto") return std::nullopt;
  const auto dtype = ParseDType(name);
  if (dtype && (*dtype == DType::kF32 || *dtype == DType::kF16 || *dtype == DType::kBF16))
    return dtype;
  reader.faults().Add("{}: \"{}\" is not one of auto, float32, float16, bfloat16{}",
                      reader.Path(key), name, others);
  return std::nullopt;
}

std::optional<DType> KvDType(const OptionReader& reader) {
  const std::string name = reader.String("dtype", "auto");
  if (name == "fp8_e4m3") {
    reader.faults().AddUnimplemented(
        "{}: \"{}\" is not supported; supported: auto, float32, float16, bfloat16, int8",
        reader.Path("dtype"), name);
    return std::nullopt;
  }
  if (name == "int8") return DType::kI8;
  return FloatDType(reader, "dtype", ", int8");
}

// A model has one compute dtype, the profile's: an override inherits it or repeats it.
void UnifyComputeDType(MethodOptions& options, const std::optional<DType>& profile_dtype,
                       const OptionReader& reader, FaultList& faults) {
  if (options.is_none()) return;
  const std::string_view key = MethodOf(options).compute_dtype_key(options);
  if (!key.empty() && reader.Find(key) != nullptr && options.compute_dtype != profile_dtype) {
    faults.Add("{}: {} differs from the profile's {}; a model has one", reader.Path(key),
               ToString(*options.compute_dtype), profile_dtype ? ToString(*profile_dtype) : "auto");
  }
  options.compute_dtype = profile_dtype;
}

void ReadOverride(const YAML::Node& node, size_t index, QuantProfile& profile, FaultList& faults) {
  const std::string where = fmt::format("overrides[{}]", index);
  const OptionMap map = ToOptions(node, where, faults);
  const OptionReader reader(map, where, faults);
  reader.CheckKeys(kOverrideKeys);
  ProfileOverride result;
  result.match = reader.String("match", "");
  if (reader.Find("match") == nullptr) {
    faults.Add("{}.match: missing", where);
  } else {
    faults.Add(Annotate(CheckOverridePattern(result.match), where + ".match"));
  }
  const std::string q_where = where + ".quantization";
  const OptionMap q = ToOptions(Child(node, "quantization"), q_where, faults);
  result.quantization = ReadQuantizationOptions(q, q_where, OptionSource::kProfile, faults);
  UnifyComputeDType(result.quantization, profile.quantization.compute_dtype,
                    OptionReader(q, q_where, faults), faults);
  const std::optional<DType> dtype = FloatDType(reader, "dtype");
  if (result.quantization.is_none()) {
    result.quantization.compute_dtype = dtype ? dtype : profile.quantization.compute_dtype;
  } else if (dtype) {
    faults.Add("{}.dtype: only has a meaning with quant_method: none", where);
  }
  profile.overrides.push_back(std::move(result));
}

QuantProfile ReadProfile(const YAML::Node& root, const std::string& source, FaultList& faults) {
  QuantProfile profile;
  OptionMap top = ToOptions(root, "", faults);
  RefuseDeviceMap(top, "", faults);
  const OptionReader reader(top, "", faults);
  reader.CheckKeys(kTopKeys);
  const OptionValue* name = reader.Find("name");
  profile.name = name != nullptr && name->kind != OptionValue::Kind::kList &&
                         name->kind != OptionValue::Kind::kStringList &&
                         name->kind != OptionValue::Kind::kMap
                     ? name->text
                     : std::filesystem::path(source).stem().string();
  profile.description = reader.String("description", "");

  const std::optional<DType> dtype = FloatDType(reader, "dtype");
  if (const YAML::Node q = Child(root, "quantization"); q.IsDefined() && !q.IsNull()) {
    const OptionMap map = ToOptions(q, "quantization", faults);
    if (q.IsMap()) {
      profile.quantization =
          ReadQuantizationOptions(map, "quantization", OptionSource::kProfile, faults);
    }
  }
  const MethodOptions& method = profile.quantization;
  const std::string_view dtype_key =
      method.is_none() ? "" : MethodOf(method).compute_dtype_key(method);
  if (dtype_key.empty()) {
    profile.quantization.compute_dtype = dtype;
  } else if (dtype && dtype != method.compute_dtype) {
    faults.Add("dtype: {} contradicts quantization.{} {}", ToString(*dtype), dtype_key,
               ToString(*method.compute_dtype));
  }

  if (const YAML::Node list = Child(root, "overrides"); list.IsDefined() && !list.IsNull()) {
    if (!list.IsSequence()) faults.Add("overrides: not a list");
    constexpr size_t kMaxOverrides = 256;
    if (list.size() > kMaxOverrides) {
      faults.Add("overrides: {} entries, at most {}", list.size(), kMaxOverrides);
    } else if (list.IsSequence()) {
      for (size_t i = 0; i < list.size(); ++i) ReadOverride(list[i], i, profile, faults);
    }
  }

  const OptionMap kv = ToOptions(Child(root, "kv_cache"), "kv_cache", faults);
  const OptionReader kv_reader(kv, "kv_cache", faults);
  kv_reader.CheckKeys(kKvKeys);
  profile.kv_dtype = KvDType(kv_reader);

  const OptionMap engine = ToOptions(Child(root, "engine"), "engine", faults);
  const OptionReader engine_reader(engine, "engine", faults);
  engine_reader.CheckKeys(kEngineKeys);
  const std::string scope = engine_reader.String("llm_int8_outlier_scope", "row");
  if (scope == "call") {
    profile.outlier_scope = ActivationQuant::OutlierScope::kCall;
  } else if (scope != "row") {
    faults.Add("engine.llm_int8_outlier_scope: \"{}\" is not one of row, call", scope);
  }
  constexpr std::string_view kModes[] = {"fused", "reference", "none"};
  const std::string mode = engine_reader.OneOf("activation", "fused", kModes);
  profile.activation = mode == "reference" ? ActivationMode::kReference
                       : mode == "none"    ? ActivationMode::kNone
                                           : ActivationMode::kFused;
  return profile;
}

// `read` of the mapping that `yaml` is, and what is wrong with it.
template <typename Read>
absl::Status WithYaml(const std::string& yaml, const std::string& source, const Read& read) {
  try {
    const YAML::Node root = YAML::Load(yaml);
    if (!root.IsMap()) return InvalidArgument("{}: not a mapping of keys to values", source);
    FaultList faults;
    read(root, faults);
    return faults.ToStatus(absl::StatusCode::kInvalidArgument, source);
  } catch (const YAML::Exception& e) {
    return InvalidArgument("{}:{}:{}: not valid YAML: {}", source, e.mark.line + 1,
                           e.mark.column + 1, e.msg);
  }
}

}  // namespace

absl::StatusOr<QuantProfile> ParseProfile(const std::string& yaml, const std::string& source) {
  QuantProfile profile;
  RETURN_IF_ERROR(WithYaml(yaml, source, [&](const YAML::Node& root, FaultList& faults) {
    profile = ReadProfile(root, source, faults);
  }));
  return profile;
}

absl::StatusOr<OptionMap> ParseYamlOptions(const std::string& yaml, const std::string& source) {
  OptionMap map;
  RETURN_IF_ERROR(WithYaml(yaml, source, [&](const YAML::Node& root, FaultList& faults) {
    map = ToOptions(root, "", faults);
  }));
  return map;
}

}  // namespace quantd
