#include "engine/plan/selection.h"

#include <algorithm>
#include <array>

#include "engine/weights/effective_profile.h"
#include "engine/weights/files.h"
#include "engine/weights/option_map.h"
#include "engine/weights/profile.h"

namespace quantd {
namespace {

constexpr std::array<std::string_view, 4> kTopKeys = {"memory_utilization", "goals", "default_goal",
                                                      "claimed_quality"};
constexpr std::array<std::string_view, 2> kGoalKeys = {"prefer", "because"};
constexpr std::array<std::string_view, 2> kDefaultKeys = {"bytes_per_parameter_below", "goal"};

bool IsCandidate(const std::string& name) {
  if (name == "16-bit" || name == kCheckpointProfile) return true;
  const std::vector<std::string> profiles = BuiltInProfiles();
  return std::find(profiles.begin(), profiles.end(), name) != profiles.end();
}

void ReadGoals(const OptionReader& top, SelectionRules& rules) {
  FaultList& faults = top.faults();
  for (const auto& [name, value] : top.Map("goals")) {
    const std::string where = top.Path("goals") + "." + name;
    if (value.kind != OptionValue::Kind::kMap) {
      faults.Add("{}: not a mapping", where);
      continue;
    }
    const OptionReader reader(value.map, where, faults);
    reader.CheckKeys(kGoalKeys);
    SelectionRules::Goal goal = {name, reader.Strings("prefer"), reader.String("because", "")};
    if (goal.prefer.empty()) faults.Add("{}.prefer: names no profile", where);
    for (const std::string& profile : goal.prefer) {
      if (IsCandidate(profile)) continue;
      faults.Add("{}.prefer: no profile \"{}\"; known: 16-bit, checkpoint, {}", where, profile,
                 fmt::join(BuiltInProfiles(), ", "));
    }
    rules.goals.push_back(std::move(goal));
  }
}

void ReadDefaults(const OptionReader& top, SelectionRules& rules) {
  FaultList& faults = top.faults();
  const OptionValue* list = top.Find("default_goal");
  if (list == nullptr) return;
  for (size_t i = 0; i < list->items.size(); ++i) {
    const std::string where = fmt::format("default_goal[{}]", i);
    const OptionReader reader(list->items[i].map, where, faults);
    reader.CheckKeys(kDefaultKeys);
    SelectionRules::DefaultGoal rule = {reader.Number("bytes_per_parameter_below", 0),
                                        reader.String("goal", "")};
    if (rules.Find(rule.goal) == nullptr) {
      faults.Add("{}.goal: \"{}\" is none of the goals", where, rule.goal);
    }
    rules.default_goal.push_back(std::move(rule));
  }
}

void ReadQuality(const OptionReader& top, SelectionRules& rules) {
  for (const auto& [profile, value] : top.Map("claimed_quality")) {
    const bool pair = value.items.size() == 2 &&
                      value.items[0].kind == OptionValue::Kind::kNumber &&
                      value.items[1].kind == OptionValue::Kind::kNumber;
    if (!pair || !(value.items[0].number <= value.items[1].number)) {
      top.faults().Add("claimed_quality.{}: not a range [low, high]", profile);
      continue;
    }
    rules.claimed_quality[profile] = {value.items[0].number, value.items[1].number};
  }
}

}  // namespace

const SelectionRules::Goal* SelectionRules::Find(const std::string& goal) const {
  for (const Goal& g : goals) {
    if (g.name == goal) return &g;
  }
  return nullptr;
}

absl::StatusOr<SelectionRules> ParseSelectionRules(const std::string& yaml,
                                                   const std::string& source) {
  ASSIGN_OR_RETURN(const OptionMap map, ParseYamlOptions(yaml, source));
  FaultList faults;
  const OptionReader reader(map, "", faults);
  reader.CheckKeys(kTopKeys);
  SelectionRules rules;
  rules.memory_utilization = reader.Number("memory_utilization", 1.0);
  if (!(rules.memory_utilization > 0.0 && rules.memory_utilization <= 1.0)) {
    faults.Add("memory_utilization: {} is not above 0 and at most 1", rules.memory_utilization);
  }
  ReadGoals(reader, rules);
  ReadDefaults(reader, rules);
  if (rules.default_goal.empty() || rules.default_goal.back().bytes_per_parameter_below > 0) {
    faults.Add("default_goal: the last entry must apply always (no bytes_per_parameter_below)");
  }
  ReadQuality(reader, rules);
  RETURN_IF_ERROR(faults.ToStatus(absl::StatusCode::kInvalidArgument, source));
  return rules;
}

absl::StatusOr<SelectionRules> LoadSelectionRules(const std::string& path) {
  constexpr int64_t kMaxBytes = 1 << 20;
  if (path.empty()) return ParseSelectionRules(kBuiltInSelection, "selection.yaml");
  ASSIGN_OR_RETURN(const std::string yaml, ReadTextFile(path, kMaxBytes));
  return ParseSelectionRules(yaml, path);
}

}  // namespace quantd
