// SelectionRules: configs/selection.yaml, which says what profile is recommended for what goal.
//
// The rules are a table, compiled in as the profiles are; model_plan.h applies it. Values.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace quantd {

/// Share of 16-bit quality that is kept, 1 for all.
struct QualityRange {
  double low = 0;
  double high = 0;
};

struct SelectionRules {
  struct Goal {
    std::string name;
    std::vector<std::string> prefer;  // profiles, best first; "16-bit" and "checkpoint" too
    std::string because;
  };
  struct DefaultGoal {
    double bytes_per_parameter_below = 0;  // of the device's memory; 0: always
    std::string goal;
  };
  double memory_utilization = 1.0;  // share of a device's memory that may be taken
  std::vector<Goal> goals;
  std::vector<DefaultGoal> default_goal;                // the last applies always
  std::map<std::string, QualityRange> claimed_quality;  // by profile

  /// nullptr when there is none of that name.
  const Goal* Find(const std::string& goal) const;
};

/// The file `path`, or, where that is empty, the built-in rules. NOT_FOUND; INVALID_ARGUMENT with
/// all faults: unknown keys, profiles and goals by name.
absl::StatusOr<SelectionRules> LoadSelectionRules(const std::string& path);
/// `source` names the text in messages.
absl::StatusOr<SelectionRules> ParseSelectionRules(const std::string& yaml,
                                                   const std::string& source);

/// configs/selection.yaml as compiled in.
extern const char kBuiltInSelection[];

}  // namespace quantd
