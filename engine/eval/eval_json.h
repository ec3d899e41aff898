// Results of an evaluation as JSON, and back: the report, and the pieces that a journal keeps. Pure
// functions. Numbers that are not known are null or absent.
#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "engine/eval/eval_result.h"

namespace quantd {

/// One line.
std::string ToJson(const WindowScore& score);
std::string ToJson(const ProfileFacts& facts);
/// Indented, a profile's linears one a line.
std::string ToJson(const EvalReport& report);

/// DATA_LOSS naming `source` and what is missing or of another type.
absl::StatusOr<WindowScore> WindowScoreFromJson(const std::string& json, const std::string& source);
absl::StatusOr<ProfileFacts> ProfileFactsFromJson(const std::string& json,
                                                  const std::string& source);
absl::StatusOr<EvalReport> EvalReportFromJson(const std::string& json, const std::string& source);

}  // namespace quantd
