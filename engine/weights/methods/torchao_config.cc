// quant_type of torchao. Transformers 5 writes it as an object:
//   quant_type: {default: {_type: Int4WeightOnlyConfig, _version: 2, _data: {group_size: 128}}}
// where classes and enums among the fields are objects of the same kind. Profiles may leave the
// wrapping out:
//   quant_type: Int4WeightOnlyConfig
//   group_size: 128
// with granularity and its like by name ("PerRow"), PerGroup by group_size. Absent fields take
// torchao's defaults.
#include <algorithm>
#include <array>

#include "engine/weights/methods/torchao.h"

namespace quantd {
namespace {

using Type = TorchAoSettings::Type;

struct TypeInfo {
  Type type;
  std::string_view config, tensor;
};
constexpr TypeInfo kTypes[] = {
    {Type::kInt4WeightOnly, "Int4WeightOnlyConfig", "Int4Tensor"},
    {Type::kInt8WeightOnly, "Int8WeightOnlyConfig", "Int8Tensor"},
    {Type::kInt8DynamicActivationInt8Weight, "Int8DynamicActivationInt8WeightConfig", "Int8Tensor"},
    {Type::kFloat8WeightOnly, "Float8WeightOnlyConfig", "Float8Tensor"},
    {Type::kFloat8DynamicActivationFloat8Weight, "Float8DynamicActivationFloat8WeightConfig",
     "Float8Tensor"},
    {Type::kIntxWeightOnly, "IntxWeightOnlyConfig", "IntxUnpackedToInt8Tensor"},
    {Type::kInt8DynamicActivationIntxWeight, "Int8DynamicActivationIntxWeightConfig",
     "IntxUnpackedToInt8Tensor"},
};

constexpr std::array<std::string_view, 6> kTopKeys = {"quant_method",
                                                      "quant_type",
                                                      "modules_to_not_convert",
                                                      "include_input_output_embeddings",
                                                      "untie_embedding_weights",
                                                      "quant_type_kwargs"};

// Fields of any config: those that are read, and those that do not change numbers.
constexpr std::string_view kFields[] = {"group_size",
                                        "granularity",
                                        "weight_granularity",
                                        "weight_dtype",
                                        "activation_dtype",
                                        "mapping_type",
                                        "weight_mapping_type",
                                        "act_mapping_type",
                                        "scale_dtype",
                                        "weight_scale_dtype",
                                        "reduce_range",
                                        "weight_only_decode",
                                        "activation_value_lb",
                                        "activation_value_ub",
                                        "int4_packing_format",
                                        "int4_choose_qparams_algorithm",
                                        "intx_packing_format",
                                        "intx_choose_qparams_algorithm",
                                        "packing_format",
                                        "int4_tile_packed_ntile",
                                        "set_inductor_config",
                                        "kernel_preference",
                                        "mm_config",
                                        "alg_id",
                                        "version"};

std::string AllClasses() {
  std::string names;
  for (const TypeInfo& t : kTypes) {
    names += fmt::format("{}{}", names.empty() ? "" : ", ", t.config);
  }
  return names;
}

/// A member of {_type: ..., _data: ...} that is a string; empty when there is none.
std::string Member(const OptionValue& object, std::string_view key) {
  for (const auto& [name, value] : object.map) {
    if (name == key && value.kind == OptionValue::Kind::kString) return value.text;
  }
  return "";
}

class FieldReader {
 public:
  FieldReader(const OptionReader& fields, TorchAoSettings& settings)
      : fields_(fields), faults_(fields.faults()), s_(settings) {}

