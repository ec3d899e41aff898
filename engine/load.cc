// LoadModel: headers and profile are brought together (model_source.h); then loader and decoder do
// the work.
#include "engine/load.h"

#include <chrono>

#include "engine/models/decoder.h"
#include "engine/weights/loader.h"
#include "kernels/check.h"

namespace quantd {
namespace {

QuantizationReport MakeReport(const LoadedWeights& weights, const QuantProfile& profile,
                              const Backend& backend) {
  QuantizationReport report;
  report.profile_name = profile.name;
  report.profile_hash = profile.Hash();
  report.effective_profile = profile.ToYaml();
  report.backend = backend.name();
  for (const LoadedWeights::Module& m : weights.modules) {
    const std::string format = m.format.ToString();
    QuantizationReport::Group* group = nullptr;
    for (auto& g : report.groups) {
      if (g.format == format && g.method == m.method) group = &g;
    }
    if (group == nullptr)
      group = &report.groups.emplace_back(QuantizationReport::Group{format, m.method});
    group->modules += m.modules;
    group->parameters += m.parameters;
    group->bytes += m.bytes;
  }
  report.parameters = weights.parameters;
  report.resident_bytes = weights.resident_bytes;
  report.peak_load_bytes = weights.peak_bytes;
  report.accepted_extras = weights.accepted_extras;
  return report;
}

}  // namespace

absl::StatusOr<LoadedModel> LoadModel(Backend& backend, const LoadOptions& options) {
  ASSIGN_OR_RETURN(const ModelSource source, OpenModelSource(options.model_dir));
  ASSIGN_OR_RETURN(const LoadPlan plan, PlanLoad(source, options.profile, options.profile_given));
  return LoadModel(backend, source, plan, options);
}

absl::StatusOr<LoadedModel> LoadModel(Backend& backend, const ModelSource& source,
                                      const LoadPlan& plan, const LoadOptions& options) {
  const auto start = std::chrono::steady_clock::now();
  QUANTD_CHECK(source.checkpoint != nullptr);
  LoadedModel loaded;
  loaded.spec = source.spec;
  loaded.defaults = source.defaults;
  loaded.kv_dtype = plan.kv_dtype();
  WeightLoaderOptions loader = plan.options;
  if (options.on_progress) {
    loader.on_progress = [&](int64_t done, int64_t total, const std::string& module) {
      options.on_progress({done, total, module});
    };
  }
  ASSIGN_OR_RETURN(LoadedWeights weights, LoadPlannedWeights(*source.checkpoint, source.expected,
                                                             loader, plan.weights, backend));
  loaded.report = MakeReport(weights, loader.profile, backend);

  DecoderOptions decoder;
  decoder.compute_dtype = loader.compute_dtype;
  decoder.max_rows = options.max_rows;
  decoder.max_logit_rows = options.max_logit_rows;
  decoder.max_positions =
      options.max_positions > 0 ? options.max_positions : loaded.spec.max_position_embeddings;
  ASSIGN_OR_RETURN(loaded.model,
                   Decoder::Create(backend, loaded.spec, std::move(weights), decoder));
  loaded.report.seconds =
      std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  return loaded;
}

}  // namespace quantd
