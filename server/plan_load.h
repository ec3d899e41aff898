// PlanLoadFor: what a load will take, before it takes anything; and what `profile: auto` is.
#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/engine.h"
#include "engine/models/model_source.h"
#include "engine/plan/memory_plan.h"

namespace quantd {

/// The name of the profile that the planner chooses.
inline constexpr char kAutoProfile[] = "auto";

struct ChosenProfile {
  std::string name;                  // empty: a checkpoint that is quantized already, as it is
  std::vector<std::string> reasons;  // sentences
};

/// The profile recommended for `source` on `device` by the built-in rules, with the KV cache that
/// PlanLoadFor gives a load at least. RESOURCE_EXHAUSTED, with the reasons, when nothing fits, else
/// INVALID_ARGUMENT for options that the engine would refuse, and errors of PlanProfiles.
absl::StatusOr<ChosenProfile> ChooseProfile(const ModelSource& source, const PlanDevice& device,
                                            const EngineOptions& options);

/// What a load and its engine will take.
struct LoadMemory {
  MemoryPlan plan;  // with the KV cache
  /// Blocks of the KV cache, without the reserved one; for EngineOptions::num_kv_blocks.
  int32_t kv_blocks = 0;
  int32_t wanted_kv_blocks = 0;  // above kv_blocks where the default did not fit as a whole
};

/// A KV cache that the options say is taken as it is. The default one (KvBlocksFor) shrinks to what
/// leaves free what the rules of choice leave free, but never below one context. INVALID_ARGUMENT
/// for options that the engine would refuse, UNIMPLEMENTED for what the device has no kernels for,
/// RESOURCE_EXHAUSTED, saying what would fit, when it is more than `device` has free; a device
/// whose memory is not known has enough.
absl::StatusOr<LoadMemory> PlanLoadFor(const ModelSource& source, const LoadPlan& load,
                                       const PlanDevice& device, const EngineOptions& options);

}  // namespace quantd
