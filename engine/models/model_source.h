// ModelSource: what the headers of a model folder say, and LoadPlan: how it is loaded under a
// profile.
//
//   ReadModelSource (config.json, headers)  ->  PlanLoad (profile)  ->  planner, or LoadModel
//
// Read once, whoever asks: the planner computes bytes from the two, the loader packs what they say.
// Nothing of the weights is read. Values; thread-safe to read.
#pragma once

#include <filesystem>
#include <memory>
#include <optional>

#include "absl/status/statusor.h"
#include "engine/models/decoder_spec.h"
#include "engine/weights/loader.h"
#include "engine/weights/profile.h"
#include "engine/weights/safetensors.h"
#include "engine/weights/weight_check.h"

namespace quantd {

struct ModelSource {
  DecoderSpec spec;
  ExpectedWeights expected;  // of `spec`
  GenerationDefaults defaults;
  std::optional<MethodOptions> prequantized;  // config.json's quantization_config
  std::unique_ptr<Checkpoint> checkpoint;     // null: a config without weights
};

/// Of a config alone, in full precision.
ModelSource SourceOf(DecoderSpec spec);

/// All of the folder `dir`. NOT_FOUND (no folder, config.json or *.safetensors), DATA_LOSS,
/// UNIMPLEMENTED (by name).
absl::StatusOr<ModelSource> OpenModelSource(const std::filesystem::path& dir);

/// The same of a folder that may lack *.safetensors, or of a config.json alone. NOT_FOUND when they
/// are missing and the config says that they are quantized: what that takes is in their headers.
absl::StatusOr<ModelSource> ReadModelSource(const std::filesystem::path& folder_or_config);

/// How every tensor of a source is loaded under a profile.
struct LoadPlan {
  WeightLoaderOptions options;  // its profile is the effective one; on_progress is empty
  WeightsPlan weights;
  DType kv_dtype() const { return options.profile.kv_dtype.value_or(options.compute_dtype); }
};

/// `source` under `profile`, or, where none was given, as it is. INVALID_ARGUMENT (profile against
/// model or checkpoint), else errors of PlanWeights. A source without a checkpoint is planned as
/// if all tensors were there, in the config's dtype.
absl::StatusOr<LoadPlan> PlanLoad(const ModelSource& source, const QuantProfile& profile,
                                  bool profile_given);

}  // namespace quantd
