// ChooseFrom: the choosing half of a model's plan: which of its profiles to take for a goal, and
// why. Pure function.
#pragma once

#include <string>

#include "absl/status/status.h"
#include "engine/plan/model_plan.h"
#include "engine/plan/selection.h"

namespace quantd {

/// The profile that keeps a model in 16 bits: the checkpoint's own type where that has as many.
std::string SixteenBitProfile(const DecoderSpec& spec);

/// Fills in what ModelPlan says is ChooseFrom's. `goal` empty: by the rules' default_goal.
/// INVALID_ARGUMENT for a goal that is not of the rules.
absl::Status ChooseFrom(ModelPlan& plan, const SelectionRules& rules, const std::string& goal);

}  // namespace quantd
