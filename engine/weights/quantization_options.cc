#include "engine/weights/quantization_options.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "engine/weights/files.h"
#include "engine/weights/json_check.h"
#include "engine/weights/json_dump.h"

namespace quantd {
namespace {

using Json = nlohmann::ordered_json;  // of rules for modules, the first that matches counts

constexpr int64_t kMaxConfigBytes = 1 << 20;

OptionValue ToOption(const Json& json) {
  OptionValue v;
  v.text = DumpJson(json);
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
  } else if (json.is_array()) {
    v.kind = OptionValue::Kind::kList;
    for (const auto& e : json) v.items.push_back(ToOption(e));
  } else {
    v.kind = OptionValue::Kind::kMap;
    for (const auto& [key, value] : json.items()) v.map.push_back({key, ToOption(value)});
  }
  return v;
}

/// load_in_4bit or load_in_8bit, also as Hugging Face writes them with a leading underscore.
bool AsksForBitsAndBytes(const OptionReader& reader) {
  for (const char* key : {"load_in_4bit", "load_in_8bit", "_load_in_4bit", "_load_in_8bit"}) {
    const OptionValue* v = reader.Find(key);
    if (v != nullptr && v->kind == OptionValue::Kind::kBool && v->boolean) return true;
  }
  return false;
}

std::string NamesOf(OptionSource source) {
  std::string names;
  for (const Method* m : Methods()) {
    if (source == OptionSource::kProfile ? !m->on_load() : m->name() == "none") continue;
    names += fmt::format("{}{}", names.empty() ? "" : ", ", m->name());
  }
  return names;
}

absl::StatusOr<Json> ReadJson(const std::filesystem::path& path) {
  const std::string name = path.filename().string();
  ASSIGN_OR_RETURN(const std::string text, ReadTextFile(path, kMaxConfigBytes));
  RETURN_IF_ERROR(CheckJson(text, name));
  auto json = Json::parse(text, nullptr, false);
  if (!json.is_object()) return DataLoss("{}: not an object", name);
  return json;
}

absl::StatusOr<std::optional<MethodOptions>> ReadConfig(const Json& json, const std::string& where,
                                                        const std::string& file) {
  const OptionValue value = ToOption(json);
  FaultList faults;
  MethodOptions options =
      ReadQuantizationOptions(value.map, where, OptionSource::kCheckpoint, faults);
  RETURN_IF_ERROR(faults.ToStatus(absl::StatusCode::kDataLoss, file));
  if (options.is_none()) return std::optional<MethodOptions>();
  return std::optional<MethodOptions>(std::move(options));
}

}  // namespace

MethodOptions ReadQuantizationOptions(const OptionMap& map, const std::string& where,
                                      OptionSource source, FaultList& faults) {
  OptionMap own = map;
  RefuseDeviceMap(own, where, faults);
  const OptionReader reader(own, where, faults);
  // Hugging Face takes load_in_* alone for bitsandbytes; nothing at all says nothing.
  const std::string name =
      reader.String("quant_method", AsksForBitsAndBytes(reader) ? "bitsandbytes" : "");
  if (name.empty()) {
    faults.Add("{}: missing; supported: {}", reader.Path("quant_method"), NamesOf(source));
    return {};
  }
  const Method* method = FindMethod(name);
  if (method == nullptr) {
    faults.Add(Annotate(RefuseMethod(name), reader.Path("quant_method")));
    return {};
  }
  if (source == OptionSource::kProfile && !method->on_load()) {
    faults.AddUnimplemented(
        "{}: \"{}\" chooses its numbers with data, so it is read from checkpoints that are "
        "quantized already; on load: {}",
        reader.Path("quant_method"), name, NamesOf(source));
    return {};
  }
  return method->Read(reader, source);
}

absl::StatusOr<std::optional<MethodOptions>> ReadQuantizationConfig(
    const std::filesystem::path& dir) {
  ASSIGN_OR_RETURN(const Json json, ReadJson(dir / "config.json"));
  if (const auto it = json.find("device_map"); it != json.end() && !it->is_null()) {
    return Unimplemented("config.json: device_map: not supported: {}", kOneBackend);
  }
  for (const char* key : {"quantization_config", "compression_config"}) {
    const auto it = json.find(key);
    if (it == json.end() || it->is_null()) continue;
    if (!it->is_object()) return DataLoss("config.json: {} is not an object", key);
    return ReadConfig(*it, key, "config.json");
  }
  // What old writers left beside config.json, without a name: AutoGPTQ's file, then AutoAWQ's.
  constexpr char kGptq[] = "quantize_config.json", kAwq[] = "quant_config.json";
  std::error_code error;
  if (std::filesystem::exists(dir / kGptq, error)) {
    ASSIGN_OR_RETURN(Json old, ReadJson(dir / kGptq));
    if (!old.contains("quant_method")) old["quant_method"] = "gptq";
    return ReadConfig(old, "", kGptq);
  }
  if (std::filesystem::exists(dir / kAwq, error)) {
    ASSIGN_OR_RETURN(Json old, ReadJson(dir / kAwq));
    if (!old.contains("quant_method")) old["quant_method"] = "awq";
    constexpr std::pair<const char*, const char*> kNames[] = {{"w_bit", "bits"},
                                                              {"q_group_size", "group_size"}};
    for (const auto& [from, to] : kNames) {
      if (old.contains(from) && !old.contains(to)) old[to] = old[from];
    }
    return ReadConfig(old, "", kAwq);
  }
  return std::optional<MethodOptions>();
}

std::string Describe(const MethodOptions& options) {
  const std::string dtype =
      options.compute_dtype ? std::string(ToString(*options.compute_dtype)) : "auto";
  if (options.is_none()) return "no quantization, dtype " + dtype;
  if (MethodOf(options).compute_dtype_key(options).empty()) return options.settings->Describe();
  return options.settings->Describe() + ", compute dtype " + dtype;
}

}  // namespace quantd
