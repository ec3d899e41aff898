// PlanLoadFor: what a load will take, before it takes anything; and what `profile: auto` is.
#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/engine.h"
#include "engine/plan/memory_plan.h"

namespace quantd {

/// The name of the profile that the planner chooses.
inline constexpr char kAutoProfile[] = "auto";

/// The profile recommended for `model` on `device` by the built-in rules, for one request of the
/// context that `options` allow; "" for a checkpoint that is quantized already. The reasons are
/// logged. RESOURCE_EXHAUSTED when nothing fits, else errors of PlanModel.
absl::StatusOr<std::string> ChooseProfile(const std::string& model, const PlanDevice& device,
                                          const EngineOptions& options);

/// With the KV cache that Engine::Create will take. RESOURCE_EXHAUSTED, saying what would fit, when
/// it is more than `device` has free; else errors of PlanLoad.
absl::StatusOr<MemoryPlan> PlanLoadFor(const std::string& model, const QuantProfile& profile,
                                       bool profile_given, const PlanDevice& device,
                                       const EngineOptions& options);

}  // namespace quantd
