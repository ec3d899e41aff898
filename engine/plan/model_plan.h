// PlanModel: every profile on one model and one device, and which of them to take.
//
//   ModelSource  ->  PlanProfiles: a line for each profile  ->  ChooseFrom: which, and why
//
// For `quantd plan`, for `profile: auto` and for the message of a load that would not fit. Reads
// config.json and, where there is one, the headers of a checkpoint; runs no model and allocates
// nothing. Thread-safe: no state.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/models/model_source.h"
#include "engine/plan/memory_plan.h"
#include "engine/plan/selection.h"

namespace quantd {

struct PlanRequest {
  std::filesystem::path model;  // folder, or config.json
  PlanDevice device;            // memory_bytes: of the device, before memory_utilization
  PlanLimits limits;
  int64_t context = 0;      // tokens of a request, prompt and answer; 0: the model's, at most 4096
  int64_t concurrency = 1;  // requests at once
  std::string goal;         // of the rules; empty: by their default_goal
  std::string profile;      // one more than the built-in ones: a file; may be empty
  double memory_utilization = 1.0;  // share of the memory that may be taken; PlanModel: the rules'
  /// Tokens of the KV cache that a load takes, of so many bytes a token. Empty: room for
  /// `concurrency` requests of `context` tokens.
  std::function<int64_t(int64_t bytes_per_token)> kv_tokens;
};

/// By `quantd eval`, of this checkpoint: see measured_quality.h.
struct MeasuredQuality {
  double retention = 0.0;           // 16-bit perplexity / the profile's
  std::optional<double> low, high;  // of its 95 % interval
  std::optional<double> kl_mean;    // nats a token
};

/// One profile's line.
struct ProfilePlan {
  std::string name;
  std::string hash;           // QuantProfile::Hash
  std::string refusal;        // why it cannot be loaded from this checkpoint; empty: it can
  bool planned = false;       // false: it does not suit the model, and nothing below is known
  MemoryPlan memory;          // with the request's KV cache
  bool fits = false;          // into the memory that may be taken
  int64_t max_kv_tokens = 0;  // 0 also when memory is not known
  int64_t max_requests = 0;   // of `context` tokens, at once
  /// Memory-bound limits of decoding; 0: bandwidth is not known. The second is of all `concurrency`
  /// requests together.
  double tokens_per_second = 0;
  double tokens_per_second_concurrent = 0;
  bool trainable_with_peft = false;
  std::optional<QualityRange> claimed_quality;
  std::optional<MeasuredQuality> measured_quality;
};

struct ModelPlan {
  // Of PlanProfiles.
  DecoderSpec spec;
  int64_t parameters = 0;
  std::string quantization;  // of the checkpoint: "none", ...
  int64_t memory_bytes = 0;  // of the device
  int64_t usable_bytes = 0;  // memory_bytes * memory_utilization
  double memory_utilization = 1.0;
  int64_t context = 0;
  int64_t concurrency = 0;
  bool kv_configured = false;         // by PlanRequest::kv_tokens
  std::vector<ProfilePlan> profiles;  // largest weights first

  // Of ChooseFrom, with the profiles' claimed_quality.
  std::string goal;
  std::string recommended;           // empty: nothing fits
  std::string runner_up;             // empty: nothing else fits
  std::vector<std::string> reasons;  // sentences, the goal first

  const ProfilePlan* Find(const std::string& name) const;
};

/// Every profile's line; nothing is chosen. Errors as PlanLoad's of the checkpoint as it is;
/// INVALID_ARGUMENT (context beyond the model's, concurrency, a profile's file). `model` and `goal`
/// of the request do not count.
absl::StatusOr<ModelPlan> PlanProfiles(const ModelSource& source, const PlanRequest& request);

/// NOT_FOUND (no such folder or file), DATA_LOSS and UNIMPLEMENTED as of loading, INVALID_ARGUMENT
/// (goal, and as PlanProfiles).
absl::StatusOr<ModelPlan> PlanModel(const PlanRequest& request, const SelectionRules& rules);

/// PlanModel of a config given as text, without a checkpoint; `source` names it in messages.
absl::StatusOr<ModelPlan> PlanConfig(const std::string& json, const std::string& source,
                                     const PlanRequest& request, const SelectionRules& rules);

/// One load, without a KV cache.
MemoryPlan PlanMemory(const ModelSource& source, const LoadPlan& load, const PlanLimits& limits,
                      const PlanDevice& device);

}  // namespace quantd
