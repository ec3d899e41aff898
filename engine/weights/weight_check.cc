#include "engine/weights/weight_check.h"

#include <algorithm>
#include <set>

#include "kernels/fault_list.h"

namespace quantd {
namespace {

bool IsFloat(StoredDType t) {
  return t == StoredDType::kF32 || t == StoredDType::kF16 || t == StoredDType::kBF16;
}

bool CanFuse(const ModulePlan& a, const ModulePlan& b) {
  return a.format == b.format && a.activation == b.activation && a.columns == b.columns &&
         a.bias.empty() == b.bias.empty();
}

class Planner {
 public:
  /// Without a checkpoint, one of `stored` floats is supposed.
  Planner(const Checkpoint* checkpoint, DType stored, const ExpectedWeights& expected,
          const WeightLoaderOptions& options)
      : checkpoint_(checkpoint), stored_(stored), expected_(expected), options_(options) {}

  absl::StatusOr<WeightsPlan> Run() {
    WeightsPlan plan;
    // Only linears are quantized by default: For() treats the embedding as it treats a tied module.
    plan.embedding = PlanModule(expected_.embedding, expected_.embedding.module + ".weight", true);
    if (!IsPlain(plan.embedding.format.codec)) {
      profile_faults_.AddUnimplemented("{}: an embedding cannot be quantized",
                                       expected_.embedding.module);
    }
    if (expected_.head) {
      plan.head = PlanModule(*expected_.head, expected_.head->module + ".weight", false);
    } else {
      PlanTiedHead(plan);
    }
    for (const ExpectedGroup& group : expected_.groups) {
      std::vector<ModulePlan>& modules = plan.groups.emplace_back();
      for (const ExpectedLinear& linear : group)
        modules.push_back(PlanModule(linear, linear.module + ".weight", false));
    }
    for (const ExpectedVector& v : expected_.vectors) {
      Float(v.tensor, {v.size});
      plan.source_bytes += SourceBytes(v.tensor, v.size);
    }
    if (checkpoint_ != nullptr) CheckExtras(plan);
    RETURN_IF_ERROR(faults_.ToStatus(absl::StatusCode::kDataLoss));
    RETURN_IF_ERROR(profile_faults_.ToStatus(absl::StatusCode::kInvalidArgument));
    plan.source_bytes += plan.embedding.source_bytes + (plan.head ? plan.head->source_bytes : 0);
    for (const auto& group : plan.groups) {
      for (const ModulePlan& m : group) plan.source_bytes += m.source_bytes;
    }
    return plan;
  }

 private:
  // Of a tensor of `elements`; 0 when it is missing.
  int64_t SourceBytes(const std::string& name, int64_t elements) const {
    if (checkpoint_ == nullptr) return elements * static_cast<int64_t>(SizeOf(stored_));
    const StoredTensor* t = checkpoint_->Find(name);
    return t == nullptr ? 0 : static_cast<int64_t>(t->data.size());
  }

  // A tensor of floats; faults when it is missing or different.
  void Float(const std::string& name, const std::vector<int64_t>& shape) {
    if (checkpoint_ == nullptr) return;
    const StoredTensor* t = checkpoint_->Find(name);
    if (t == nullptr) {
      faults_.Add("tensor {} {} is missing", name, ShapeText(shape));
      return;
    }
    used_.insert(name);
    if (t->shape != shape) {
      faults_.Add("{}: tensor {}: shape {}, config.json says {}", checkpoint_->file_name(t->file),
                  name, ShapeText(t->shape), ShapeText(shape));
    }
    if (!IsFloat(t->dtype)) {
      faults_.Add("{}: tensor {}: dtype {} is not one of F32, F16, BF16",
                  checkpoint_->file_name(t->file), name, ToString(t->dtype));
    }
  }

  ModulePlan PlanModule(const ExpectedLinear& linear, const std::string& tensor, bool tied) {
    ModulePlan plan;
    plan.shape = {linear.module, linear.n, linear.k};
    plan.tensor = tensor;
    plan.import = MethodThatStored(plan.shape);
    if (plan.import != nullptr) {
      PlanImport(plan);
    } else {
      Float(tensor, {linear.n, linear.k});
      plan.sources = {tensor};
      if (!options_.prequantized) plan.options = options_.profile.For(linear.module, tied);
      const Method& method = MethodOf(plan.options);
      plan.label = plan.options.label();
      profile_faults_.Add(Annotate(method.CheckShape(plan.shape, plan.options), linear.module));
      plan.format = method.FormatOf(plan.shape, plan.options, options_.compute_dtype);
      plan.activation = options_.profile.ActivationFor(method.ActivationOf(plan.options));
      plan.stored = StoredAs(tensor);
    }
    if (linear.bias) {
      plan.bias = linear.module + ".bias";
      Float(plan.bias, {linear.n});
      // A method takes a bias of zeros for its own, where models have none; it counts once.
      if (std::find(plan.sources.begin(), plan.sources.end(), plan.bias) == plan.sources.end()) {
        plan.sources.push_back(plan.bias);
      }
    }
    for (const std::string& name : plan.sources) {
      plan.source_bytes += SourceBytes(name, name == plan.bias ? linear.n : linear.n * linear.k);
    }
    return plan;
  }

  DType StoredAs(const std::string& tensor) const {
    const StoredTensor* t = checkpoint_ == nullptr ? nullptr : checkpoint_->Find(tensor);
    return t == nullptr ? stored_ : ToDType(t->dtype).value_or(stored_);
  }

