// The table of architectures, and the reading of a config that finds its row.
#include <array>

#include "engine/models/architecture.h"
#include "engine/weights/files.h"

namespace quantd {
namespace {

constexpr int64_t kMaxConfigBytes = 1 << 20;

// What is refused with more than its name.
struct Refused {
  std::string_view name, model_type, why;
};
constexpr std::string_view kExperts = "a mixture of experts, which quantd's decoder does not take";
constexpr std::string_view kMultimodal =
    "it takes more than text; of Gemma 3 the text models are supported";
constexpr Refused kRefused[] = {
    {"MixtralForCausalLM", "mixtral", kExperts},
    {"Qwen2MoeForCausalLM", "qwen2_moe", kExperts},
    {"Qwen3MoeForCausalLM", "qwen3_moe", kExperts},
    {"PhimoeForCausalLM", "phimoe", kExperts},
    {"PhiMoEForCausalLM", "phimoe", kExperts},
    {"OlmoeForCausalLM", "olmoe", kExperts},
    {"DeepseekV2ForCausalLM", "deepseek_v2", kExperts},
    {"DeepseekV3ForCausalLM", "deepseek_v3", kExperts},
    {"GptOssForCausalLM", "gpt_oss", kExperts},
    {"Gemma3ForConditionalGeneration", "gemma3", kMultimodal},
};

absl::Status NotSupported(const std::string& source, const std::string& name,
                          const std::string& model_type) {
  std::string why;
  for (const Refused& r : kRefused) {
    if (name.empty() ? r.model_type == model_type : r.name == name) why = r.why;
  }
  return Unimplemented("{}: {} \"{}\" is not supported{}{}; supported: {}", source,
                       name.empty() ? "model_type" : "architecture",
                       name.empty() ? model_type : name, why.empty() ? "" : ": ", why,
                       SupportedArchitectures());
}

void CheckRope(const RopeSpec& rope, int64_t rotary_dim, FaultList& faults) {
  if (rope.type != RopeSpec::Type::kLongRope) return;
  const size_t pairs = static_cast<size_t>(rotary_dim / 2);
  if (rope.short_factor.size() == pairs && rope.long_factor.size() == pairs) return;
  faults.Add("longrope: {} short and {} long factors for {} pairs of a head",
             rope.short_factor.size(), rope.long_factor.size(), pairs);
}

// What holds for every decoder, whatever its architecture.
void CheckSpec(const DecoderSpec& spec, FaultList& faults) {
  if (spec.num_heads % spec.num_kv_heads != 0) {
    faults.Add("num_attention_heads: {} is not a multiple of num_key_value_heads {}",
               spec.num_heads, spec.num_kv_heads);
  }
  if (spec.head_dim % 2 != 0)
    faults.Add("head_dim: {} is odd, and rope rotates pairs", spec.head_dim);
  const int64_t rotated = spec.rotary_dim();
  if (rotated < 2 || (rotated % 2 != 0 && rotated != spec.head_dim)) {
    faults.Add("partial_rotary_factor: {} of a head of {} are {} elements, and rope rotates pairs",
               spec.rope.partial_rotary_factor, spec.head_dim, rotated);
  }
  CheckRope(spec.rope, rotated, faults);
  if (spec.sliding_rope) {
    CheckRope(*spec.sliding_rope, rotated, faults);
    if (spec.sliding_rope->partial_rotary_factor != spec.rope.partial_rotary_factor) {
      faults.AddUnimplemented("rope_parameters: partial_rotary_factor by layer is not supported");
    }
  }
}

}  // namespace

std::span<const Architecture* const> Architectures() {
  static const std::array kTable = {&kLlama, &kMistral, &kQwen2, &kQwen3,
                                    &kPhi3,  &kGemma2,  &kGemma3};
  return kTable;
}

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
    return NotSupported(source, name, model_type);
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
  // Of greedy search, too.
  defaults.repetition_penalty = static_cast<float>(
      config.Number("repetition_penalty", 0.0, 100.0, defaults.repetition_penalty));
  defaults.eos_token_ids = config.TokenIds("eos_token_id", INT32_MAX);
  RETURN_IF_ERROR(config.ToStatus());
  return defaults;
}

}  // namespace quantd