  void Read() {
    switch (s_.type) {
      case Type::kInt4WeightOnly:
        s_.group_size = GroupSize(128);
        Require("int4_packing_format", "PLAIN",
                "packed for one device; save with int4_packing_format PLAIN");
        Require("int4_choose_qparams_algorithm", "TINYGEMM", "");
        break;
      case Type::kInt8WeightOnly:
        Granularity("granularity", "PerRow");
        RefuseGroups();
        break;
      case Type::kInt8DynamicActivationInt8Weight:
        Granularity("granularity", "PerRow");
        RefuseGroups();
        RefuseWhole("granularity");
        s_.symmetric_activation = Mapping("act_mapping_type", "SYMMETRIC");
        RefuseTrue("reduce_range", "codes of 7 bits");
        RefuseTrue("weight_only_decode", "activations that are quantized for some calls only");
        break;
      case Type::kFloat8WeightOnly:
        Require("weight_dtype", "float8_e4m3fn", "");
        Granularity("granularity", "PerRow");
        RefuseGroups();
        break;
      case Type::kFloat8DynamicActivationFloat8Weight:
        Require("weight_dtype", "float8_e4m3fn", "");
        Require("activation_dtype", "float8_e4m3fn", "");
        Require("packing_format", "PLAIN", "");
        Granularity("granularity", "PerTensor");
        RefuseGroups();
        RefuseWhole("granularity");
        RefuseSet("activation_value_lb");
        RefuseSet("activation_value_ub");
        break;
      case Type::kIntxWeightOnly:
        ReadIntx("granularity", "PerAxis", "mapping_type", "scale_dtype");
        break;
      case Type::kInt8DynamicActivationIntxWeight:
        ReadIntx("weight_granularity", "PerGroup", "weight_mapping_type", "weight_scale_dtype");
        Require("act_mapping_type", "ASYMMETRIC", "");
        break;
      case Type::kOther: break;
    }
  }

 private:
  void ReadIntx(std::string_view granularity, const std::string& default_granularity,
                std::string_view mapping, std::string_view scale_dtype) {
    const std::string dtype = Text("weight_dtype", "int8");
    s_.bits = dtype.size() == 4 && dtype.starts_with("int") ? dtype[3] - '0' : 0;
    if (s_.bits < 2 || s_.bits > 8) {
      faults_.AddUnimplemented("{}: \"{}\" is not one of int2 to int8",
                               fields_.Path("weight_dtype"), dtype);
      s_.bits = 8;
    }
    Granularity(granularity, default_granularity);
    RefuseWhole(granularity);
    s_.symmetric = Mapping(mapping, "SYMMETRIC");
    RefuseSet(scale_dtype);
    Require("intx_packing_format", "UNPACKED_TO_INT8", "packed for one device");
    Require("intx_choose_qparams_algorithm", "AFFINE", "");
  }

  // A string, or the value of an enum, or a torch.dtype.
  std::string Text(std::string_view key, const std::string& fallback) const {
    const OptionValue* v = fields_.Find(key);
    if (v != nullptr && v->kind == OptionValue::Kind::kMap) return Member(*v, "_data");
    return fields_.String(key, fallback);
  }

  int32_t GroupSize(int64_t fallback) const {
    return static_cast<int32_t>(fields_.Integer("group_size", fallback, 1, 1 << 20));
  }

  // PerRow, PerTensor, PerGroup or PerAxis(0), by name or as an object; a list of one for
  // activations and one for weights has to hold the same twice, as torchao demands.
  void Granularity(std::string_view key, std::string name) {
    const OptionValue* v = fields_.Find(key);
    const OptionValue* group = fields_.Find("group_size");
    OptionMap data;
    const auto read = [&](const OptionValue& value) {
      if (value.kind != OptionValue::Kind::kMap) return value.text;
      for (const auto& [member, content] : value.map) {
        if (member == "_data") data = content.map;
      }
      return Member(value, "_type");
    };
    if (v != nullptr && v->kind == OptionValue::Kind::kList && v->items.size() == 2) {
      name = read(v->items[0]);
      if (read(v->items[1]) != name) name = "different ones";
    } else if (v != nullptr && v->kind == OptionValue::Kind::kStringList && v->list.size() == 2) {
      name = v->list[0] == v->list[1] ? v->list[0] : "different ones";
    } else if (v != nullptr) {
      name = read(*v);
    } else if (group != nullptr) {  // of profiles
      name = "PerGroup";
    }
    if (name == "PerTensor") {
      s_.whole = true;
    } else if (name == "PerGroup") {
      const OptionReader object(data, fields_.Path(key), faults_);
      const bool inside = object.Find("group_size") != nullptr;
      s_.group_size = inside ? static_cast<int32_t>(object.Integer("group_size", 32, 1, 1 << 20))
                             : GroupSize(32);
    } else if (name != "PerRow" && name != "PerAxis") {
      faults_.AddUnimplemented(
          "{}: \"{}\" is not supported; supported: PerRow, PerTensor, PerGroup", fields_.Path(key),
          name);
    }
  }

