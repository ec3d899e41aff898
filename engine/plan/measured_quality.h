// AddMeasuredQuality: what `quantd eval` has measured of a checkpoint, in place of what is commonly
// claimed of its profiles. Reads one JSON report; no state.
#pragma once

#include <filesystem>
#include <string>

#include "absl/status/status.h"
#include "engine/plan/model_plan.h"

namespace quantd {

/// The name under which a report in a model's folder is found.
inline constexpr char kQualityReportName[] = "quantd-eval.json";

/// Sets `measured_quality` of the profiles in the report, and says in the reasons what is kept
/// under the recommended one and the runner-up. `report`: a file, or empty: kQualityReportName in
/// the folder `model`, if it is there. A profile counts only where the report's has the same
/// content. NOT_FOUND for a file that is named and not there; DATA_LOSS for one that is no report;
/// FAILED_PRECONDITION for a named one that is of another checkpoint (one that is found in the
/// folder is then left out, and the reasons say so).
absl::Status AddMeasuredQuality(const std::filesystem::path& model,
                                const std::filesystem::path& report, ModelPlan* plan);

}  // namespace quantd
