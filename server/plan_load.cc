#include "server/plan_load.h"

#include <algorithm>
#include <utility>

#include "engine/plan/bytes_text.h"
#include "engine/plan/device_check.h"
#include "engine/plan/model_plan.h"
#include "engine/plan/profile_choice.h"
#include "engine/weights/effective_profile.h"
#include "kernels/ceil_div.h"
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

int64_t ContextOf(const ModelSource& source, const EngineOptions& options) {
  return options.max_model_len > 0 ? options.max_model_len : source.spec.max_position_embeddings;
}

// Of `wanted` blocks, those that a load does not do without.
int32_t LeastKvBlocks(int32_t wanted, int64_t context, const EngineOptions& options) {
  const bool configured = options.num_kv_blocks > 0 || options.kv_cache_bytes > 0;
  return configured ? wanted
                    : static_cast<int32_t>(
                          std::min<int64_t>(wanted, CeilDiv(context, options.block_size)));
}

// What PlanProfiles is asked for loads under these options.
PlanRequest RequestFor(const ModelSource& source, const PlanDevice& device,
                       const EngineOptions& options, const SelectionRules& rules) {
  PlanRequest request;
  request.device = device;
  request.limits = LimitsOf(options);
  request.context = ContextOf(source, options);
  request.memory_utilization = rules.memory_utilization;
  request.kv_tokens = [context = request.context, options](int64_t bytes_per_token) {
    // Too few bytes for a block are PlanLoadFor's to refuse.
    const int32_t wanted = KvBlocksFor(options, context, bytes_per_token).value_or(1);
    return int64_t{LeastKvBlocks(wanted, context, options)} * options.block_size;
  };
  return request;
}

// "nf4 (4.40 GB), nf4-dq (4.10 GB)": what would fit, smallest last.
std::string WhatFits(const ModelSource& source, const PlanRequest& request) {
  const auto plan = PlanProfiles(source, request);
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

absl::StatusOr<ChosenProfile> ChooseProfile(const ModelSource& source, const PlanDevice& device,
                                            const EngineOptions& options) {
  RETURN_IF_ERROR(CheckEngineOptions(options, source.spec));
  ASSIGN_OR_RETURN(const SelectionRules rules, LoadSelectionRules(""));
  ASSIGN_OR_RETURN(ModelPlan plan,
                   PlanProfiles(source, RequestFor(source, device, options, rules)));
  RETURN_IF_ERROR(ChooseFrom(plan, rules, /*goal=*/""));
  if (plan.recommended.empty()) {
    return ResourceExhausted("profile auto: {}", fmt::join(plan.reasons, ". "));
  }
  return ChosenProfile{plan.recommended == kCheckpointProfile ? "" : plan.recommended,
                       std::move(plan.reasons)};
}

absl::StatusOr<LoadMemory> PlanLoadFor(const ModelSource& source, const LoadPlan& load,
                                       const PlanDevice& device, const EngineOptions& options) {
  RETURN_IF_ERROR(CheckEngineOptions(options, source.spec));
  RETURN_IF_ERROR(CheckDevice(load, device));
  ASSIGN_OR_RETURN(const SelectionRules rules, LoadSelectionRules(""));
  const MemoryPlan memory = PlanMemory(source, load, LimitsOf(options), device);
  const int64_t context = ContextOf(source, options);
  const int64_t free = device.memory_bytes;
  LoadMemory out;
  ASSIGN_OR_RETURN(out.wanted_kv_blocks, KvBlocksFor(options, context, memory.kv_bytes_per_token));
  out.kv_blocks = out.wanted_kv_blocks;
  if (free > 0) {
    const auto usable = static_cast<int64_t>(static_cast<double>(free) * rules.memory_utilization);
    const int64_t room = memory.KvTokensIn(usable, options.block_size) / options.block_size;
    out.kv_blocks = static_cast<int32_t>(std::clamp<int64_t>(
        room, LeastKvBlocks(out.wanted_kv_blocks, context, options), out.wanted_kv_blocks));
  }
  out.plan = memory.WithKvTokens(int64_t{out.kv_blocks} * options.block_size, options.block_size);
  if (free == 0 || out.plan.total() <= free) return out;
  const int64_t tokens = memory.KvTokensIn(free, options.block_size);
  return ResourceExhausted(
      "under {} it would take {} (weights {}, KV cache {}, workspace {}), and {} are free; what "
      "would fit: {}",
      load.options.profile.name, BytesText(out.plan.total()), BytesText(out.plan.weights()),
      BytesText(out.plan.of(MemoryComponent::kKvCache)), BytesText(out.plan.workspace()),
      BytesText(free),
      tokens > 0 ? fmt::format("a KV cache of {} tokens, {} (kv.cache_bytes)", tokens,
                               BytesText((tokens + options.block_size) * memory.kv_bytes_per_token))
                 : WhatFits(source, RequestFor(source, device, options, rules)));
}

}  // namespace quantd
