#include "engine/plan/profile_choice.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "engine/plan/bytes_text.h"
#include "engine/weights/effective_profile.h"
#include "kernels/status.h"

namespace quantd {
namespace {

std::string Requests(int64_t count, int64_t context) {
  return fmt::format("{} request{} of {} tokens", count, count == 1 ? "" : "s", context);
}

class Chooser {
 public:
  Chooser(ModelPlan& plan, const SelectionRules& rules) : plan_(plan), rules_(rules) {}

  absl::Status ResolveGoal(const std::string& goal) {
    plan_.goal = goal;
    if (!plan_.goal.empty()) {
      if (rules_.Find(plan_.goal) == nullptr) {
        std::vector<std::string> names;
        for (const auto& g : rules_.goals) names.push_back(g.name);
        return InvalidArgument("goal: \"{}\" is not one of {}", plan_.goal, fmt::join(names, ", "));
      }
      Say("goal {}, as asked: {}", plan_.goal, rules_.Find(plan_.goal)->because);
      return absl::OkStatus();
    }
    const double share = plan_.parameters == 0 ? 0.0
                                               : static_cast<double>(plan_.memory_bytes) /
                                                     static_cast<double>(plan_.parameters);
    for (const auto& rule : rules_.default_goal) {
      const bool always = rule.bytes_per_parameter_below == 0;
      if (!always && (plan_.memory_bytes == 0 || share >= rule.bytes_per_parameter_below)) continue;
      plan_.goal = rule.goal;
      if (always) {
        Say("goal {}: {}", plan_.goal, rules_.Find(plan_.goal)->because);
      } else {
        Say("goal {}, as {} are {:.2f} bytes a parameter, below {:.2f}: {}", plan_.goal,
            BytesText(plan_.memory_bytes), share, rule.bytes_per_parameter_below,
            rules_.Find(plan_.goal)->because);
      }
      return absl::OkStatus();
    }
    return absl::InternalError("rules without a default goal");
  }

  void Choose() {
    std::vector<const ProfilePlan*> candidates = Preferred();
    const ProfilePlan* const checkpoint = plan_.Find(kCheckpointProfile);  // of a quantized one
    if (checkpoint != nullptr) {
      candidates = {checkpoint};
      Say("the checkpoint is quantized already ({}) and is taken as it is", plan_.quantization);
    }
    if (plan_.memory_bytes == 0) Say("the memory is not known: nothing was left out for its size");
    const ProfilePlan* chosen = nullptr;
    const ProfilePlan* next = nullptr;
    const ProfilePlan* too_large = nullptr;  // the first that would have been chosen
    for (const ProfilePlan* line : candidates) {
      if (!CanLoad(*line)) {
        Say("{} is left out: {}", line->name, line->refusal);
      } else if (!line->fits) {
        if (chosen == nullptr && too_large == nullptr) too_large = line;
        if (chosen == nullptr) {
          Say("{} does not fit: it takes {} with {}, {} may be taken", line->name,
              BytesText(line->memory.total()), ForWhat(), BytesText(plan_.usable_bytes));
        }
      } else if (chosen == nullptr) {
        chosen = line;
      } else if (next == nullptr) {
        next = line;
      }
    }
    if (chosen == nullptr && checkpoint == nullptr) chosen = LargestThatFits();
    if (chosen == nullptr) return NothingFits();
    plan_.recommended = chosen->name;
    Say("{} takes {}: weights {}, KV cache {}, workspace {}", chosen->name,
        BytesText(chosen->memory.total()), BytesText(chosen->memory.weights()),
        BytesText(chosen->memory.of(MemoryComponent::kKvCache)),
        BytesText(chosen->memory.workspace()));
    if (plan_.memory_bytes > 0) {
      Say("beside its weights there is room for {}", Requests(chosen->max_requests, plan_.context));
    }
    if (next != nullptr) {
      plan_.runner_up = next->name;
      const int64_t less = chosen->memory.total() - next->memory.total();
      Say("runner-up {}: {} {}", next->name, BytesText(std::abs(less)),
          less >= 0 ? "less" : "more");
    }
    if (too_large != nullptr) {
      Say("with {} of memory it would be {}",
          BytesText(static_cast<int64_t>(static_cast<double>(too_large->memory.total()) /
                                         plan_.memory_utilization)),
          too_large->name);
    }
  }

 private:
  // "16-bit" and "checkpoint" as the names of lines; one that is not there is left out.
  std::vector<const ProfilePlan*> Preferred() const {
    std::vector<const ProfilePlan*> lines;
    for (std::string name : rules_.Find(plan_.goal)->prefer) {
      if (name == "16-bit") name = SixteenBitProfile(plan_.spec);
      if (const ProfilePlan* line = plan_.Find(name); line != nullptr) lines.push_back(line);
    }
    return lines;
  }

  static bool CanLoad(const ProfilePlan& line) { return line.planned && line.refusal.empty(); }

  // Where none of the preferred ones does: the one nearest to full precision.
  const ProfilePlan* LargestThatFits() {
    for (const ProfilePlan& line : plan_.profiles) {
      if (!CanLoad(line) || !line.fits || plan_.memory_bytes == 0) continue;
      Say("none that this goal prefers fits; {} has the largest weights that do", line.name);
      return &line;
    }
    return nullptr;
  }

  void NothingFits() {
    const ProfilePlan* smallest = nullptr;
    for (const ProfilePlan& line : plan_.profiles) {
      if (CanLoad(line)) smallest = &line;  // they are sorted
    }
    if (smallest == nullptr) return Say("no profile can be loaded");
    const MemoryPlan& memory = smallest->memory;
    Say("nothing fits: {}, the smallest, takes {} with {} ({} of it KV cache), {} may be taken; {}",
        smallest->name, BytesText(memory.total()), ForWhat(),
        BytesText(memory.of(MemoryComponent::kKvCache)), BytesText(plan_.usable_bytes),
        plan_.kv_configured ? "a smaller KV cache or shorter contexts take less"
                            : "fewer or shorter requests take less");
  }

  // What the memory of a line is for, beside the model.
  std::string ForWhat() const {
    return plan_.kv_configured ? "its KV cache" : Requests(plan_.concurrency, plan_.context);
  }

  template <typename... Args>
  void Say(fmt::format_string<Args...> text, Args&&... args) {
    plan_.reasons.push_back(fmt::format(text, std::forward<Args>(args)...));
  }

  ModelPlan& plan_;
  const SelectionRules& rules_;
};

}  // namespace

std::string SixteenBitProfile(const DecoderSpec& spec) {
  return spec.dtype == DType::kF16 ? "fp16" : "bf16";
}

absl::Status ChooseFrom(ModelPlan& plan, const SelectionRules& rules, const std::string& goal) {
  for (ProfilePlan& line : plan.profiles) {
    if (const auto it = rules.claimed_quality.find(line.name); it != rules.claimed_quality.end()) {
      line.claimed_quality = it->second;
    }
  }
  Chooser chooser(plan, rules);
  RETURN_IF_ERROR(chooser.ResolveGoal(goal));
  chooser.Choose();
  return absl::OkStatus();
}

}  // namespace quantd
