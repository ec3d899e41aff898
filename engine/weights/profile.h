// QuantProfile: the parsed YAML of configs/profiles/*.yaml: how a model's linears are to be
// quantized.
//
// The keys are Hugging Face's own (BitsAndBytesConfig), so what a user knows can be pasted; absent
// keys take Hugging Face's defaults and the effective profile can be printed. Three steps, each a
// function: parse (YAML to fields, unknown keys refused with the nearest known one), normalize
// (defaults, inheritance), validate (all faults at once).
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/weights/method_options.h"
#include "kernels/quant/activation.h"

namespace quantd {

/// engine.activation: what becomes of the activation quantization that a method prescribes.
enum class ActivationMode : uint8_t {
  kFused,      // the method's codes; integer and fp8 sums where a backend has them
  kReference,  // the method's codes in the library's own arithmetic
  kNone,       // weights only: activations stay in floating point
};

struct ProfileOverride {
  std::string
      match;  // "re:<ECMAScript pattern>" over the whole module name, or a name / dotted suffix
  MethodOptions quantization;
};

struct QuantProfile {
  std::string name;
  std::string description;
  MethodOptions quantization;
  std::vector<ProfileOverride> overrides;  // first match wins
  /// kv_cache.dtype: a float type or int8 (kernels/quant/kv_codec.h); absent or "auto": the compute
  /// dtype.
  std::optional<DType> kv_dtype;
  ActivationQuant::OutlierScope outlier_scope = ActivationQuant::OutlierScope::kRow;
  ActivationMode activation = ActivationMode::kFused;

  /// How a Linear of this profile runs whose method says `prescribed`.
  ActivationQuant ActivationFor(ActivationQuant prescribed) const;
  /// The options that apply to `module` ("model.layers.0.mlp.up_proj"): an override, else the
  /// profile's own, else none when it is skipped (lm_head, a tied module, or the skip list).
  MethodOptions For(const std::string& module, bool tied) const;
  /// The dtype of activations: the method's compute dtype, else the profile's, else
  /// `checkpoint_dtype`.
  DType ComputeDType(DType checkpoint_dtype) const;
  /// The effective profile as YAML, every key written out.
  std::string ToYaml() const;
  /// 16 hex digits of ToYaml without name and description: equal for profiles that do the same.
  std::string Hash() const;
};

/// A file name (contains '/' or ends in .yaml), else a name looked up as
/// configs/profiles/<name>.yaml and among the built-in copies of those files. NOT_FOUND lists the
/// known names.
absl::StatusOr<QuantProfile> LoadProfile(const std::string& name_or_path);
/// `source` names the text in messages.
absl::StatusOr<QuantProfile> ParseProfile(const std::string& yaml, const std::string& source);
/// Names of the built-in profiles, sorted.
std::vector<std::string> BuiltInProfiles();

}  // namespace quantd