  bool Mapping(std::string_view key, const std::string& fallback) const {
    const std::string mapping = Text(key, fallback);
    if (mapping != "SYMMETRIC" && mapping != "ASYMMETRIC") {
      faults_.AddUnimplemented("{}: \"{}\" is not supported; supported: SYMMETRIC, ASYMMETRIC",
                               fields_.Path(key), mapping);
    }
    return mapping != "ASYMMETRIC";
  }

  void Require(std::string_view key, const std::string& only, std::string_view why) const {
    std::string text = Text(key, only);
    std::transform(text.begin(), text.end(), text.begin(),
                   [](unsigned char c) { return static_cast<char>(std::toupper(c)); });
    std::string wanted = only;
    std::transform(wanted.begin(), wanted.end(), wanted.begin(),
                   [](unsigned char c) { return static_cast<char>(std::toupper(c)); });
    if (text == wanted) return;
    faults_.AddUnimplemented("{}: \"{}\" is not supported; supported: {}{}{}", fields_.Path(key),
                             Text(key, only), only, why.empty() ? "" : ": ", why);
  }
  void RefuseGroups() const {
    if (s_.group_size == 0) return;
    faults_.AddUnimplemented(
        "{}: groups of {} are not supported; instead: IntxWeightOnlyConfig with group_size",
        fields_.Path("granularity"), s_.group_size);
  }
  void RefuseWhole(std::string_view key) const {
    if (!s_.whole) return;
    faults_.AddUnimplemented(
        "{}: PerTensor is not supported: the scale of activations would depend on all tokens of a "
        "call; supported: PerRow",
        fields_.Path(key));
  }
  void RefuseTrue(std::string_view key, std::string_view what) const {
    if (!fields_.Bool(key, false)) return;
    faults_.AddUnimplemented("{}: {} are not supported", fields_.Path(key), what);
  }
  void RefuseSet(std::string_view key) const {
    if (fields_.Find(key) == nullptr) return;
    faults_.AddUnimplemented("{}: only null is supported", fields_.Path(key));
  }

