// Reads a `quantization:` mapping or config.json's quantization_config into MethodOptions, by the
// method that it names. Pure functions.
#pragma once

#include <filesystem>
#include <optional>
#include <string>

#include "absl/status/statusor.h"
#include "engine/weights/methods/method.h"

namespace quantd {

/// A quant_method that quantd has not is UNIMPLEMENTED by name, with what works instead. Faults go
/// to `faults` as "<where>.<key>: ...".
MethodOptions ReadQuantizationOptions(const OptionMap& map, const std::string& where,
                                      OptionSource source, FaultList& faults);

/// The quantization_config (or compression_config) of `dir`/config.json, else
/// `dir`/quantize_config.json (AutoGPTQ) or `dir`/quant_config.json (AutoAWQ); nullopt when the
/// checkpoint is in full precision.
absl::StatusOr<std::optional<MethodOptions>> ReadQuantizationConfig(
    const std::filesystem::path& dir);

/// "bitsandbytes 4-bit nf4, double quantization, compute dtype bfloat16": for messages.
std::string Describe(const MethodOptions& options);

}  // namespace quantd
