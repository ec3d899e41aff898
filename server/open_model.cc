// OpenModel: cheap things that can fail first, the weights last.
#include "server/open_model.h"

#include <spdlog/spdlog.h>

#include <utility>

#include "engine/plan/bytes_text.h"
#include "engine/weights/effective_profile.h"
#include "engine/weights/profile.h"
#include "kernels/status.h"
#include "server/one_line.h"
#include "server/plan_load.h"

namespace quantd {
namespace {

// With the folder in front where a message names only the file in it.
absl::Status InFolder(const std::string& folder, const absl::Status& status) {
  return Message(status).find(folder) == std::string::npos ? Annotate(status, folder) : status;
}

// Chooses a profile if it is to, and loads what fits on `device` into `opened`, whose backend and
// tokenizer are there. The source ends here: after loading, files are not read any more.
absl::Status Load(const PlanDevice& device, bool choose, const EngineOptions& engine,
                  LoadOptions& load, OpenedModel& opened) {
  ASSIGN_OR_RETURN(const ModelSource source, OpenModelSource(load.model_dir));
  if (choose) {
    ASSIGN_OR_RETURN(const ChosenProfile chosen, ChooseProfile(source, device, engine));
    spdlog::info("profile auto: {}", chosen.name.empty() ? kCheckpointProfile : chosen.name);
    for (const std::string& reason : chosen.reasons) spdlog::info("  {}", reason);
    load.profile_given = !chosen.name.empty();
    if (load.profile_given) {
      ASSIGN_OR_RETURN(load.profile, LoadProfile(chosen.name));
    }
  }
  ASSIGN_OR_RETURN(const LoadPlan plan, PlanLoad(source, load.profile, load.profile_given));
  if (opened.tokenizer != nullptr) {
    RETURN_IF_ERROR(CheckTokenizer(*opened.tokenizer, source.spec));
  }
  ASSIGN_OR_RETURN(const LoadMemory memory, PlanLoadFor(source, plan, device, engine));
  opened.plan = memory.plan;
  opened.engine = engine;
  if (memory.kv_blocks < memory.wanted_kv_blocks) {
    spdlog::warn(
        "the default KV cache of {} tokens does not fit beside the model: {} tokens, {} "
        "(kv.cache_bytes asks for a size)",
        int64_t{memory.wanted_kv_blocks} * engine.block_size,
        int64_t{memory.kv_blocks} * engine.block_size,
        BytesText(memory.plan.of(MemoryComponent::kKvCache)));
    opened.engine.num_kv_blocks = memory.kv_blocks;
  }
  ASSIGN_OR_RETURN(opened.loaded, LoadModel(*opened.backend, source, plan, load));
  return absl::OkStatus();
}

}  // namespace

absl::Status CheckTokenizer(const Tokenizer& tokenizer, const DecoderSpec& spec) {
  if (tokenizer.vocab_size() <= spec.vocab_size) return absl::OkStatus();
  return DataLoss("the tokenizer has ids up to {}, but config.json's vocab_size is {}",
                  tokenizer.vocab_size() - 1, spec.vocab_size);
}

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
  const absl::Status loaded = Load(device, choose, options.engine, load, opened);
  if (!loaded.ok()) return InFolder(options.model, loaded);
  opened.compute_dtype = opened.loaded.model->compute_dtype();
  return opened;
}

std::string DescribeModel(const std::string& name, const std::string& profile,
                          double bits_per_weight, int64_t resident_bytes) {
  return fmt::format("model {} | profile {} | {:.1f} bits/weight | resident {:.1f} MB",
                     Printable(name), Printable(profile), bits_per_weight,
                     static_cast<double>(resident_bytes) / 1e6);
}

}  // namespace quantd