  // config.json's own method is asked first; the others say what a checkpoint is that contradicts
  // it.
  const Method* MethodThatStored(const WeightShape& shape) const {
    if (checkpoint_ == nullptr) return nullptr;
    if (options_.prequantized) {
      const Method& said = MethodOf(*options_.prequantized);
      if (said.Detect(*checkpoint_, shape)) return &said;
    }
    for (const Method* method : Methods()) {
      if (method->Detect(*checkpoint_, shape)) return method;
    }
    return nullptr;
  }

  void PlanImport(ModulePlan& plan) {
    // Its tensors are accounted for even when they are faulty: one fault a module is enough.
    const std::string prefix = plan.shape.module + ".";
    const auto for_own_tensors = [&](const auto& body) {
      for (auto it = checkpoint_->tensors().lower_bound(prefix);
           it != checkpoint_->tensors().end() && it->first.rfind(prefix, 0) == 0; ++it) {
        body(it->first);
      }
    };
    for_own_tensors([&](const std::string& name) { used_.insert(name); });
    if (!options_.prequantized) {
      faults_.Add("{}: is stored as {}, but config.json has no quantization_config",
                  plan.shape.module, plan.import->name());
      return;
    }
    plan.options = *options_.prequantized;
    if (plan.import->name() != plan.options.method) {
      faults_.Add("{}: is stored as {}, config.json says {}", plan.shape.module,
                  plan.import->name(), plan.options.method);
      return;
    }
    auto source = plan.import->Check(*checkpoint_, plan.shape, plan.options);
    if (!source.ok()) {
      faults_.Add(source.status());
      return;
    }
    plan.format = source->format;
    plan.label = source->label;
    plan.sources = source->tensors;
    plan.columns = std::move(source->columns);
    plan.activation = options_.profile.ActivationFor(source->activation);
    // What belongs to the method but was not named by it is unexpected after all.
    const std::set<std::string> named(source->tensors.begin(), source->tensors.end());
    for_own_tensors([&](const std::string& name) {
      if (named.count(name) == 0) used_.erase(name);
    });
  }

  // A tied head shares the embedding's bytes, unless an override asks for its quantization by name.
  void PlanTiedHead(WeightsPlan& plan) {
    if (options_.prequantized) return;
    if (options_.profile.For(expected_.tied_head, true).is_none()) return;
    ExpectedLinear head = expected_.embedding;
    head.module = expected_.tied_head;
    plan.head = PlanModule(head, expected_.embedding.module + ".weight", true);
  }

  void CheckExtras(WeightsPlan& plan) {
    for (const auto& [name, tensor] : checkpoint_->tensors()) {
      if (used_.count(name) > 0) continue;
      // Old transformers saved the first, which follows from config.json; the others quantize a
      // KV cache, which quantd's `kv_cache` setting decides by itself.
      if (name.ends_with(".rotary_emb.inv_freq") || name.ends_with(".self_attn.k_scale") ||
          name.ends_with(".self_attn.v_scale")) {
        plan.accepted_extras.push_back(name);
      } else if (!expected_.tied_head.empty() && name == expected_.tied_head + ".weight") {
        CheckTiedCopy(name, tensor, plan);
      } else {
        faults_.Add("{}: tensor \"{}\" ({} {}) is not part of the model",
                    checkpoint_->file_name(tensor.file), name, ToString(tensor.dtype),
                    ShapeText(tensor.shape));
      }
    }
  }

  void CheckTiedCopy(const std::string& name, const StoredTensor& copy, WeightsPlan& plan) {
    const StoredTensor* embedding = checkpoint_->Find(expected_.embedding.module + ".weight");
    const bool equal = embedding != nullptr && copy.dtype == embedding->dtype &&
                       copy.shape == embedding->shape &&
                       std::equal(copy.data.begin(), copy.data.end(), embedding->data.begin(),
                                  embedding->data.end());
    checkpoint_->DropPages(copy);
    if (equal) {
      plan.accepted_extras.push_back(name);
    } else {
      faults_.Add("{}: tensor {} differs from {}.weight, to which config.json ties it",
                  checkpoint_->file_name(copy.file), name, expected_.embedding.module);
    }
  }

  const Checkpoint* const checkpoint_;  // may be null
  const DType stored_;
  const ExpectedWeights& expected_;
  const WeightLoaderOptions& options_;
  FaultList faults_;          // of the checkpoint
  FaultList profile_faults_;  // of the profile against the model
  std::set<std::string> used_;
};

}  // namespace

absl::StatusOr<WeightsPlan> PlanWeights(const Checkpoint& checkpoint,
                                        const ExpectedWeights& expected,
                                        const WeightLoaderOptions& options) {
  return Planner(&checkpoint, options.compute_dtype, expected, options).Run();
}

absl::StatusOr<WeightsPlan> PlanWeightsOnLoad(const ExpectedWeights& expected, DType stored,
                                              const WeightLoaderOptions& options) {
  return Planner(nullptr, stored, expected, options).Run();
}

std::vector<std::span<const ModulePlan>> FusedRuns(std::span<const ModulePlan> group) {
  std::vector<std::span<const ModulePlan>> runs;
  for (size_t first = 0; first < group.size();) {
    size_t last = first + 1;
    while (last < group.size() && CanFuse(group[first], group[last])) ++last;
    runs.push_back(group.subspan(first, last - first));
    first = last;
  }
  return runs;
}

}  // namespace quantd
