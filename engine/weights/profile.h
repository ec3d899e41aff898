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
#include "kernels/quant/format.h"

namespace quantd {

enum class QuantMethod : uint8_t { kNone, kBitsAndBytes4, kBitsAndBytes8 };

/// One way to quantize a linear: a profile's `quantization:` mapping, normalized.
struct MethodOptions {
  QuantMethod method = QuantMethod::kNone;
  // bitsandbytes 4-bit
  Codec codec = Codec::kFp4;  // bnb_4bit_quant_type
  bool double_quant = false;  // bnb_4bit_use_double_quant
  int32_t block_size = 64;
  std::optional<DType>
      compute_dtype;  // bnb_4bit_compute_dtype; kNone: dtype, absent means the checkpoint's
  // bitsandbytes 8-bit
  float int8_threshold = 6.0f;            // llm_int8_threshold; 0: no outlier decomposition
  std::vector<std::string> skip_modules;  // llm_int8_skip_modules: names or "re:" patterns
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
