// PlanWeights: the first half of loading: every tensor of a checkpoint against what the model
// expects.
//
// Reads headers and small metadata only (and, for a tied head that is stored twice, compares
// bytes), so a wrong folder is refused before anything is allocated. Pure function.
#pragma once

#include <optional>
#include <span>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/weights/loader.h"

namespace quantd {

/// How one module is to be loaded.
struct ModulePlan {
  WeightShape shape;
  std::string tensor;              // "<module>.weight", or the embedding's for a tied head
  const Method* import = nullptr;  // nullptr: floats, quantized on load by `options`
  MethodOptions options;
  std::string label;  // of reports
  QuantFormat format;
  ActivationQuant activation;
  std::vector<int32_t> columns;  // of a reordered weight
  std::string bias;              // tensor; empty when there is none
  DType stored = DType::kBF16;   // of floats that are quantized on load
  int64_t source_bytes = 0;
  std::vector<std::string> sources;  // tensors to give back once packed
};

struct WeightsPlan {
  ModulePlan embedding;
  std::optional<ModulePlan> head;  // also a tied head that the profile quantizes by itself
  std::vector<std::vector<ModulePlan>> groups;
  std::vector<std::string> accepted_extras;
  int64_t source_bytes = 0;
};

/// Errors as LoadWeights'.
absl::StatusOr<WeightsPlan> PlanWeights(const Checkpoint& checkpoint,
                                        const ExpectedWeights& expected,
                                        const WeightLoaderOptions& options);

/// The same where there is no checkpoint yet: of a full-precision one whose tensors are all there,
/// in dtype `stored`. INVALID_ARGUMENT when the profile does not suit the model.
absl::StatusOr<WeightsPlan> PlanWeightsOnLoad(const ExpectedWeights& expected, DType stored,
                                              const WeightLoaderOptions& options);

/// The modules of `group` that become one weight each: neighbours whose bytes mean the same and
/// whose inputs are treated the same. Views of `group`, in order.
std::vector<std::span<const ModulePlan>> FusedRuns(std::span<const ModulePlan> group);

}  // namespace quantd
