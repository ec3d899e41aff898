#include "engine/models/config_reader.h"

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

#include "engine/weights/json_check.h"
#include "engine/weights/json_dump.h"

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
  bool IsNull(std::string_view key) const {
    const auto it = json.find(std::string(key));
    return it != json.end() && it->is_null();
  }
};

namespace {

using Json = nlohmann::json;

constexpr double kMaxTheta = 1e12;  // the largest known are 1e7

// At most a line of a value, for messages.
std::string Text(const Json& value) {
  std::string text = DumpJson(value);
  if (text.size() > 80) text = text.substr(0, 77) + "...";
  return text;
}

// One object of rope parameters, read into a RopeSpec that holds what is outside of it.
class RopeObject {
 public:
  RopeObject(const Json& object, std::string where, FaultList& faults)
      : object_(object), where_(std::move(where)), faults_(faults) {}

  const Json* Find(const char* key) const {
    const auto it = object_.find(key);
    return it == object_.end() || it->is_null() ? nullptr : &*it;
  }

  // A finite number in (above, infinity); absent: `fallback`, or a fault when there is none.
  double Number(const char* key, double above, std::optional<double> fallback = std::nullopt) {
    const Json* value = Find(key);
    if (value == nullptr && fallback) return *fallback;
    if (value == nullptr || !value->is_number() || !std::isfinite(value->get<double>()) ||
        !(value->get<double>() > above)) {
      faults_.Add("{}.{}: {} is not a number above {}", where_, key,
                  value == nullptr ? "missing" : Text(*value), above);
      return above + 1;
    }
    return value->get<double>();
  }

  // The "rope_type" (transformers 4 also wrote "type"). "su" is an old name of longrope, and
  // Phi-3's first configs said yarn to it as well.
  std::string Type() const {
    const Json* type = Find("rope_type");
    if (type == nullptr) type = Find("type");
    if (type == nullptr) return "default";
    const std::string name = type->is_string() ? type->get<std::string>() : Text(*type);
    if (name == "su" || (name == "yarn" && Find("short_factor") != nullptr)) return "longrope";
    return name;
  }

  // `original`: of max_position_embeddings, where the config has it outside of the object.
  void Read(RopeSpec& rope, double max_position_embeddings, std::optional<double> original) {
    if (const Json* share = Find("partial_rotary_factor")) {
      rope.partial_rotary_factor = Number("partial_rotary_factor", 0.0);
      if (rope.partial_rotary_factor > 1.0) {
        faults_.Add("{}.partial_rotary_factor: {} is above 1", where_, Text(*share));
      }
    }
    const std::string type = Type();
    const auto factor = [&](std::optional<double> fallback = std::nullopt) {
      rope.factor = Number("factor", 0.0, fallback);
      if (rope.factor < 1.0) faults_.Add("{}.factor: {} is below 1", where_, rope.factor);
    };
    const auto context = [&](std::optional<double> fallback) {
      rope.original_max_position_embeddings =
          Number("original_max_position_embeddings", 0.0, fallback);
    };
    if (type == "default") return;
    if (type == "linear") {
      rope.type = RopeSpec::Type::kLinear;
      factor();
    } else if (type == "dynamic") {
      rope.type = RopeSpec::Type::kDynamic;
      factor();
    } else if (type == "llama3") {
      rope.type = RopeSpec::Type::kLlama3;
      factor();
      rope.low_freq_factor = Number("low_freq_factor", 0.0);
      rope.high_freq_factor = Number("high_freq_factor", 0.0);
      context(std::nullopt);
      if (!(rope.high_freq_factor > rope.low_freq_factor)) {
        faults_.Add("{}: high_freq_factor {} is not above low_freq_factor {}", where_,
                    rope.high_freq_factor, rope.low_freq_factor);
      }
    } else if (type == "yarn") {
      rope.type = RopeSpec::Type::kYarn;
      context(max_position_embeddings);
      factor(std::max(1.0, max_position_embeddings / rope.original_max_position_embeddings));
      ReadYarn(rope);
    } else if (type == "longrope") {
      rope.type = RopeSpec::Type::kLongRope;
      context(original.value_or(max_position_embeddings));
      if (original) rope.original_max_position_embeddings = *original;  // before the object's own
      ReadLongRope(rope, max_position_embeddings);
    } else {
      faults_.AddUnimplemented(
          "{}.rope_type: \"{}\" is not supported; supported: default, linear, dynamic, llama3, "
          "yarn, longrope",
          where_, type);
    }
  }

 private:
  // The attention factor of the paper (Peng et al., 2023), or DeepSeek's quotient of two.
  void ReadYarn(RopeSpec& rope) {
    const auto factor = [&](double mscale) {
      return rope.factor <= 1.0 ? 1.0 : 0.1 * mscale * std::log(rope.factor) + 1.0;
    };
    const double mscale = Number("mscale", -1e-30, 0.0);
    const double mscale_all_dim = Number("mscale_all_dim", -1e-30, 0.0);
    const double implied = mscale != 0.0 && mscale_all_dim != 0.0
                               ? factor(mscale) / factor(mscale_all_dim)
                               : factor(1.0);
    rope.attention_factor = Number("attention_factor", 0.0, implied);
    rope.beta_fast = Number("beta_fast", 0.0, 32.0);
    rope.beta_slow = Number("beta_slow", 0.0, 1.0);
    if (const Json* truncate = Find("truncate")) {
      if (!truncate->is_boolean()) {
        faults_.Add("{}.truncate: {} is not one of true, false", where_, Text(*truncate));
      } else {
        rope.truncate = truncate->get<bool>();
      }
    }
  }

