#include "engine/models/model_source.h"

#include <utility>

#include "engine/models/architecture.h"
#include "engine/weights/effective_profile.h"
#include "engine/weights/files.h"
#include "engine/weights/quantization_options.h"
#include "kernels/status.h"

namespace quantd {
namespace {

constexpr int64_t kMaxConfigBytes = 16 << 20;

// What a folder says beside its config.json's model; the checkpoint is the caller's.
absl::StatusOr<ModelSource> ReadFolder(const std::filesystem::path& dir) {
  ASSIGN_OR_RETURN(DecoderSpec spec, ReadDecoderSpec(dir));
  ModelSource source = SourceOf(std::move(spec));
  ASSIGN_OR_RETURN(source.defaults, ReadGenerationDefaults(dir));
  ASSIGN_OR_RETURN(source.prequantized, ReadQuantizationConfig(dir));
  return source;
}

absl::StatusOr<ModelSource> ReadConfig(const std::filesystem::path& file) {
  ASSIGN_OR_RETURN(const std::string json, ReadTextFile(file, kMaxConfigBytes));
  ASSIGN_OR_RETURN(DecoderSpec spec, ParseDecoderSpec(json, file.string()));
  ModelSource source = SourceOf(std::move(spec));
  if (file.filename() == "config.json") {
    const std::filesystem::path dir = file.parent_path();
    ASSIGN_OR_RETURN(source.prequantized, ReadQuantizationConfig(dir.empty() ? "." : dir));
  }
  return source;
}

}  // namespace

ModelSource SourceOf(DecoderSpec spec) {
  ModelSource source;
  source.expected = FindArchitecture(spec.architecture, spec.model_type)->weights(spec);
  source.spec = std::move(spec);
  return source;
}

absl::StatusOr<ModelSource> OpenModelSource(const std::filesystem::path& dir) {
  ASSIGN_OR_RETURN(ModelSource source, ReadFolder(dir));
  ASSIGN_OR_RETURN(source.checkpoint, Checkpoint::Open(dir));
  return source;
}

absl::StatusOr<ModelSource> ReadModelSource(const std::filesystem::path& folder_or_config) {
  std::error_code error;
  const bool is_folder = std::filesystem::is_directory(folder_or_config, error);
  ASSIGN_OR_RETURN(ModelSource source,
                   is_folder ? ReadFolder(folder_or_config) : ReadConfig(folder_or_config));
  if (is_folder) {
    absl::StatusOr<std::unique_ptr<Checkpoint>> checkpoint = Checkpoint::Open(folder_or_config);
    if (checkpoint.ok()) {
      source.checkpoint = *std::move(checkpoint);
    } else if (!absl::IsNotFound(checkpoint.status())) {
      return checkpoint.status();
    }
  }
  if (source.prequantized && source.checkpoint == nullptr) {
    return NotFound(
        "{}: the checkpoint is quantized ({}), and what that takes is in the headers of its "
        "*.safetensors: give the folder that has them",
        folder_or_config.string(), Describe(*source.prequantized));
  }
  return source;
}

absl::StatusOr<LoadPlan> PlanLoad(const ModelSource& source, const QuantProfile& profile,
                                  bool profile_given) {
  ASSIGN_OR_RETURN(QuantProfile effective,
                   EffectiveProfile(profile, profile_given, source.prequantized));
  const DType compute_dtype = effective.ComputeDType(source.spec.dtype);
  LoadPlan plan = {.options = {.profile = std::move(effective),
                               .prequantized = source.prequantized,
                               .compute_dtype = compute_dtype,
                               .on_progress = {}},
                   .weights = {}};
  if (source.checkpoint != nullptr) {
    ASSIGN_OR_RETURN(plan.weights, PlanWeights(*source.checkpoint, source.expected, plan.options));
  } else {
    ASSIGN_OR_RETURN(plan.weights,
                     PlanWeightsOnLoad(source.expected, source.spec.dtype, plan.options));
  }
  return plan;
}

}  // namespace quantd
