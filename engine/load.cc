// LoadModel: config, checkpoint and profile are brought together; then loader and decoder do the
// work.
#include "engine/load.h"

#include <chrono>

#include "engine/models/architecture.h"
#include "engine/models/decoder.h"
#include "engine/weights/effective_profile.h"
#include "engine/weights/loader.h"
#include "engine/weights/quantization_options.h"

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
  const auto start = std::chrono::steady_clock::now();
  LoadedModel loaded;
  ASSIGN_OR_RETURN(loaded.spec, ReadDecoderSpec(options.model_dir));
  ASSIGN_OR_RETURN(loaded.defaults, ReadGenerationDefaults(options.model_dir));
  ASSIGN_OR_RETURN(const auto prequantized, ReadQuantizationConfig(options.model_dir));
  ASSIGN_OR_RETURN(const QuantProfile profile,
                   EffectiveProfile(options.profile, options.profile_given, prequantized));
  ASSIGN_OR_RETURN(const auto checkpoint, Checkpoint::Open(options.model_dir));

  WeightLoaderOptions loader;
  loader.profile = profile;
  loader.prequantized = prequantized;
  loader.compute_dtype = profile.ComputeDType(loaded.spec.dtype);
  if (options.on_progress) {
    loader.on_progress = [&](int64_t done, int64_t total, const std::string& module) {
      options.on_progress({done, total, module});
    };
  }
  const Architecture* architecture =
      FindArchitecture(loaded.spec.architecture, loaded.spec.model_type);
  ASSIGN_OR_RETURN(LoadedWeights weights,
                   LoadWeights(*checkpoint, architecture->weights(loaded.spec), loader, backend));
  loaded.report = MakeReport(weights, profile, backend);
  loaded.kv_dtype = profile.kv_dtype.value_or(loader.compute_dtype);

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