  const OptionReader& fields_;
  FaultList& faults_;
  TorchAoSettings& s_;
};

Type TypeOf(const std::string& name) {
  for (const TypeInfo& t : kTypes) {
    if (t.config == name) return t.type;
  }
  return Type::kOther;
}

}  // namespace

std::string_view ClassName(TorchAoSettings::Type type) {
  for (const TypeInfo& t : kTypes) {
    if (t.type == type) return t.config;
  }
  return "";
}

std::string_view TensorClass(TorchAoSettings::Type type) {
  for (const TypeInfo& t : kTypes) {
    if (t.type == type) return t.tensor;
  }
  return "";
}

void ReadTorchAo(const OptionReader& reader, OptionSource source, TorchAoSettings& settings) {
  FaultList& faults = reader.faults();
  const bool profile = source == OptionSource::kProfile;
  const OptionValue* v = reader.Find("quant_type");
  if (v == nullptr) {
    faults.Add("{}: missing; one of {}", reader.Path("quant_type"), AllClasses());
    return;
  }
  std::vector<std::string_view> known(kTopKeys.begin(), kTopKeys.end());
  if (v->kind == OptionValue::Kind::kString) {
    settings.type = TypeOf(v->text);
    if (!profile) {
      faults.AddUnimplemented(
          "{}: \"{}\": names of this kind go with pickled files of old releases, which are not "
          "read; save the model again with transformers 5 and a torchao config object",
          reader.Path("quant_type"), v->text);
      return;
    }
    if (settings.type == Type::kOther) {
      faults.Add("{}: \"{}\" is not one of {}", reader.Path("quant_type"), v->text, AllClasses());
      return;
    }
    known.insert(known.end(), std::begin(kFields), std::end(kFields));
    reader.CheckKeys(known);
    FieldReader(reader, settings).Read();
    return;
  }
  if (profile) reader.CheckKeys(known);
  const OptionReader types(reader.Map("quant_type"), reader.Path("quant_type"), faults);
  const OptionReader config(types.Map("default"), types.Path("default"), faults);
  const std::string name = config.String("_type", "");
  settings.type = TypeOf(name);
  if (settings.type == Type::kOther) {
    // Each stored tensor says what it is; a profile has nothing else to go by.
    if (profile || name.empty()) {
      faults.Add("{}: \"{}\" is not one of {}", config.Path("_type"), name, AllClasses());
    }
    return;
  }
  if (!profile) return;  // fields of a checkpoint's tensors are in their metadata
  const OptionReader data(config.Map("_data"), config.Path("_data"), faults);
  data.CheckKeys(kFields);
  FieldReader(data, settings).Read();
}

ActivationQuant TorchAoInt8Activation(bool symmetric) {
  ActivationQuant a;
  a.kind = symmetric ? ActivationQuant::Kind::kInt8Token : ActivationQuant::Kind::kInt8TokenAsym;
  a.rounding = ActivationQuant::Rounding::kScale;
  return a;
}

ActivationQuant TorchAoFp8Activation() {
  ActivationQuant a;
  a.kind = ActivationQuant::Kind::kFp8Token;
  a.rounding = ActivationQuant::Rounding::kScale;
  return a;
}

ActivationQuant TorchAoIntxActivation() {
  ActivationQuant a;
  a.kind = ActivationQuant::Kind::kInt8TokenAsym;
  a.rounding = ActivationQuant::Rounding::kEveryStep;
  return a;
}

std::string TorchAoSettings::ToYaml() const {
  std::string yaml = fmt::format("quant_type: {}\n", ClassName(type));
  const auto mapping = [](bool is_symmetric) { return is_symmetric ? "SYMMETRIC" : "ASYMMETRIC"; };
  const bool dynamic_intx = type == Type::kInt8DynamicActivationIntxWeight;
  switch (type) {
    case Type::kInt4WeightOnly: return yaml + fmt::format("group_size: {}\n", group_size);
    case Type::kIntxWeightOnly:
    case Type::kInt8DynamicActivationIntxWeight:
      yaml += fmt::format("weight_dtype: int{}\n", bits);
      yaml += group_size > 0
                  ? fmt::format("group_size: {}\n", group_size)
                  : fmt::format("{}granularity: PerAxis\n", dynamic_intx ? "weight_" : "");
      return yaml +
             fmt::format("{}mapping_type: {}\n", dynamic_intx ? "weight_" : "", mapping(symmetric));
    case Type::kInt8DynamicActivationInt8Weight:
      yaml += fmt::format("act_mapping_type: {}\n", mapping(symmetric_activation));
      break;
    default: break;
  }
  return yaml + fmt::format("granularity: {}\n", whole ? "PerTensor" : "PerRow");
}

std::string TorchAoSettings::Describe() const {
  if (type == Type::kOther) return "torchao";
  std::string text = fmt::format("torchao {}", ClassName(type));
  if (group_size > 0) text += fmt::format(", groups of {}", group_size);
  return text;
}

}  // namespace quantd