  void ReadLongRope(RopeSpec& rope, double max_position_embeddings) {
    rope.short_factor = Factors("short_factor");
    rope.long_factor = Factors("long_factor");
    const double original = rope.original_max_position_embeddings;
    const double factor = Number("factor", 0.0, max_position_embeddings / original);
    const double implied = factor <= 1.0 || original <= 1.0
                               ? 1.0
                               : std::sqrt(1.0 + std::log(factor) / std::log(original));
    rope.attention_factor = Number("attention_factor", 0.0, implied);
  }

  std::vector<double> Factors(const char* key) {
    std::vector<double> factors;
    const Json* list = Find(key);
    if (list == nullptr || !list->is_array()) {
      faults_.Add("{}.{}: {} is not a list of numbers", where_, key,
                  list == nullptr ? "missing" : Text(*list));
      return factors;
    }
    for (const Json& f : *list) {
      const bool positive = f.is_number() && std::isfinite(f.get<double>()) && f.get<double>() > 0;
      if (!positive) {
        faults_.Add("{}.{}: {} is not a number above 0", where_, key, Text(f));
        return factors;
      }
      factors.push_back(f.get<double>());
    }
    return factors;
  }

  const Json& object_;
  const std::string where_;
  FaultList& faults_;
};

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
  return impl_->faults.ToStatus(code, impl_->source);
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

int64_t ConfigReader::IntOrNull(std::string_view key, int64_t min, int64_t max, int64_t fallback) {
  return impl_->IsNull(key) ? 0 : Int(key, min, max, fallback);
}

double ConfigReader::NumberOrNull(std::string_view key, double above, double max, double fallback) {
  return impl_->IsNull(key) ? 0.0 : Number(key, above, max, fallback);
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

std::optional<std::vector<bool>> ConfigReader::SlidingLayers(int64_t layers) {
  const Json* value = impl_->Find("layer_types");
  if (value == nullptr) return std::nullopt;
  std::vector<bool> sliding(static_cast<size_t>(layers), false);
  if (!value->is_array() || value->size() != sliding.size()) {
    faults().Add("layer_types: {} is not a list of {}", Text(*value), layers);
    return sliding;
  }
  for (size_t i = 0; i < sliding.size(); ++i) {
    const Json& type = (*value)[i];
    sliding[i] = type == "sliding_attention";
    if (!sliding[i] && type != "full_attention") {
      faults().AddUnimplemented(
          "layer_types: {} is not supported; supported: full_attention, sliding_attention",
          Text(type));
      break;
    }
  }
  return sliding;
}

RopeSpec ConfigReader::Rope(int64_t max_position_embeddings, const RopeKeys& keys) {
  const double context = static_cast<double>(max_position_embeddings);
  RopeSpec rope;
  rope.theta = Number(keys.theta_key, 0.0, kMaxTheta, keys.theta);
  rope.partial_rotary_factor = Number("partial_rotary_factor", 0.0, 1.0, 1.0);
  rope.original_max_position_embeddings = context;
  std::optional<double> original;
  if (Has("original_max_position_embeddings")) {  // Phi-3 has it there
    original = Number("original_max_position_embeddings", 0.0, 1e12);
  }
  const auto read = [&](const Json& object, const std::string& where) {
    if (!object.is_object()) return faults().Add("{}: {} is not an object", where, Text(object));
    RopeObject reader(object, where, faults());
    if (reader.Find("rope_theta") != nullptr) {
      const double theta = reader.Number("rope_theta", 0.0);
      if (Has(keys.theta_key) && theta != rope.theta) {
        faults().Add("{}.rope_theta: {} contradicts {} {}", where, theta, keys.theta_key,
                     rope.theta);
      }
      if (theta > kMaxTheta) faults().Add("{}.rope_theta: {} is above {}", where, theta, kMaxTheta);
      rope.theta = theta;
    }
    reader.Read(rope, context, original);
  };
  const Json* scaling = keys.scaling == nullptr ? nullptr : impl_->Find(keys.scaling);
  if (scaling != nullptr) read(*scaling, keys.scaling);
  const Json* parameters = impl_->Find("rope_parameters");
  if (parameters == nullptr) return rope;
  const bool by_layer =
      parameters->contains("full_attention") || parameters->contains("sliding_attention");
  if (by_layer != (keys.layer_type != nullptr)) {
    faults().AddUnimplemented("rope_parameters: {} by layer type for this architecture",
                              by_layer ? "not supported" : "supported only");
  } else if (!by_layer) {
    read(*parameters, "rope_parameters");
  } else if (const auto it = parameters->find(keys.layer_type);
             it != parameters->end() && !it->is_null()) {
    read(*it, std::string("rope_parameters.") + keys.layer_type);
  }
  return rope;
}

Activation ConfigReader::HiddenActivation(std::string_view key, const std::string& fallback) {
  const std::string name = String(key, fallback);
  if (name == "gelu_pytorch_tanh") return Activation::kGeluTanh;
  if (name != "silu" && name != "swish") {
    faults().AddUnimplemented("{}: \"{}\" is not supported; supported: silu, gelu_pytorch_tanh",
                              key, name);
  }
  return Activation::kSilu;
}

}  // namespace quantd
