#include "server/plan_load.h"

#include <spdlog/spdlog.h>

#include <algorithm>

#include "engine/plan/bytes_text.h"
#include "engine/plan/model_plan.h"
#include "kernels/status.h"

namespace quantd {
namespace {

PlanLimits LimitsOf(const EngineOptions& options) {
  PlanLimits limits;
  limits.max_num_seqs = options.max_num_seqs;
  limits.max_num_batched_tokens = options.max_num_batched_tokens;
  limits.max_logit_rows = options.max_num_seqs + kExtraLogitRows;
  limits.max_model_len = options.max_model_len;
  limits.block_size = options.block_size;
  return limits;
}

// "nf4 (4.40 GB), nf4-dq (4.10 GB)": what would fit, smallest last.
std::string WhatFits(const std::string& model, const PlanDevice& device,
                     const EngineOptions& options) {
  PlanRequest request;
  request.model = model;
  request.device = device;
  request.limits = LimitsOf(options);
  request.context = options.max_model_len;
  SelectionRules rules;
  rules.goals = {{"any", {}, ""}};
  rules.default_goal = {{0, "any"}};
  const auto plan = PlanModel(request, rules);
  std::vector<std::string> fitting;
  if (plan.ok()) {
    for (const ProfilePlan& p : plan->profiles) {
      if (!p.planned || !p.refusal.empty() || !p.fits) continue;
      fitting.push_back(fmt::format("{} ({})", p.name, BytesText(p.memory.total())));
    }
  }
  return fitting.empty() ? "no profile" : fmt::format("{}", fmt::join(fitting, ", "));
}

}  // namespace

absl::StatusOr<std::string> ChooseProfile(const std::string& model, const PlanDevice& device,
                                          const EngineOptions& options) {
  ASSIGN_OR_RETURN(const SelectionRules rules, LoadSelectionRules(""));
  PlanRequest request;
  request.model = model;
  request.device = device;
  request.limits = LimitsOf(options);
  request.context = options.max_model_len;
  ASSIGN_OR_RETURN(const ModelPlan plan, PlanModel(request, rules));
  if (plan.recommended.empty()) {
    return ResourceExhausted("profile auto: {}", fmt::join(plan.reasons, "; "));
  }
  spdlog::info("profile auto: {}", plan.recommended);
  for (const std::string& reason : plan.reasons) spdlog::info("  {}", reason);
  return plan.recommended == "checkpoint" ? "" : plan.recommended;
}

absl::StatusOr<MemoryPlan> PlanLoadFor(const std::string& model, const QuantProfile& profile,
                                       bool profile_given, const PlanDevice& device,
                                       const EngineOptions& options) {
  ASSIGN_OR_RETURN(const LoadPlan load,
                   PlanLoad(model, profile, profile_given, LimitsOf(options), device));
  const int64_t context =
      options.max_model_len > 0 ? options.max_model_len : load.max_position_embeddings;
  ASSIGN_OR_RETURN(const int32_t blocks,
                   KvBlocksFor(options, context, load.memory.kv_bytes_per_token));
  MemoryPlan plan =
      load.memory.WithKvTokens(int64_t{blocks} * options.block_size, options.block_size);
  const int64_t free = device.memory_bytes;
  if (plan.total() <= free) return plan;
  const int64_t tokens = load.memory.KvTokensIn(free, options.block_size);
  return ResourceExhausted(
      "under {} it would take {} (weights {}, KV cache {}, workspace {}), and {} are free; what "
      "would fit: {}",
      load.profile, BytesText(plan.total()), BytesText(plan.weights()),
      BytesText(plan.of(MemoryComponent::kKvCache)), BytesText(plan.workspace()), BytesText(free),
      tokens > 0
          ? fmt::format("a KV cache of {} tokens, {} (kv.cache_bytes)", tokens,
                        BytesText((tokens + options.block_size) * load.memory.kv_bytes_per_token))
          : WhatFits(model, device, options));
}

}  // namespace quantd
