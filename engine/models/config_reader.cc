#include "engine/models/config_reader.h"

#include <cmath>
#include <nlohmann/json.hpp>

#include "engine/weights/json_check.h"

namespace quantd {

struct ConfigReader::Impl {
  nlohmann::json json;
  std::string source;
  FaultList faults;

  // nullptr when absent or null.
  const nlohmann::json* Find(std::string_view key) const {
    const auto it = json.find(std::string(key));
    return it == json.end() || it->is_null() ? nullptr : &*it;
  }
};

namespace {

using Json = nlohmann::json;

// At most a line of a value, for messages.
std::string Text(const Json& value) {
  std::string text = value.dump(-1, ' ', false, Json::error_handler_t::replace);
  if (text.size() > 80) text = text.substr(0, 77) + "...";
  return text;
}

// A finite number of `object` in (above, infinity); a fault otherwise.
double RopeNumber(const Json& object, const std::string& where, const char* key, double above,
                  FaultList& faults) {
  const auto it = object.find(key);
  if (it == object.end() || !it->is_number() || !std::isfinite(it->get<double>()) ||
      !(it->get<double>() > above)) {
    faults.Add("{}.{}: {} is not a number above {}", where, key,
               it == object.end() ? "missing" : Text(*it), above);
    return above + 1;
  }
  return it->get<double>();
}

// The "rope_type" (transformers 4 also wrote "type") and, for llama3, its numbers.
void ReadScaling(const Json& object, const std::string& where, RopeSpec& rope, FaultList& faults) {
  const Json* type = nullptr;
  for (const char* key : {"rope_type", "type"}) {
    const auto it = object.find(key);
    if (type == nullptr && it != object.end() && !it->is_null()) type = &*it;
  }
  if (type == nullptr || *type == "default") return;
  if (*type != "llama3") {
    faults.AddUnimplemented("{}.rope_type: {} is not supported; supported: default, llama3", where,
                            Text(*type));
    return;
  }
  rope.type = RopeSpec::Type::kLlama3;
  rope.factor = RopeNumber(object, where, "factor", 0.0, faults);
  rope.low_freq_factor = RopeNumber(object, where, "low_freq_factor", 0.0, faults);
  rope.high_freq_factor = RopeNumber(object, where, "high_freq_factor", 0.0, faults);
  rope.original_max_position_embeddings =
      RopeNumber(object, where, "original_max_position_embeddings", 0.0, faults);
  if (rope.factor < 1.0) faults.Add("{}.factor: {} is below 1", where, rope.factor);
  if (!(rope.high_freq_factor > rope.low_freq_factor)) {
    faults.Add("{}: high_freq_factor {} is not above low_freq_factor {}", where,
               rope.high_freq_factor, rope.low_freq_factor);
  }
}

}  // namespace

ConfigReader::ConfigReader(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
ConfigReader::ConfigReader(ConfigReader&&) noexcept = default;
ConfigReader::~ConfigReader() = default;
FaultList& ConfigReader::faults() { return impl_->faults; }

absl::StatusOr<ConfigReader> ConfigReader::Parse(const std::string& json,
                                                 const std::string& source) {
  RETURN_IF_ERROR(CheckJson(json, source));
  auto impl = std::make_unique<Impl>();
  impl->json = Json::parse(json, nullptr, false);
  impl->source = source;
  if (!impl->json.is_object()) return DataLoss("{}: not a JSON object", source);
  return ConfigReader(std::move(impl));
}

absl::Status ConfigReader::ToStatus(absl::StatusCode code) const {
  return Annotate(impl_->faults.ToStatus(code), impl_->source);
}

bool ConfigReader::Has(std::string_view key) const { return impl_->Find(key) != nullptr; }

int64_t ConfigReader::Int(std::string_view key, int64_t min, int64_t max,
                          std::optional<int64_t> fallback) {
  const Json* value = impl_->Find(key);
  if (value == nullptr) {
    if (!fallback) faults().Add("{}: missing", key);
    return fallback.value_or(min);
  }
  if (!value->is_number_integer()) {
    faults().Add("{}: {} is not an integer", key, Text(*value));
    return min;
  }
  const bool too_large =
      value->is_number_unsigned() && value->get<uint64_t>() > static_cast<uint64_t>(INT64_MAX);
  const int64_t number = too_large ? INT64_MAX : value->get<int64_t>();
  if (number >= min && number <= max) return number;
  if (min == 1 && number < 1) {
    faults().Add("{}: {} must be positive", key, number);
  } else {
    faults().Add("{}: {} is not between {} and {}", key, Text(*value), min, max);
  }
  return min;
}

double ConfigReader::Number(std::string_view key, double above, double max,
                            std::optional<double> fallback) {
  const Json* value = impl_->Find(key);
  if (value == nullptr) {
    if (!fallback) faults().Add("{}: missing", key);
    return fallback.value_or(max);
  }
  if (!value->is_number()) {
    faults().Add("{}: {} is not a number", key, Text(*value));
    return max;
  }
  const double number = value->get<double>();
  if (std::isfinite(number) && number > above && number <= max) return number;
  faults().Add("{}: {} is not above {} and at most {}", key, Text(*value), above, max);
  return max;
}

bool ConfigReader::Bool(std::string_view key, bool fallback) {
  const Json* value = impl_->Find(key);
  if (value == nullptr) return fallback;
  if (value->is_boolean()) return value->get<bool>();
  faults().Add("{}: {} is not one of true, false", key, Text(*value));
  return fallback;
}

std::string ConfigReader::String(std::string_view key, const std::string& fallback) {
  const Json* value = impl_->Find(key);
  if (value == nullptr) return fallback;
  if (value->is_string()) return value->get<std::string>();
  faults().Add("{}: {} is not a string", key, Text(*value));
  return fallback;
}

std::vector<int32_t> ConfigReader::TokenIds(std::string_view key, int64_t limit) {
  const Json* value = impl_->Find(key);
  if (value == nullptr) return {};
  std::vector<int32_t> ids;
  for (const Json& id : value->is_array() ? *value : Json::array({*value})) {
    if (!id.is_number_unsigned() || id.get<uint64_t>() >= static_cast<uint64_t>(limit)) {
      faults().Add("{}: {} is not a token id below {}", key, Text(id), limit);
      return {};
    }
    ids.push_back(static_cast<int32_t>(id.get<uint64_t>()));
  }
  return ids;
}

std::string ConfigReader::Architecture() {
  const Json* list = impl_->Find("architectures");
  if (list == nullptr || !list->is_array() || list->empty() || !(*list)[0].is_string()) return "";
  return (*list)[0].get<std::string>();
}

DType ConfigReader::CheckpointDType() {
  const std::string old_name = String("torch_dtype", "");
  const std::string name = String("dtype", old_name);
  if (!old_name.empty() && name != old_name)
    faults().Add("dtype: \"{}\" contradicts torch_dtype \"{}\"", name, old_name);
  if (name.empty()) return DType::kF32;  // transformers' default
  const auto dtype = ParseDType(name);
  if (dtype && (*dtype == DType::kF32 || *dtype == DType::kF16 || *dtype == DType::kBF16))
    return *dtype;
  faults().AddUnimplemented("dtype: \"{}\" is not supported; supported: float32, float16, bfloat16",
                            name);
  return DType::kF32;
}

RopeSpec ConfigReader::Rope(int64_t max_position_embeddings) {
  constexpr double kMaxTheta = 1e12;  // the largest known are 1e7
  RopeSpec rope;
  rope.original_max_position_embeddings = static_cast<double>(max_position_embeddings);
  rope.theta = Number("rope_theta", 0.0, kMaxTheta, rope.theta);
  for (const char* key : {"rope_scaling", "rope_parameters"}) {
    const Json* object = impl_->Find(key);
    if (object == nullptr) continue;
    if (!object->is_object()) {
      faults().Add("{}: {} is not an object", key, Text(*object));
      continue;
    }
    if (object->contains("rope_theta")) {
      const double theta = RopeNumber(*object, key, "rope_theta", 0.0, faults());
      if (Has("rope_theta") && theta != rope.theta)
        faults().Add("{}.rope_theta: {} contradicts rope_theta {}", key, theta, rope.theta);
      if (theta > kMaxTheta) faults().Add("{}.rope_theta: {} is above {}", key, theta, kMaxTheta);
      rope.theta = theta;
    }
    if (object->contains("partial_rotary_factor") && (*object)["partial_rotary_factor"] != 1.0) {
      faults().AddUnimplemented("{}.partial_rotary_factor: {} is not supported; supported: 1", key,
                                Text((*object)["partial_rotary_factor"]));
    }
    ReadScaling(*object, key, rope, faults());
  }
  return rope;
}

Activation ConfigReader::HiddenActivation() {
  const std::string name = String("hidden_act", "silu");
  if (name != "silu" && name != "swish") {
    faults().AddUnimplemented("hidden_act: \"{}\" is not supported; supported: silu", name);
  }
  return Activation::kSilu;
}

}  // namespace quantd
