// Fields are found and set by protobuf's reflection, so that what quantd.v1 learns is known here.
#include "server/kserve/sampling_options.h"

#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"
#include "server/grpc/error_details.h"
#include "server/one_line.h"

namespace quantd::kserve {
namespace {

using google::protobuf::FieldDescriptor;
using Json = nlohmann::json;

const FieldDescriptor* FindOption(const std::string& name) {
  return v1::SamplingParams::descriptor()->FindFieldByName(name);
}

std::string Shown(const Json& value) {
  return Quoted(value.is_string() ? value.get_ref<const std::string&>()
                                  : value.dump(-1, ' ', false, Json::error_handler_t::replace));
}

std::optional<double> ToNumber(const Json& value) {
  if (value.is_number()) return value.get<double>();
  double number = 0;
  if (value.is_string() && absl::SimpleAtod(value.get_ref<const std::string&>(), &number)) {
    return number;
  }
  return std::nullopt;
}

// A whole number of type T: 3, 3.0 or "3".
template <typename T>
std::optional<T> ToInteger(const Json& value) {
  using Limits = std::numeric_limits<T>;
  if (value.is_number_unsigned()) {
    const auto number = value.get<uint64_t>();
    if (std::cmp_less_equal(number, Limits::max())) return static_cast<T>(number);
  } else if (value.is_number_integer()) {
    const auto number = value.get<int64_t>();
    if (std::cmp_greater_equal(number, Limits::min()) && std::cmp_less_equal(number, Limits::max()))
      return static_cast<T>(number);
  } else if (value.is_number_float()) {
    const auto number = value.get<double>();
    // 2^53: beyond it a double is not the number that was written.
    if (number == std::trunc(number) && std::abs(number) < 9e15) {
      return ToInteger<T>(number < 0 ? Json(static_cast<int64_t>(number))
                                     : Json(static_cast<uint64_t>(number)));
    }
  } else if (value.is_string()) {
    T number = 0;
    if (absl::SimpleAtoi(value.get_ref<const std::string&>(), &number)) return number;
  }
  return std::nullopt;
}

std::optional<bool> ToBool(const Json& value) {
  if (value.is_boolean()) return value.get<bool>();
  if (!value.is_string()) return std::nullopt;
  const std::string word = absl::AsciiStrToLower(value.get_ref<const std::string&>());
  if (word == "true" || word == "false") return word == "true";
  return std::nullopt;
}

float ToFloat(double number) {  // what no float holds is infinite, which no field allows
  if (std::abs(number) <= std::numeric_limits<float>::max()) return static_cast<float>(number);
  return std::isnan(number) ? std::numeric_limits<float>::quiet_NaN()
                            : std::copysign(HUGE_VALF, static_cast<float>(number > 0 ? 1 : -1));
}

absl::Status WrongType(const std::string& origin, const Json& value, const char* allowed) {
  return InvalidField(origin, "is {}, allowed: {}", Shown(value), allowed);
}

absl::Status SetStrings(const Json& value, const FieldDescriptor* field, const std::string& origin,
                        v1::SamplingParams* params) {
  const auto* reflection = params->GetReflection();
  if (value.is_string()) {
    reflection->AddString(params, field, value.get<std::string>());
    return absl::OkStatus();
  }
  if (!value.is_array()) return WrongType(origin, value, "a string or a list of strings");
  for (const Json& element : value) {
    if (!element.is_string()) return WrongType(origin, value, "a string or a list of strings");
    reflection->AddString(params, field, element.get<std::string>());
  }
  return absl::OkStatus();
}

absl::Status SetIds(const Json& value, const FieldDescriptor* field, const std::string& origin,
                    v1::SamplingParams* params) {
  if (!value.is_array()) return WrongType(origin, value, "a list of token ids");
  for (const Json& element : value) {
    const std::optional<int32_t> id = ToInteger<int32_t>(element);
    if (!id.has_value()) return WrongType(origin, element, "token ids in the list");
    params->GetReflection()->AddInt32(params, field, *id);
  }
  return absl::OkStatus();
}

absl::Status SetBiases(const Json& value, const std::string& origin, v1::SamplingParams* params) {
  if (!value.is_object()) return WrongType(origin, value, "an object of token ids and numbers");
  for (const auto& [key, bias] : value.items()) {
    int32_t id = 0;
    const std::optional<double> number = ToNumber(bias);
    if (!absl::SimpleAtoi(key, &id) || !number.has_value()) {
      return WrongType(origin, bias, "an object of token ids and numbers");
    }
    (*params->mutable_logit_bias())[id] = ToFloat(*number);
  }
  return absl::OkStatus();
}

absl::Status SetOne(const Json& value, const FieldDescriptor* field, const std::string& origin,
                    v1::SamplingParams* params) {
  const auto* reflection = params->GetReflection();
  switch (field->cpp_type()) {
    case FieldDescriptor::CPPTYPE_FLOAT: {
      const std::optional<double> number = ToNumber(value);
      if (!number.has_value()) return WrongType(origin, value, "a number");
      reflection->SetFloat(params, field, ToFloat(*number));
      return absl::OkStatus();
    }
    case FieldDescriptor::CPPTYPE_INT32: {
      const std::optional<int32_t> number = ToInteger<int32_t>(value);
      if (!number.has_value()) return WrongType(origin, value, "a whole number of 32 bits");
      // vLLM's way to say that it is off.
      const bool off = field->name() == "top_k" && *number == -1;
      reflection->SetInt32(params, field, off ? 0 : *number);
      return absl::OkStatus();
    }
    case FieldDescriptor::CPPTYPE_UINT64: {
      const std::optional<uint64_t> number = ToInteger<uint64_t>(value);
      if (!number.has_value()) return WrongType(origin, value, "a whole number, 0 to 2^64 - 1");
      reflection->SetUInt64(params, field, *number);
      return absl::OkStatus();
    }
    case FieldDescriptor::CPPTYPE_BOOL: {
      const std::optional<bool> flag = ToBool(value);
      if (!flag.has_value()) return WrongType(origin, value, "true or false");
      reflection->SetBool(params, field, *flag);
      return absl::OkStatus();
    }
    default: return Internal("{}: a field of a type that has no reader", origin);
  }
}

absl::Status SetOption(const Json& value, const FieldDescriptor* field, const std::string& origin,
                       v1::SamplingParams* params) {
  const std::string& name = field->name();
  if (name == "logprobs" || name == "prompt_logprobs") {
    return InvalidField(origin, "no output here carries log probabilities; quantd.v1 has them");
  }
  if (field->is_map()) return SetBiases(value, origin, params);
  if (field->is_repeated()) {
    return field->cpp_type() == FieldDescriptor::CPPTYPE_STRING
               ? SetStrings(value, field, origin, params)
               : SetIds(value, field, origin, params);
  }
  RETURN_IF_ERROR(SetOne(value, field, origin, params));
  if (name == "n" && params->n() != 1) {
    return InvalidField(origin, "is {}, allowed: 1; quantd.v1 has more outputs", params->n());
  }
  return absl::OkStatus();
}

absl::Status UnknownOption(const std::string& where, const std::string& name) {
  return InvalidField(where, "{} is not an option of sampling that is known here", Quoted(name));
}

// An object of values, or INVALID_ARGUMENT. nlohmann's parser keeps its place on the heap, so deep
// nesting costs no stack; what is too deep is dropped as it is read.
absl::StatusOr<Json> ParseObject(const std::string& text, const std::string& field) {
  if (text.size() > kMaxSamplingJsonBytes) {
    return InvalidField(field, "{} bytes, allowed: at most {}", text.size(), kMaxSamplingJsonBytes);
  }
  bool too_deep = false;
  std::set<std::string> keys;
  std::optional<std::string> twice;
  const auto watch = [&](int depth, Json::parse_event_t event, Json& parsed) {
    using Event = Json::parse_event_t;
    if (event == Event::key && depth == 1 &&
        !keys.insert(parsed.get_ref<const std::string&>()).second) {
      twice = parsed.get<std::string>();
    }
    const bool opens = event == Event::object_start || event == Event::array_start;
    if (opens && depth >= kMaxSamplingJsonDepth) too_deep = true;
    return !(opens && depth >= kMaxSamplingJsonDepth);
  };
  Json object = Json::parse(text, watch, /*allow_exceptions=*/false);
  if (too_deep) {
    return InvalidField(field, "nested deeper than {} levels", kMaxSamplingJsonDepth);
  }
  if (object.is_discarded() || !object.is_object()) {
    return InvalidField(field, "{} is not a JSON object", Quoted(text));
  }
  if (twice.has_value()) return InvalidField(field, "the key {} is there twice", Quoted(*twice));
  return object;
}

}  // namespace

absl::Status SamplingOptions::Note(const std::string& name, const std::string& origin) {
  const auto [place, is_new] = origins_.try_emplace(name, origin);
  if (is_new) return absl::OkStatus();
  return InvalidField(origin, "given beside {}, which is the same: allowed: one of them",
                      place->second);
}

absl::Status SamplingOptions::SetInput(const std::string& name, const InputValue& value,
                                       const std::string& origin) {
  const FieldDescriptor* field = FindOption(name);
  if (field == nullptr) return Internal("{}: no such option of sampling", name);
  RETURN_IF_ERROR(Note(name, origin));
  Json json = std::visit([](const auto& v) { return Json(v); }, value);
  if (field->is_repeated() && !json.is_array()) json = Json::array({json});
  return SetOption(json, field, origin, &params_);
}

absl::Status SamplingOptions::SetJson(const std::string& text) {
  const std::string where = "sampling_parameters";
  ASSIGN_OR_RETURN(const Json object, ParseObject(text, where));
  for (const auto& [name, value] : object.items()) {
    const FieldDescriptor* field = FindOption(name);
    if (field == nullptr) return UnknownOption(where, name);
    if (value.is_null()) continue;
    const std::string origin = fmt::format("{}.{}", where, name);
    RETURN_IF_ERROR(Note(name, origin));
    RETURN_IF_ERROR(SetOption(value, field, origin, &params_));
  }
  return absl::OkStatus();
}

absl::Status SamplingOptions::SetParameter(const std::string& name,
                                           const inference::InferParameter& value) {
  const FieldDescriptor* field = FindOption(name);
  if (field == nullptr) return UnknownOption("parameters", name);
  const std::string origin = fmt::format("parameters.{}", name);
  Json json;
  switch (value.parameter_choice_case()) {
    case inference::InferParameter::kBoolParam: json = value.bool_param(); break;
    case inference::InferParameter::kInt64Param: json = value.int64_param(); break;
    case inference::InferParameter::kStringParam: json = value.string_param(); break;
    case inference::InferParameter::kDoubleParam: json = value.double_param(); break;
    case inference::InferParameter::kUint64Param: json = value.uint64_param(); break;
    case inference::InferParameter::PARAMETER_CHOICE_NOT_SET:
      return InvalidField(origin, "has no value");
  }
  RETURN_IF_ERROR(Note(name, origin));
  return SetOption(json, field, origin, &params_);
}

absl::Status SamplingOptions::Translate(const absl::Status& status, const Origins& origins) {
  if (status.ok()) return status;
  // "sampling.stop[3]" -> "stop_words[3]"; "text" and "prompt" -> "text_input".
  const auto translate = [&](std::string path) -> std::string {
    const std::string prefix = "sampling.";
    if (path.starts_with(prefix)) {
      path.erase(0, prefix.size());
      const size_t end =
          std::min(path.find_first_not_of("abcdefghijklmnopqrstuvwxyz_"), path.size());
      const auto origin = origins.find(path.substr(0, end));
      return origin == origins.end() ? path : origin->second + path.substr(end);
    }
    for (const std::string name : {"text", "prompt"}) {
      if (path == name || path.starts_with(name + ":"))
        return kTextInput + path.substr(name.size());
    }
    return path;
  };
  absl::Status translated(status.code(), translate(Message(status)));
  status.ForEachPayload(
      [&](absl::string_view type, const absl::Cord& payload) {  // RetryAfter's too
        translated.SetPayload(type, payload);
      });
  if (const std::optional<std::string> field = FieldIn(status); field.has_value()) {
    return WithField(std::move(translated), translate(*field));
  }
  return translated;
}

}  // namespace quantd::kserve
