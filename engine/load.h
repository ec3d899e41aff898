// LoadModel: a model folder and a profile become a Model on a backend, one matrix at a time.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/models/model.h"
#include "engine/models/model_source.h"
#include "engine/weights/profile.h"
#include "kernels/backend.h"

namespace quantd {

struct LoadProgress {
  int64_t bytes_done = 0;  // of the source checkpoint
  int64_t bytes_total = 0;
  std::string current;  // module being packed
};

/// Where the quantization came from and what it made: shown at start and by GetModelInfo.
struct QuantizationReport {
  std::string profile_name;  // "nf4-dq", or "checkpoint" for a pre-quantized one without a profile
  std::string profile_hash;
  std::string effective_profile;  // YAML
  std::string backend;
  struct Group {
    std::string format;  // QuantFormat::ToString
    std::string method;  // "bitsandbytes_4bit", "none", ...
    int64_t modules = 0;
    int64_t parameters = 0;
    int64_t bytes = 0;  // resident
  };
  std::vector<Group> groups;   // linears (embedding and head included), by method and format
  int64_t parameters = 0;      // whole model
  int64_t resident_bytes = 0;  // whole model, weights and norms
  /// Bits per parameter over everything resident.
  double bits_per_weight() const {
    return parameters == 0
               ? 0.0
               : 8.0 * static_cast<double>(resident_bytes) / static_cast<double>(parameters);
  }
  int64_t peak_load_bytes =
      0;  // largest host memory of ours while loading (packed + matrices in flight)
  std::vector<std::string> accepted_extras;  // harmless tensors that were not used
  double seconds = 0.0;
};

struct LoadOptions {
  std::filesystem::path model_dir;
  QuantProfile profile;  // for a pre-quantized checkpoint: only its kv_cache and engine keys count
  bool profile_given =
      true;  // false: no profile was named; a full-precision checkpoint loads as it is
  int64_t max_rows = 512;       // rows of one Forward (the scheduler's token budget)
  int64_t max_logit_rows = 64;  // rows of logits of one Forward
  int64_t max_positions = 0;    // rope table length; 0: the spec's max_position_embeddings
  std::function<void(const LoadProgress&)> on_progress;  // loader thread; may be empty
};

struct LoadedModel {
  std::unique_ptr<Model> model;
  DecoderSpec spec;
  GenerationDefaults defaults;
  DType kv_dtype = DType::kBF16;
  QuantizationReport report;
};

/// Errors: NOT_FOUND (no such folder or file), DATA_LOSS (all faults of the checkpoint in one
/// message), UNIMPLEMENTED (by name), INVALID_ARGUMENT (profile against model), RESOURCE_EXHAUSTED.
/// `backend` must outlive the model.
absl::StatusOr<LoadedModel> LoadModel(Backend& backend, const LoadOptions& options);
/// The same of a folder whose headers are read and planned already: `plan` is PlanLoad's of
/// `source`, which has a checkpoint. Of `options` only the sizes and on_progress count.
absl::StatusOr<LoadedModel> LoadModel(Backend& backend, const ModelSource& source,
                                      const LoadPlan& plan, const LoadOptions& options);

}  // namespace quantd
