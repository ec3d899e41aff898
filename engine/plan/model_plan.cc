#include "engine/plan/model_plan.h"

#include <algorithm>
#include <memory>
#include <utility>

#include "engine/models/architecture.h"
#include "engine/plan/bytes_text.h"
#include "engine/weights/effective_profile.h"
#include "engine/weights/files.h"
#include "engine/weights/profile.h"
#include "engine/weights/quantization_options.h"
#include "engine/weights/weight_check.h"
#include "kernels/status.h"

namespace quantd {
namespace {

constexpr int64_t kDefaultContext = 4096;
constexpr int64_t kMaxConfigBytes = 16 << 20;

std::string Requests(int64_t count, int64_t context) {
  return fmt::format("{} request{} of {} tokens", count, count == 1 ? "" : "s", context);
}

/// What is planned: a model, and a checkpoint where there is one.
struct Subject {
  DecoderSpec spec;
  ExpectedWeights expected;
  std::optional<MethodOptions> prequantized;
  std::unique_ptr<Checkpoint> checkpoint;
  DType stored = DType::kBF16;  // of a full-precision one
};

Subject SubjectOf(DecoderSpec spec) {
  Subject s;
  s.spec = std::move(spec);
  s.expected = FindArchitecture(s.spec.architecture, s.spec.model_type)->weights(s.spec);
  s.stored = s.spec.dtype;
  return s;
}

absl::StatusOr<Subject> ReadSubject(const std::filesystem::path& model) {
  std::error_code error;
  const bool is_folder = std::filesystem::is_directory(model, error);
  const std::filesystem::path dir = is_folder ? model : model.parent_path();
  absl::StatusOr<DecoderSpec> spec;
  if (is_folder) {
    spec = ReadDecoderSpec(dir);
  } else {
    ASSIGN_OR_RETURN(const std::string json, ReadTextFile(model, kMaxConfigBytes));
    spec = ParseDecoderSpec(json, model.string());
  }
  RETURN_IF_ERROR(spec.status());
  Subject s = SubjectOf(*std::move(spec));
  if (is_folder || model.filename() == "config.json") {
    ASSIGN_OR_RETURN(s.prequantized, ReadQuantizationConfig(dir.empty() ? "." : dir));
  }
  if (is_folder) {
    absl::StatusOr<std::unique_ptr<Checkpoint>> checkpoint = Checkpoint::Open(dir);
    if (checkpoint.ok()) {
      s.checkpoint = *std::move(checkpoint);
    } else if (!absl::IsNotFound(checkpoint.status())) {
      return checkpoint.status();
    }
  }
  if (s.prequantized && s.checkpoint == nullptr) {
    return NotFound(
        "{}: the checkpoint is quantized ({}), and what that takes is in the headers of its "
        "*.safetensors: give the folder that has them",
        model.string(), Describe(*s.prequantized));
  }
  return s;
}

class ModelPlanner {
 public:
  ModelPlanner(const PlanRequest& request, const SelectionRules& rules, const Subject& subject)
      : request_(request), rules_(rules), subject_(subject), limits_(request.limits) {}

  absl::StatusOr<ModelPlan> Run() {
    RETURN_IF_ERROR(Resolve());
    if (subject_.checkpoint != nullptr) RETURN_IF_ERROR(AddCheckpoint());
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
    RETURN_IF_ERROR(ChooseGoal());
    Choose();
    return std::move(plan_);
  }

