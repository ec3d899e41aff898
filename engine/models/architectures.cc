// The table of architectures, and the reading of a config that finds its row.
#include <array>

#include "engine/models/architecture.h"
#include "engine/weights/files.h"

namespace quantd {
namespace {

constexpr int64_t kMaxConfigBytes = 1 << 20;

std::span<const Architecture* const> Architectures() {
  static const std::array<const Architecture*, 1> kTable = {&kLlama};
  return kTable;
}

// What holds for every decoder, whatever its architecture.
void CheckSpec(const DecoderSpec& spec, FaultList& faults) {
  if (spec.num_heads % spec.num_kv_heads != 0) {
    faults.Add("num_attention_heads: {} is not a multiple of num_key_value_heads {}",
               spec.num_heads, spec.num_kv_heads);
  }
  if (spec.head_dim % 2 != 0) faults.Add("head_dim: {} is odd; rope rotates pairs", spec.head_dim);
}

}  // namespace

const Architecture* FindArchitecture(std::string_view name, std::string_view model_type) {
  for (const Architecture* a : Architectures()) {
    if (name.empty() ? a->model_type == model_type : a->name == name) return a;
  }
  return nullptr;
}

std::string SupportedArchitectures() {
  std::string names;
  for (const Architecture* a : Architectures())
    names += (names.empty() ? "" : ", ") + std::string(a->name);
  return names;
}

absl::StatusOr<DecoderSpec> ParseDecoderSpec(const std::string& json, const std::string& source) {
  ASSIGN_OR_RETURN(ConfigReader config, ConfigReader::Parse(json, source));
  const std::string name = config.Architecture();
  const std::string model_type = config.String("model_type", "");
  const Architecture* architecture = FindArchitecture(name, model_type);
  if (architecture == nullptr) {
    if (name.empty() && model_type.empty())
      return DataLoss("{}: neither architectures nor model_type", source);
    return Unimplemented("{}: {} \"{}\" is not supported; supported: {}", source,
                         name.empty() ? "model_type" : "architecture",
                         name.empty() ? model_type : name, SupportedArchitectures());
  }
  DecoderSpec spec;
  spec.architecture = architecture->name;
  spec.model_type = architecture->model_type;
  architecture->read(config, spec);
  CheckSpec(spec, config.faults());
  RETURN_IF_ERROR(config.ToStatus());
  return spec;
}

absl::StatusOr<DecoderSpec> ReadDecoderSpec(const std::filesystem::path& dir) {
  std::error_code error;
  if (!std::filesystem::is_directory(dir, error))
    return NotFound("{}: no such folder", dir.string());
  ASSIGN_OR_RETURN(const std::string json, ReadTextFile(dir / "config.json", kMaxConfigBytes));
  return ParseDecoderSpec(json, "config.json");
}

absl::StatusOr<GenerationDefaults> ReadGenerationDefaults(const std::filesystem::path& dir) {
  auto json = ReadTextFile(dir / "generation_config.json", kMaxConfigBytes);
  if (absl::IsNotFound(json.status())) return GenerationDefaults();
  RETURN_IF_ERROR(json.status());
  ASSIGN_OR_RETURN(ConfigReader config, ConfigReader::Parse(*json, "generation_config.json"));
  GenerationDefaults defaults;
  // Hugging Face's own defaults (top_k 50) apply only where do_sample is set; without it a file's
  // temperature is not meant either, and the field's defaults stay.
  if (config.Bool("do_sample", false)) {
    defaults.temperature =
        static_cast<float>(config.Number("temperature", -1e-30, 100.0, defaults.temperature));
    defaults.top_p = static_cast<float>(config.Number("top_p", 0.0, 1.0, defaults.top_p));
    defaults.top_k = static_cast<int32_t>(config.Int("top_k", 0, INT32_MAX, defaults.top_k));
    defaults.min_p = static_cast<float>(config.Number("min_p", -1e-30, 1.0, defaults.min_p));
  }
  defaults.eos_token_ids = config.TokenIds("eos_token_id", INT32_MAX);
  RETURN_IF_ERROR(config.ToStatus());
  return defaults;
}

}  // namespace quantd
