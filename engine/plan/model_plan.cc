// The planning half of PlanModel; profile_choice.cc is the other.
#include "engine/plan/model_plan.h"

#include <algorithm>
#include <utility>

#include "engine/plan/profile_choice.h"
#include "engine/weights/effective_profile.h"
#include "engine/weights/quantization_options.h"
#include "kernels/status.h"

namespace quantd {
namespace {

constexpr int64_t kDefaultContext = 4096;

class ProfilesPlanner {
 public:
  ProfilesPlanner(const PlanRequest& request, const ModelSource& source)
      : request_(request), source_(source), limits_(request.limits) {}

  absl::StatusOr<ModelPlan> Run() {
    RETURN_IF_ERROR(Resolve());
    if (source_.checkpoint != nullptr) RETURN_IF_ERROR(AddCheckpoint());
    for (const std::string& name : BuiltInProfiles()) {
      ASSIGN_OR_RETURN(const QuantProfile profile, LoadProfile(name));
      Add(name, profile);
    }
    if (!request_.profile.empty() && plan_.Find(request_.profile) == nullptr) {
      ASSIGN_OR_RETURN(const QuantProfile profile, LoadProfile(request_.profile));
      Add(request_.profile, profile);
    }
    std::stable_sort(plan_.profiles.begin(), plan_.profiles.end(),
                     [](const ProfilePlan& a, const ProfilePlan& b) {
                       return a.memory.weights() > b.memory.weights();
                     });
    for (const ProfilePlan& p : plan_.profiles) {
      plan_.parameters = std::max(plan_.parameters, p.memory.parameters);
    }
    return std::move(plan_);
  }

 private:
  absl::Status Resolve() {
    const int64_t longest = source_.spec.max_position_embeddings;
    if (request_.context < 0 || request_.context > longest) {
      return InvalidArgument("context is {}, allowed: 1 to the model's {}", request_.context,
                             longest);
    }
    if (request_.concurrency < 1) {
      return InvalidArgument("concurrency is {}, allowed: 1 or more", request_.concurrency);
    }
    plan_.spec = source_.spec;
    plan_.quantization = source_.prequantized ? Describe(*source_.prequantized) : "none";
    plan_.context = request_.context > 0 ? request_.context : std::min(longest, kDefaultContext);
    plan_.concurrency = request_.concurrency;
    plan_.kv_configured = request_.kv_tokens != nullptr;
    plan_.memory_bytes = request_.device.memory_bytes;
    plan_.memory_utilization = request_.memory_utilization;
    plan_.usable_bytes =
        static_cast<int64_t>(static_cast<double>(plan_.memory_bytes) * request_.memory_utilization);
    limits_.max_model_len = plan_.context;
    limits_.max_logit_rows += std::max<int64_t>(0, plan_.concurrency - limits_.max_num_seqs);
    limits_.max_num_seqs = std::max(limits_.max_num_seqs, plan_.concurrency);
    limits_.max_num_batched_tokens = std::max(limits_.max_num_batched_tokens, plan_.concurrency);
    return absl::OkStatus();
  }

  // The checkpoint against the model, and as a line of its own when it is quantized.
  absl::Status AddCheckpoint() {
    ASSIGN_OR_RETURN(const LoadPlan load,
                     PlanLoad(source_, QuantProfile(), /*profile_given=*/false));
    stored_ = load.weights.embedding.stored;
    if (source_.prequantized) Fill(NewLine(kCheckpointProfile, load.options.profile), load);
    return absl::OkStatus();
  }

  void Add(const std::string& name, const QuantProfile& profile) {
    ProfilePlan& line = NewLine(name, profile);
    if (source_.prequantized) {
      const auto effective = EffectiveProfile(profile, true, source_.prequantized);
      if (!effective.ok() || effective->name == kCheckpointProfile) {
        line.refusal =
            fmt::format("the checkpoint is quantized already: {}", Describe(*source_.prequantized));
      }
    }
    LoadPlan load;
    load.options.profile = profile;
    load.options.compute_dtype = profile.ComputeDType(source_.spec.dtype);
    auto weights = PlanWeightsOnLoad(source_.expected, stored_, load.options);
    if (!weights.ok()) {
      line.refusal = Message(weights.status());
      return;
    }
    load.weights = *std::move(weights);
    Fill(line, load);
  }