 private:
  absl::Status Resolve() {
    const int64_t longest = subject_.spec.max_position_embeddings;
    if (request_.context < 0 || request_.context > longest) {
      return InvalidArgument("context is {}, allowed: 1 to the model's {}", request_.context,
                             longest);
    }
    if (request_.concurrency < 1) {
      return InvalidArgument("concurrency is {}, allowed: 1 or more", request_.concurrency);
    }
    plan_.spec = subject_.spec;
    plan_.quantization = subject_.prequantized ? Describe(*subject_.prequantized) : "none";
    plan_.context = request_.context > 0 ? request_.context : std::min(longest, kDefaultContext);
    plan_.concurrency = request_.concurrency;
    plan_.memory_bytes = request_.device.memory_bytes;
    plan_.usable_bytes =
        static_cast<int64_t>(static_cast<double>(plan_.memory_bytes) * rules_.memory_utilization);
    limits_.max_model_len = plan_.context;
    limits_.max_logit_rows += std::max<int64_t>(0, plan_.concurrency - limits_.max_num_seqs);
    limits_.max_num_seqs = std::max(limits_.max_num_seqs, plan_.concurrency);
    limits_.max_num_batched_tokens = std::max(limits_.max_num_batched_tokens, plan_.concurrency);
    return absl::OkStatus();
  }

  // The checkpoint against the model, and as a line of its own when it is quantized.
  absl::Status AddCheckpoint() {
    WeightLoaderOptions options;
    options.prequantized = subject_.prequantized;
    ASSIGN_OR_RETURN(options.profile, EffectiveProfile(QuantProfile(), /*profile_given=*/false,
                                                       subject_.prequantized));
    options.compute_dtype = options.profile.ComputeDType(subject_.spec.dtype);
    ASSIGN_OR_RETURN(const WeightsPlan weights,
                     PlanWeights(*subject_.checkpoint, subject_.expected, options));
    stored_ = weights.embedding.stored;
    if (subject_.prequantized) Fill(NewLine("checkpoint", options.profile), options, weights);
    return absl::OkStatus();
  }

  void Add(const std::string& name, const QuantProfile& profile) {
    ProfilePlan& line = NewLine(name, profile);
    if (subject_.prequantized) {
      const auto effective = EffectiveProfile(profile, true, subject_.prequantized);
      if (!effective.ok() || effective->name == "checkpoint") {
        line.refusal = fmt::format("the checkpoint is quantized already: {}",
                                   Describe(*subject_.prequantized));
      }
    }
    WeightLoaderOptions options;
    options.profile = profile;
    options.compute_dtype = profile.ComputeDType(subject_.spec.dtype);
    const auto weights = PlanWeightsOnLoad(subject_.expected, stored_, options);
    if (!weights.ok()) {
      line.refusal = Message(weights.status());
      return;
    }
    Fill(line, options, *weights);
  }

  ProfilePlan& NewLine(const std::string& name, const QuantProfile& profile) {
    ProfilePlan& line = plan_.profiles.emplace_back();
    line.name = name;
    line.hash = profile.Hash();
    const MethodOptions& method = profile.quantization;
    line.trainable_with_peft = method.is_none() || MethodOf(method).trainable_with_peft(method);
    if (const auto it = rules_.claimed_quality.find(name); it != rules_.claimed_quality.end()) {
      line.claimed_quality = it->second;
    }
    return line;
  }

  void Fill(ProfilePlan& line, const WeightLoaderOptions& options, const WeightsPlan& weights) {
    const DType compute = options.compute_dtype;
    MemoryPlan memory =
        PlanMemory(subject_.spec, subject_.expected, weights, compute,
                   options.profile.kv_dtype.value_or(compute), limits_, request_.device);
    line.planned = true;
    if (plan_.memory_bytes > 0) {
      line.max_kv_tokens = memory.KvTokensIn(plan_.usable_bytes, limits_.block_size);
      const int64_t block = limits_.block_size;
      line.max_requests = line.max_kv_tokens / ((plan_.context + block - 1) / block * block);
    }
    line.memory = memory.WithKvTokens(plan_.concurrency * plan_.context, limits_.block_size);
    line.fits = plan_.memory_bytes == 0 || line.memory.total() <= plan_.usable_bytes;
    const auto limit = [&](int64_t requests) {
      const double bytes = static_cast<double>(
          memory.bytes_read_per_step + requests * plan_.context * memory.kv_bytes_per_token);
      return static_cast<double>(requests) * request_.device.bytes_per_second / bytes;
    };
    line.tokens_per_second = limit(1);
    line.tokens_per_second_concurrent = limit(plan_.concurrency);
  }

