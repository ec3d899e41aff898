// OpenModel: cheap things that can fail first, the weights last.
#include "server/open_model.h"

#include <utility>

#include "engine/weights/profile.h"
#include "kernels/status.h"
#include "server/plan_load.h"

namespace quantd {
namespace {

// With the folder in front where a message names only the file in it.
absl::Status InFolder(const std::string& folder, const absl::Status& status) {
  return Message(status).find(folder) == std::string::npos ? Annotate(status, folder) : status;
}

}  // namespace

absl::StatusOr<OpenedModel> OpenModel(const OpenModelOptions& options,
                                      std::function<void(const LoadProgress&)> on_progress) {
  OpenedModel opened;
  LoadOptions load;
  load.model_dir = options.model;
  const bool choose = options.profile == kAutoProfile;
  load.profile_given = !options.profile.empty() && !choose;
  if (load.profile_given) {
    ASSIGN_OR_RETURN(load.profile, LoadProfile(options.profile));
  }
  std::error_code error;
  if (!std::filesystem::is_directory(load.model_dir, error)) {
    return NotFound("model: {} is not a folder", options.model);
  }
  load.max_rows = options.engine.max_num_batched_tokens;
  load.max_logit_rows = options.engine.max_num_seqs + kExtraLogitRows;
  load.max_positions = options.engine.max_model_len;
  load.on_progress = std::move(on_progress);

  if (options.need_tokenizer) {
    absl::StatusOr<std::unique_ptr<Tokenizer>> tokenizer = Tokenizer::Load(load.model_dir);
    if (!tokenizer.ok()) return InFolder(options.model, tokenizer.status());
    opened.tokenizer = std::move(*tokenizer);
    opened.chat_template = ChatTemplate::Load(load.model_dir);
  }
  ASSIGN_OR_RETURN(opened.backend, CreateBackend(options.backend));
  const PlanDevice device = PlanDeviceOf(*opened.backend, options.backend);
  if (choose) {
    absl::StatusOr<std::string> chosen = ChooseProfile(options.model, device, options.engine);
    if (!chosen.ok()) return InFolder(options.model, chosen.status());
    load.profile_given = !chosen->empty();
    if (load.profile_given) {
      ASSIGN_OR_RETURN(load.profile, LoadProfile(*chosen));
    }
  }
  absl::StatusOr<MemoryPlan> plan =
      PlanLoadFor(options.model, load.profile, load.profile_given, device, options.engine);
  if (!plan.ok()) return InFolder(options.model, plan.status());
  opened.plan = *plan;
  absl::StatusOr<LoadedModel> loaded = LoadModel(*opened.backend, load);
  if (!loaded.ok()) return InFolder(options.model, loaded.status());
  opened.loaded = std::move(*loaded);
  if (opened.tokenizer != nullptr &&
      opened.tokenizer->vocab_size() > opened.loaded.spec.vocab_size) {
    return DataLoss("{}: the tokenizer has ids up to {}, but config.json's vocab_size is {}",
                    options.model, opened.tokenizer->vocab_size() - 1,
                    opened.loaded.spec.vocab_size);
  }
  opened.compute_dtype = opened.loaded.model->compute_dtype();
  return opened;
}

std::string DescribeModel(const std::string& name, const std::string& profile,
                          double bits_per_weight, int64_t resident_bytes) {
  return fmt::format("model {} | profile {} | {:.1f} bits/weight | resident {:.1f} MB", name,
                     profile, bits_per_weight, static_cast<double>(resident_bytes) / 1e6);
}

}  // namespace quantd