  ProfilePlan& NewLine(const std::string& name, const QuantProfile& profile) {
    ProfilePlan& line = plan_.profiles.emplace_back();
    line.name = name;
    line.hash = profile.Hash();
    const MethodOptions& method = profile.quantization;
    line.trainable_with_peft = method.is_none() || MethodOf(method).trainable_with_peft(method);
    return line;
  }

  void Fill(ProfilePlan& line, const LoadPlan& load) {
    const MemoryPlan memory = PlanMemory(source_, load, limits_, request_.device);
    line.planned = true;
    if (plan_.memory_bytes > 0) {
      line.max_kv_tokens = memory.KvTokensIn(plan_.usable_bytes, limits_.block_size);
      const int64_t block = limits_.block_size;
      line.max_requests = line.max_kv_tokens / ((plan_.context + block - 1) / block * block);
    }
    const int64_t kv_tokens = request_.kv_tokens ? request_.kv_tokens(memory.kv_bytes_per_token)
                                                 : plan_.concurrency * plan_.context;
    line.memory = memory.WithKvTokens(kv_tokens, limits_.block_size);
    line.fits = plan_.memory_bytes == 0 || line.memory.total() <= plan_.usable_bytes;
    const auto limit = [&](int64_t requests) {
      const double bytes = static_cast<double>(
          memory.bytes_read_per_step + requests * plan_.context * memory.kv_bytes_per_token);
      return static_cast<double>(requests) * request_.device.bytes_per_second / bytes;
    };
    line.tokens_per_second = limit(1);
    line.tokens_per_second_concurrent = limit(plan_.concurrency);
  }

  const PlanRequest& request_;
  const ModelSource& source_;
  PlanLimits limits_;
  DType stored_ = source_.spec.dtype;  // of a full-precision checkpoint
  ModelPlan plan_;
};

absl::StatusOr<ModelPlan> PlanAndChoose(const ModelSource& source, PlanRequest request,
                                        const SelectionRules& rules) {
  request.memory_utilization = rules.memory_utilization;
  ASSIGN_OR_RETURN(ModelPlan plan, PlanProfiles(source, request));
  RETURN_IF_ERROR(ChooseFrom(plan, rules, request.goal));
  return plan;
}

}  // namespace

const ProfilePlan* ModelPlan::Find(const std::string& name) const {
  for (const ProfilePlan& p : profiles) {
    if (p.name == name) return &p;
  }
  return nullptr;
}

MemoryPlan PlanMemory(const ModelSource& source, const LoadPlan& load, const PlanLimits& limits,
                      const PlanDevice& device) {
  return PlanMemory(source.spec, source.expected, load.weights, load.options.compute_dtype,
                    load.kv_dtype(), limits, device);
}

absl::StatusOr<ModelPlan> PlanProfiles(const ModelSource& source, const PlanRequest& request) {
  return ProfilesPlanner(request, source).Run();
}

absl::StatusOr<ModelPlan> PlanModel(const PlanRequest& request, const SelectionRules& rules) {
  ASSIGN_OR_RETURN(const ModelSource source, ReadModelSource(request.model));
  return PlanAndChoose(source, request, rules);
}

absl::StatusOr<ModelPlan> PlanConfig(const std::string& json, const std::string& source,
                                     const PlanRequest& request, const SelectionRules& rules) {
  ASSIGN_OR_RETURN(DecoderSpec spec, ParseDecoderSpec(json, source));
  return PlanAndChoose(SourceOf(std::move(spec)), request, rules);
}

}  // namespace quantd
