// Reads Hugging Face's quantization keys (BitsAndBytesConfig) into MethodOptions, for profiles and
// for config.json alike. Pure functions.
#pragma once

#include <filesystem>
#include <optional>
#include <string>

#include "absl/status/statusor.h"
#include "engine/weights/option_map.h"
#include "engine/weights/profile.h"

namespace quantd {

enum class OptionSource {
  kProfile,     // what a user asks for: every key must be known and possible
  kCheckpoint,  // what another program wrote: keys that do not change how its tensors read are
                // ignored
};

/// Defaults are Hugging Face's. A quant_method other than "none" and "bitsandbytes" is
/// UNIMPLEMENTED by name. Faults go to `faults` as "<where>.<key>: ...".
MethodOptions ReadQuantizationOptions(const OptionMap& map, const std::string& where,
                                      OptionSource source, FaultList& faults);

/// The quantization_config of `dir`/config.json; nullopt when the checkpoint is in full precision.
absl::StatusOr<std::optional<MethodOptions>> ReadQuantizationConfig(
    const std::filesystem::path& dir);

/// "bitsandbytes 4-bit nf4, double quantization, compute dtype bfloat16": for messages.
std::string Describe(const MethodOptions& options);

/// A method as reports name it: "none", "bitsandbytes_4bit", "bitsandbytes_8bit".
std::string_view ToString(QuantMethod method);
/// "nf4" or "fp4".
std::string_view QuantTypeName(Codec codec);

}  // namespace quantd