  absl::Status ChooseGoal() {
    plan_.goal = request_.goal;
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

  // "16-bit" and "checkpoint" as the names of lines; one that is not there is left out.
  std::vector<const ProfilePlan*> Preferred() const {
    std::vector<const ProfilePlan*> lines;
    for (std::string name : rules_.Find(plan_.goal)->prefer) {
      if (name == "16-bit") name = subject_.spec.dtype == DType::kF16 ? "fp16" : "bf16";
      if (const ProfilePlan* line = plan_.Find(name); line != nullptr) lines.push_back(line);
    }
    return lines;
  }

  static bool CanLoad(const ProfilePlan& line) { return line.planned && line.refusal.empty(); }

  void Choose() {
    std::vector<const ProfilePlan*> candidates = Preferred();
    if (subject_.prequantized) {
      candidates = {plan_.Find("checkpoint")};
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
              BytesText(line->memory.total()), Requests(plan_.concurrency, plan_.context),
              BytesText(plan_.usable_bytes));
        }
      } else if (chosen == nullptr) {
        chosen = line;
      } else if (next == nullptr) {
        next = line;
      }
    }
    if (chosen == nullptr && !subject_.prequantized) chosen = LargestThatFits();
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
                                         rules_.memory_utilization)),
          too_large->name);
    }
  }

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
    Say("nothing fits: {}, the smallest, takes {} with {} ({} of it KV cache), {} may be taken; "
        "fewer or shorter requests take less",
        smallest->name, BytesText(memory.total()), Requests(plan_.concurrency, plan_.context),
        BytesText(memory.of(MemoryComponent::kKvCache)), BytesText(plan_.usable_bytes));
  }

  template <typename... Args>
  void Say(fmt::format_string<Args...> text, Args&&... args) {
    plan_.reasons.push_back(fmt::format(text, std::forward<Args>(args)...));
  }

  const PlanRequest& request_;
  const SelectionRules& rules_;
  const Subject& subject_;
  PlanLimits limits_;
  DType stored_ = subject_.stored;
  ModelPlan plan_;
};

}  // namespace

const ProfilePlan* ModelPlan::Find(const std::string& name) const {
  for (const ProfilePlan& p : profiles) {
    if (p.name == name) return &p;
  }
  return nullptr;
}

absl::StatusOr<ModelPlan> PlanModel(const PlanRequest& request, const SelectionRules& rules) {
  ASSIGN_OR_RETURN(const Subject subject, ReadSubject(request.model));
  return ModelPlanner(request, rules, subject).Run();
}

absl::StatusOr<LoadPlan> PlanLoad(const std::filesystem::path& dir, const QuantProfile& profile,
                                  bool profile_given, const PlanLimits& limits,
                                  const PlanDevice& device) {
  ASSIGN_OR_RETURN(const Subject subject, ReadSubject(dir));
  if (subject.checkpoint == nullptr) return Checkpoint::Open(dir).status();
  WeightLoaderOptions options;
  options.prequantized = subject.prequantized;
  ASSIGN_OR_RETURN(options.profile, EffectiveProfile(profile, profile_given, subject.prequantized));
  options.compute_dtype = options.profile.ComputeDType(subject.spec.dtype);
  ASSIGN_OR_RETURN(const WeightsPlan weights,
                   PlanWeights(*subject.checkpoint, subject.expected, options));
  const DType kv = options.profile.kv_dtype.value_or(options.compute_dtype);
  return LoadPlan{options.profile.name, subject.spec.max_position_embeddings,
                  PlanMemory(subject.spec, subject.expected, weights, options.compute_dtype, kv,
                             limits, device)};
}

absl::StatusOr<ModelPlan> PlanConfig(const std::string& json, const std::string& source,
                                     const PlanRequest& request, const SelectionRules& rules) {
  ASSIGN_OR_RETURN(DecoderSpec spec, ParseDecoderSpec(json, source));
  const Subject subject = SubjectOf(std::move(spec));
  return ModelPlanner(request, rules, subject).Run();
}

}  // namespace quantd
